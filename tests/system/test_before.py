"""A sweep that an older version trained is collected, fitted, reported, trained again and resumed by this one."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from sweep.cli import main
from sweep.runs.rundir import RunDir
from sweep.runs.sweepdir import SweepDir
from tests.helpers import tiny

GOLDEN = Path(__file__).parents[1] / "golden" / "before"
FINGERPRINT = "121a2bff9d68e877"
RERUN = ["12.3k-1x32-15.9ktok-s0-27a0ae90", "3.09k-1x16-15.9ktok-s3-93882c71"]  # trained alone; by a Slurm job
STOPPED, LONGER = "776-1x8-15.9ktok-s7-8f204168", "776-1x8-96ktok-s7-0a088400"
# What is not a result: when a record was written, and by whom it was read.
STAMPS = ["record_stamp"]
# Keys of fit.json and report.json that have another name today.
RENAMED = {"roads": "approaches"}


def place(root: Path) -> None:
    """The old folders at `root`, with their token shards prepared anew."""
    shutil.copytree(GOLDEN, root, dirs_exist_ok=True)
    for path in root.rglob("*"):
        if path.suffix in (".json", ".jsonl", ".sbatch", ".log") and "@ROOT@" in (text := path.read_text()):
            path.write_text(text.replace("@ROOT@", str(root)))
    tokens = [f"paths.tokens={root}/tokens"]
    assert main(["prepare", "data=markov", "data.tokens=150000", "data.vocab_size=64", *tokens]) == 0
    assert (root / "tokens" / FINGERPRINT).is_dir()


@pytest.fixture
def old(workspace):
    """The old folders, where the verbs run."""
    place(workspace)
    return workspace


@pytest.fixture
def verb(old, capsys):
    """Run a verb; its standard output, after an exit status of 0 and no traceback."""

    def run(*words: str) -> str:
        capsys.readouterr()
        status = main([*words])
        said = capsys.readouterr()
        assert status == 0, said.err
        assert "Traceback" not in said.err
        return said.out

    return run


def json_of(path: Path | str):
    return json.loads(Path(path).read_text())


def numbers(value, name: str = "") -> dict[str, float]:
    """Every number in a JSON value, by the path of keys that leads to it."""
    if isinstance(value, dict):
        parts = ((key, part) for key, part in value.items() if key not in ("command", "versions"))
    elif isinstance(value, list):
        parts = enumerate(value)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        return {name: float(value)}
    else:
        return {}
    return {path: number for key, part in parts for path, number in numbers(part, f"{name}/{key}").items()}


def today(path: str, names: dict[str, float]) -> str:
    """The path under which today's file holds what an older one holds under `path`."""
    if path in names:
        return path
    return "/".join(RENAMED.get(key, key) for key in path.split("/"))


def assert_same_numbers(now, before, at_least: int) -> None:
    """Every number of `before` is in `now`, equal within a millionth; it held at least so many."""
    old, new = numbers(before), numbers(now)
    assert len(old) >= at_least
    assert [path for path in old if today(path, new) not in new] == []
    assert {path: new[today(path, new)] for path in old} == pytest.approx(old, rel=1e-6, abs=1e-12)


def test_the_table_is_the_old_table(verb):
    before = pd.read_parquet("sweeps/before/table.parquet").set_index("trial_id")
    Path("sweeps/before/table.parquet").unlink()
    assert "16 trials (16 finished); 16 read anew" in verb("collect", "before")
    now = pd.read_parquet("sweeps/before/table.parquet").set_index("trial_id")
    assert len(before) == 16
    pd.testing.assert_frame_equal(
        now[before.columns].drop(columns=STAMPS), before.drop(columns=STAMPS), check_dtype=False, rtol=0, atol=0
    )


def test_a_table_of_the_old_version_is_collected_over(verb):
    before = pd.read_parquet("sweeps/before/table.parquet")
    assert "16 trials (16 finished)" in verb("collect", "before")
    assert list(pd.read_parquet("sweeps/before/table.parquet")["loss_nats"]) == list(before["loss_nats"])


