"""What the documentation says is so: paths and links exist, commands parse, numbers are those that were measured."""

import argparse
import importlib
import json
import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from sweep.cli import HIDDEN, VERBS

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").glob("*.md")])
TOP = {"benchmarks", "conf", "docs", "hydra_plugins", "kernels", "models", "slurm", "sweep", "tests", "tools"}
ROOMS = ("kernels", "models", "sweep", "slurm", "hydra_plugins", "tools")
MOST_WORDS = 1100  # of the README
GROUPS = ("sweep", "data", "model", "cluster", "optim", "schedule", "run")  # folders of conf/ that an override may name


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


@cache
def text(page: Path) -> str:
    return page.read_text("utf-8")


def code_of(page: Path) -> list[str]:
    """The lines of code blocks, and inline code."""
    blocks = re.findall(r"^ *```[^\n]*\n(.*?)^ *```", text(page), flags=re.MULTILINE | re.DOTALL)
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"^ *```.*?^ *```", "", text(page), flags=re.MULTILINE | re.DOTALL))
    return [line for block in blocks for line in block.splitlines()] + inline


def anchors(page: Path) -> set[str]:
    """The names by which GitHub links to a page's headings."""
    headings = re.findall(r"^#+ (.*)$", text(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands() -> list[tuple[str, list[str]]]:
    """(page, arguments) of every `python -m sweep …` or `sweep …` that a page shows."""
    found = []
    for page in PAGES:
        for line in code_of(page):
            called = re.search(r"python -m sweep (.*)", line)
            if called:
                found.append((named(page), shlex.split(called[1].replace("$(", "("), comments=True)))
    return found


def test_the_readme_is_short():
    assert len(text(ROOT / "README.md").split()) <= MOST_WORDS


def test_links_lead_somewhere():
    links = [(page, link) for page in PAGES for link in re.findall(r"(?:\]\(|src=\")([^)\"\s]+)", text(page))]
    assert len(links) > 30
    wrong = []
    for page, link in links:
        path, _, anchor = link.partition("#")
        if "://" in path:
            continue
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            wrong.append(f"{named(page)}: {link}")
    assert not wrong


def test_paths_exist():
    """Those in backticks that begin with one of our folders; `*` stands for anything."""
    seen, wrong = 0, []
    for page in PAGES:
        for word in {word.strip(".,:;") for code in code_of(page) for word in code.split()}:
            if "/" not in word or word.split("/")[0] not in TOP or re.search(r"[<…=$\[\]{}]", word):
                continue
            seen += 1
            if not any(ROOT.glob(word.rstrip("/"))):
                wrong.append(f"{named(page)}: {word}")
    assert seen > 60
    assert not wrong


def test_modules_and_targets_exist():
    makefile = text(ROOT / "Makefile")
    seen, wrong = 0, []
    for page in PAGES:
        for line in code_of(page):
            for module in re.findall(r"\b((?:benchmarks|tools)(?:\.\w+)+)", line):
                seen += 1
                path = ROOT / module.replace(".", "/")
                if not (path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()):
                    wrong.append(f"{named(page)}: {module}")
            for target in re.findall(r"^\$? ?make ([a-z][\w-]*)", line):
                seen += 1
                if not re.search(rf"^{target}:", makefile, flags=re.MULTILINE):
                    wrong.append(f"{named(page)}: make {target}")
    assert seen > 30
    assert not wrong


@pytest.mark.parametrize(("page", "arguments"), commands(), ids=lambda value: "" if isinstance(value, list) else value)
def test_a_command_parses(page, arguments):
    verb, *rest = arguments
    if verb in ("VERB", "--help", "--version"):
        return
    assert verb in {*VERBS, *HIDDEN}
    module = importlib.import_module(f"sweep.verbs.{verb}")
    parser = argparse.ArgumentParser(prog=verb, exit_on_error=False)
    module.add_arguments(parser)
    parser.parse_intermixed_args(rest)  # exits, or raises, at what it does not know
    for group, choice in re.findall(r"(\w+)=(\w+)(?= |$)", " ".join(rest)):
        if group in GROUPS:
            assert (ROOT / "conf" / group / f"{choice}.yaml").is_file(), f"{page}: {group}={choice}"


def test_there_are_commands_to_parse():
    assert len(commands()) > 40
    assert {"plan", "launch", "status", "fit", "rerun", "train", "sync"} <= {
        arguments[0] for _, arguments in commands()
    }


def test_every_file_has_its_line_in_the_architecture():
    """And every line its file."""
    part = text(ROOT / "docs" / "architecture.md").split("## Every file")[1]
    listed, room = set(), ""
    for line in part.splitlines():
        if heading := re.match(r"\*\*`(.*)/`\*\*", line):
            room = heading[1]
        elif entry := re.match(r"- `([\w/]+\.py)`: [\w`]", line):
            listed.add(f"{room}/{entry[1]}")
    files = {named(path) for folder in ROOMS for path in (ROOT / folder).rglob("*.py") if path.name != "__init__.py"}
    assert files == listed


# --- Numbers -------------------------------------------------------------------------------------------------


@cache
def result(name: str) -> Any:
    return json.loads((RESULTS / name).read_bytes())


def row(name: str, **wanted: Any) -> dict[str, Any]:
    return next(one for one in result(name)["rows"] if wanted.items() <= one.items())


def coverage(design: str) -> str:
    percent = result("fit_calibration.json")["designs"][design]["coverage_percent"]
    return f"{percent['a']:.1f}, {percent['N_opt']:.1f}, {percent['loss']:.1f}%"


def training() -> str:
    rows = result("training.json")["rows"]
    ratios = [one["speed_ratio_ours_over_plain"] for one in rows]
    sizes = [one["params_non_embedding"] / 1000 for one in rows]
    return f"{min(ratios):.2f} to {max(ratios):.2f}, from {min(sizes):.0f}k to {max(sizes):.0f}k parameters"


def encoding() -> str:
    rate = next(one for one in result("encoding.json")["encoding"] if (one["threads"], one["vocab_size"]) == (2, 512))
    return f"{rate['encode_mb_per_second']:.1f} MB/s"


def stack(size: str) -> str:
    return f"{row('sweep_throughput_stack_cpu.json', size=size)['over_alone']['stack_of_16']:.2f}"


def mirror() -> str:
    cost = result("wandb_cost.json")
    share = 100 * cost["mirror_cpu_seconds"] / (cost["cores"] * cost["launch_seconds"])
    low, high = cost["interval_90"]
    return f"{share:.2f}%; tokens/s {cost['speed_ratio_mirror_over_none']:.2f} (90%: {low:.2f} to {high:.2f})"


MEASURED = {  # file -> what the row that names it must say
    "planning.json": lambda x: [f"{x['trials']} trials", f"{x['seconds']['median']:.1f} s"],
    "collecting.json": lambda x: [
        f"{x['trials']:,} finished runs",
        f"{x['cold_seconds']:.1f} s; {x['unchanged_seconds']['median']:.1f} s when nothing changed",
    ],
    "training.json": lambda x: [training()],
    "encoding.json": lambda x: [encoding()],
    "fit_speed.json": lambda x: [
        f"{x['rows']} runs; {x['ours']['refits']:,} bootstrap refits",
        f"{1000 * x['ours']['fit_seconds']:.0f} ms; {x['ours']['refits_seconds']:.2f} s",
    ],
    "fit_optimum.json": lambda x: [f"{x['fits'] * x['within_1e-6_percent'] / 100:,.0f} of {x['fits']:,}"],
    "fit_calibration.json": lambda x: [coverage("20 families")],
    "floor.json": lambda x: [f"{x['inside']} of {x['of']}, mean error {abs(x['mean_error_nats']):.3f} nats"],
    "slurm_submission.json": lambda x: [
        f"{x['array_elements']:,} array elements",
        f"{x['launch_seconds']['beyond_planning_and_copy']['median']:.2f} s; submitit's `map_array` "
        f"{x['submitit_map_array_seconds']['median']:.2f} s",
    ],
    "slurm_overhead.json": lambda x: [
        f"{x['packed_element']['training_seconds'] / x['trials']:.1f} s",
        f"{x['packed_element']['overhead_seconds_per_trial']:.2f} s more; without Slurm "
        f"{x['launch_here']['overhead_seconds_per_trial']:.2f} s",
    ],
    "status.json": lambda x: [f"{x['trials']:,} trials", f"{x['seconds']['median']:.1f} s"],
    "sweep_throughput_stack_cpu.json": lambda x: [
        f"{stack('3k')} times at 3k parameters, {stack('28k')} at 28k, {stack('98k')} at 98k"
    ],
    "wandb_cost.json": lambda x: [mirror()],
    "compile_ahead.json": lambda x: [f"{len(x['rows'])} kernels"],
}


@pytest.mark.parametrize("name", MEASURED)
def test_a_measured_number_is_that_of_its_file(name):
    lines = [line for line in text(ROOT / "docs" / "measured.md").splitlines() if f"`{name}`" in line]
    assert lines
    for said in MEASURED[name](result(name)):
        assert said in lines[0]
    assert any(f"`{command_of(name)}" in line for line in lines)


def command_of(name: str) -> str:
    """The module that writes a result file: `planning.json` by `benchmarks.planning`."""
    return "benchmarks." + next(
        stem for stem in sorted({p.stem for p in (ROOT / "benchmarks").glob("*.py")}, key=len, reverse=True)
        if name.startswith(stem)
    )  # fmt: skip


def test_every_result_file_is_shown():
    names = {path.name for path in RESULTS.glob("*.json")}
    assert names - MEASURED.keys() <= {name for name in names if f"`{name}`" in text(ROOT / "docs" / "measured.md")}


def test_other_places_say_the_measured_numbers_too():
    measured, few = text(ROOT / "docs" / "measured.md"), coverage("5 families")
    assert few in measured
    assert not [one for one in result("compile_ahead.json")["rows"] if one["fault"]]
    assert mirror().split(";")[0] + " of the CPU time" in flat("docs/wandb.md")
    fit = result("default_sweep/fit.json")
    low, high = fit["intervals"]["a"]
    assert f"{fit['exponents']['a']:.2f} with a 90% interval of {low:.2f} to {high:.2f}" in flat("README.md")
    assert f"{fit['n_rows']} trials of nine sizes" in flat("README.md")
    assert fit["n_families"] == 9
    values = {"exponent a": fit["exponents"]["a"], **{key: fit["params"][key] for key in ("alpha", "beta")}}
    for label, value in (*values.items(), ("floor E", fit["params"]["E"])):
        low, high = fit["intervals"][label.split()[-1]]
        assert re.search(rf"^\| {label}[^|]*\| {value:.2f} \| {low:.2f} to {high:.2f} \|$", measured, re.MULTILINE), (
            label
        )


def flat(page: str) -> str:
    return " ".join(text(ROOT / page).split())