def test_the_fit_has_the_old_numbers(verb):
    before = json_of("sweeps/before/fit.json")
    verb("collect", "before")
    Path("sweeps/before/fit.json").unlink()
    verb("fit", "before", "--no-report")
    assert_same_numbers(json_of("sweeps/before/fit.json"), before, at_least=200)


def test_the_report_of_an_old_table_and_an_old_fit_has_the_old_numbers(verb):
    table, fit = Path("sweeps/before/table.parquet").read_bytes(), Path("sweeps/before/fit.json").read_bytes()
    verb("collect", "before")  # makes curves.parquet and samples.parquet, which are not kept here
    Path("sweeps/before/table.parquet").write_bytes(table)
    Path("sweeps/before/fit.json").write_bytes(fit)
    verb("report", "before")
    page = json_of("sweeps/before/report_numbers.json")
    assert_same_numbers(json_of("sweeps/before/report/report.json"), page, at_least=60)
    assert Path("sweeps/before/report/report.html").stat().st_size > 1e6


@pytest.mark.parametrize(
    ("sweep", "counts"),
    [
        ("before", {"finished": 16}),
        ("stack", {"finished": 4}),
        ("failed", {"diverged": 2}),
        ("array", {"finished": 4}),
    ],
)
def test_status_and_collect_agree_about_an_old_sweep(verb, sweep, counts):
    assert json.loads(verb("status", sweep, "--json"))["counts"] == counts
    verb("collect", sweep)
    assert dict(pd.read_parquet(f"sweeps/{sweep}/table.parquet")["status"].value_counts()) == counts


def test_status_lists_all_old_sweeps(verb):
    shown = json.loads(verb("status", "--json"))
    assert {name: sum(counts.values()) for name, counts in shown.items()} == {
        "before": 16,
        "stack": 4,
        "failed": 2,
        "stopped": 2,
        "array": 4,
    }
    assert shown["stopped"]["finished"] == 1


@pytest.mark.parametrize("trial_id", RERUN)
def test_an_old_trial_is_the_same_again(verb, trial_id):
    """Bit-equal where the machine is of the record's execution class; elsewhere equal within rounding."""
    said = verb("rerun", trial_id)
    same_class = (
        tiny.record(f"reruns/{trial_id}-1", trial_id)["execution_classes"]
        == tiny.record("runs", trial_id)["execution_classes"]
    )
    assert said.split(":")[0] == ("equal" if same_class else "within-noise")
    if same_class:
        assert tiny.everything(f"reruns/{trial_id}-1", trial_id) == tiny.everything("runs", trial_id)


def test_the_same_overrides_name_the_same_trials(verb):
    sweep = SweepDir(Path("sweeps/before"))
    planned = [json.loads(line) for line in verb("plan", *sweep.overrides(), "--json").splitlines()]
    assert len(planned) == 16
    assert {trial["trial_id"] for trial in planned} == {
        json.loads(line)["trial_id"] for line in sweep.plan.read_text().splitlines()
    }


def test_an_interrupted_launch_goes_on_from_its_checkpoint(verb):
    """The trial of the larger budget resumes at step 92, and ends as it does without the interruption."""
    family = RunDir.of_trunk(Path("runs"), "776-1x8-s7-f0b6edb1")
    record = RunDir.of_trial(Path("runs"), STOPPED).record.read_bytes()
    recorded_class = json_of(RunDir.of_trial(Path("runs"), LONGER).env)["execution_class"]
    rows = tiny.lines(family.metrics)
    verb("launch", *SweepDir(Path("sweeps/stopped")).overrides(), "--no-report")
    start, end = tiny.lines(family.attempts)[-2:]
    assert (start["attempt"], end["outcome"]) == (2, "done")
    assert tiny.lines(family.metrics)[: len(rows)] == rows  # with the old times: nothing of it was trained again
    assert RunDir.of_trial(Path("runs"), STOPPED).record.read_bytes() == record
    if tiny.record("runs", LONGER)["execution_class"] == recorded_class:
        assert tiny.everything("runs", LONGER) == tiny.everything("uninterrupted/runs", LONGER)
    else:
        expected = tiny.record("uninterrupted/runs", LONGER)["loss_nats"]
        assert tiny.record("runs", LONGER)["loss_nats"] == pytest.approx(expected, abs=1e-3)
