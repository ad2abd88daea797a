"""The report as people get it: numbers, page, summary, in files; and the page opened in a browser without a network."""

import html
import html.parser
import json
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import pandas as pd
import pytest
from rich.console import Console

from sweep.common import artefacts
from sweep.common.errors import UserError
from sweep.common.plain import plain
from sweep.common.units import short
from sweep.fit import fit_file
from sweep.fit.holdout import Cut
from sweep.fit.table import OutputPaths
from sweep.report import answers, results
from sweep.report import report as reports
from sweep.report.format import significant
from sweep.report.report_file import Report
from sweep.report.summary import summary
from sweep.runs.sweepdir import SweepDir
from sweep.verbs import fit as fit_verb
from tests.helpers.example_sweeps import HOSTILE, write

KINDS = ("normal", "refused", "lr")


@pytest.fixture
def chromium():
    """The browser's command."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    return found or pytest.skip("there is no Chromium on this machine to open the page with")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """kind → (the sweep's folder, the report)."""
    folder = tmp_path_factory.mktemp("sweeps")
    made = {}
    for kind in KINDS:
        sweep = write(folder / kind, kind)
        made[kind] = (sweep, reports.write(results.load(sweep), sweep / "report"))
    return made


class Page(html.parser.HTMLParser):
    """What a browser would load, which elements there are, and the text outside scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]
        inside = {"a": (), "link": ("href",)}.get(tag, ("src", "href", "data", "srcset", "poster"))
        self.loads += [value for name, value in attrs if name in inside and value]

    def handle_data(self, data):
        if self.tags[-1:] != ["script"]:
            self.text += data


def page_of(written, kind) -> Page:
    return Page((written[kind][0] / "report" / "report.html").read_text())


@pytest.mark.parametrize("kind", KINDS)
def test_page_loads_nothing(written, kind):
    page = page_of(written, kind)
    assert page.loads == []
    assert page.tags.count("script") == 3
    assert "@import" not in page.text
    assert "url(" not in page.text


@pytest.mark.parametrize("kind", KINDS)
def test_every_number_is_finite_or_null(written, kind):
    text = (written[kind][0] / "report" / "report.json").read_text()

    def refuse(constant):
        pytest.fail(f"{constant} in report.json")

    assert json.loads(text, parse_constant=refuse) == plain(written[kind][1])
    assert plain(artefacts.decode(Report, text, "report.json")) == plain(written[kind][1])


def test_samples_and_reasons_from_data_cannot_become_markup(written):
    page = page_of(written, "normal")
    assert "img" not in page.tags
    assert "b" not in page.tags
    assert not any(name.startswith("on") for name in page.attributes)
    assert "<b>out of memory</b>" in page.text  # the failed trial's reason, as text
    assert any(point.text == HOSTILE for run in written["normal"][1].samples for point in run.points)


def test_figures_are_written_for_papers(written):
    folder, report = written["normal"]
    keys = {figure.key for figure in report.figures}
    assert {path.name for path in (folder / "report" / "figures").iterdir()} == {
        f"{key}.{suffix}" for key in keys for suffix in ("png", "svg")
    }


def test_figures_of_an_earlier_report_do_not_stay(tmp_path):
    folder = write(tmp_path / "sweep", "tiny")
    (folder / "report" / "figures").mkdir(parents=True)
    (folder / "report" / "figures" / "contour.svg").write_text("from when there was a fit")
    reports.write(results.load(folder), folder / "report")
    assert {path.stem for path in (folder / "report" / "figures").iterdir()} == {"headline", "loss_against_params"}


def test_every_trial_is_in_the_page_with_its_reason(written):
    folder, report = written["normal"]
    table = pd.read_parquet(folder / "table.parquet")
    text = page_of(written, "normal").text
    assert len(report.trials) == len(table)
    assert all(trial_id in text for trial_id in table["trial_id"])
    for words in ("loss is not finite at step 212", "21 finished", "1 diverged", "1 failed", "1 missing"):
        assert words in text
    missing = next(trial for trial in report.trials if trial["status"] == "missing")
    assert missing["loss_nats"] is None


def test_warnings_are_loud(written):
    report = written["normal"][1]
    assert any("2 versions of the training code (c0de01: 20, c0de02: 1)" in text for text in report.warnings)
    assert any("3 of 24 trials have no final loss" in text for text in report.warnings)
    text = page_of(written, "normal").text
    assert all(warning in text for warning in report.warnings)


def test_trials_that_learnt_nothing_are_warned_of():
    table = pd.DataFrame({"status": ["finished"] * 3, "loss_nats": [5.0, 5.4, 6.2]})
    (said,) = reports.warnings(results.Results("mine", table, meta=results.Meta(reference_lines={"unigram": 5.3})))
    assert said.startswith("2 finished trials end above the unigram line")
    assert "--where 'loss < 5.3'" in said
    assert reports.warnings(results.Results("mine", table)) == []


def test_refused_fit_still_shows_the_data(written):
    report = written["refused"][1]
    text = page_of(written, "refused").text
    assert report.fit is None
    assert report.budgets == []
    assert "There is no fit: too few budgets (1): the fit needs at least 3" in report.warnings[0]
    assert report.warnings[0] in text
    assert {figure.key for figure in report.figures} >= {"headline", "isoflop", "learning_curves"}
    for figure in report.left_out:
        assert f"{figure.title}: {figure.reason}" in text


def test_numbers_say_what_the_table_says(written):
    folder, report = written["normal"]
    finished = pd.read_parquet(folder / "table.parquet").query("status == 'finished'")
    assert report.best.loss_nats == pytest.approx(finished["loss_nats"].min())
    compute = report.compute
    assert compute.flops + compute.flops_saved == pytest.approx(finished["flops"].sum())
    assert compute.dollars == pytest.approx(0.05 * finished["device_seconds"].sum() / 3600)


def test_shared_trunk_counts_once_in_device_time(written):
    sweep = results.load(written["normal"][0])
    table = sweep.table.assign(wall_seconds=10.0, device_seconds=4.0)
    families = table[table["status"] == "finished"]["family_id"]
    shared = results.Results("shared", table)
    assert answers.training_seconds(shared) == pytest.approx(4.0 * len(families) + 6.0 * families.nunique())


def test_sweep_without_curves_samples_meta_or_fit(tmp_path):
    folder = write(tmp_path / "tiny", "tiny")
    for name in ("meta.json", "fit.json"):
        (folder / name).unlink()
    report = reports.write(results.load(folder), folder / "report")
    assert "there is no fit.json yet" in report.refused
    assert report.samples == []
    assert (folder / "report" / "report.html").exists()


def test_nothing_finished_makes_a_page_all_the_same(tmp_path):
    folder = write(tmp_path / "tiny", "tiny")
    table = pd.read_parquet(folder / "table.parquet")
    unknown = ["loss_nats", "best_loss_nats", "best_tokens", "train_loss_nats", "bits_per_byte"]
    table[[*unknown, "wall_seconds", "device_seconds"]] = math.nan
    table.assign(status="missing", reason="never started").to_parquet(folder / "table.parquet")
    report = reports.write(results.load(folder), folder / "report")
    assert report.figures == []
    assert report.best is None
    assert "never started" in Page((folder / "report" / "report.html").read_text()).text


def test_a_table_collected_after_the_fit_is_said(tmp_path):
    folder = write(tmp_path / "sweep", "normal")
    assert not any("another table" in text for text in reports.warnings(results.load(folder)))
    table = pd.read_parquet(folder / "table.parquet")
    pd.concat([table, table[:1].assign(trial_id="new")], ignore_index=True).to_parquet(folder / "table.parquet")
    assert results.load(folder).outdated
    table.loc[0, "loss_nats"] += 0.5
    table.to_parquet(folder / "table.parquet")
    assert any("another table" in text for text in reports.warnings(results.load(folder)))


def test_a_fit_of_another_version_is_said(tmp_path):
    folder = write(tmp_path / "tiny", "tiny")
    (folder / "fit.json").write_text('{"form": "additive", "params": {"E": 1.0}}')
    report = reports.write(results.load(folder), folder / "report")
    assert "damaged (objective is missing); make it again with `python -m sweep fit tiny`" in report.refused


def test_the_page_says_how_far_to_trust_the_fit(written):
    report, text = written["normal"][1], page_of(written, "normal").text
    for row in report.budgets:
        low, high = row.loss_nats_interval
        assert f"{row.loss_nats:.3f} [{low:.3f}, {high:.3f}]" in text
    for words in ("Is there a floor?", "What the exponent a depends on", "inside their 90% interval", "Certificate"):
        assert words in text


def test_the_page_shows_alpha_beside_the_dimension_of_the_largest_model(written):
    found = written["normal"][1].fit.dimension
    text = " ".join(page_of(written, "normal").text.split())
    assert found.d == max(each.d for each in found.by_size)
    low, high = found.four_over_d_interval
    assert f"4/d = {found.four_over_d:.2g} [{significant(low)}, {significant(high)}], where d = " in text
    assert f"1k final-layer activations of the largest model, {short(found.N)} (by" in text
    assert f"By size, d is {found.by_size[0].d:.2g} ({short(found.by_size[0].N)}), " in text
    assert "d cannot exceed a model's width" in text


def test_the_report_and_the_fits_own_summary_give_the_same_intervals(written):
    folder, report = written["normal"]
    fit = fit_file.read(OutputPaths("normal", folder))
    assert len(fit.replicates["E"]) < fit.bootstrap.replicates
    for row, best in zip(report.budgets, fit.targets, strict=True):
        for name in ("N", "D", "loss_nats"):
            assert vars(row)[name] == vars(best)[name]
            assert vars(row)[f"{name}_interval"] == vars(best)[f"{name}_interval"] is not None


def test_an_optimum_outside_of_what_was_trained_is_marked(tmp_path):
    """Also at the compute of the largest run, where the table stops short of the best size."""
    folder = write(tmp_path / "sweep", "normal")
    whole = results.load(folder)
    first = answers.budgets(whole)[0]
    assert first.outside == []
    few = results.Results("few", whole.table[whole.table["params_non_embedding"] > 1.01 * first.N], fit=whole.fit)
    assert "N" in answers.budgets(few)[0].outside
    report = reports.write(whole, folder / "report")
    beyond = next(row for row in report.budgets if "N" in row.outside)
    assert f"{short(beyond.N)}* [" in (folder / "report" / "report.html").read_text()


def test_the_extrapolation_check_is_one_that_fitted_enough_runs():
    """Six runs under five parameters reach farthest, and their errors cancel: they are no headline."""
    params = dict.fromkeys(("E", "A", "B", "alpha", "beta"), 1.0)
    found = {"mean_error": 0.04, "params": params, "n_predicted": 20, "cut_flops": 1e11, "rows": []}
    lucky = Cut(n_fit=6, max_flops_ratio=23.0, mean_signed_error=0.0, coverage=0.79, **found)
    posed = Cut(n_fit=13, max_flops_ratio=12.0, mean_signed_error=0.039, coverage=0.52, **found)
    assert answers.farthest([lucky, posed]) is posed
    assert answers.extrapolation([lucky]) == []
    (warning,) = answers.false_confidence([lucky, posed])
    assert "of 20 runs predicted from smaller ones (up to 12× the compute) 52% are inside their 90% interval" in warning
    assert answers.false_confidence([replace(posed, coverage=0.85)]) == []
    assert answers.false_confidence([replace(posed, coverage=None)]) == []


def test_the_extrapolation_check_says_its_bias(written, capsys):
    folder, report = written["normal"]
    far = answers.farthest(report.fit.holdout)
    (line,) = report.fit.extrapolation
    side = "high" if far.mean_signed_error > 0 else "low"
    assert f"{significant(100 * abs(far.mean_signed_error), 2)}% too {side} on average; " in line
    assert line.endswith(f"{100 * far.coverage:.0f}% are inside their 90% interval")
    caption = next(figure.caption for figure in report.figures if figure.key == "extrapolation")
    assert line in caption
    assert line in page_of(written, "normal").text
    assert line in fit_verb.summary(fit_file.read(OutputPaths("normal", folder)))
    console = Console(width=300, record=True, file=open(os.devnull, "w"), highlight=False)  # noqa: SIM115
    console.print(summary(report, folder / "report"))
    assert line in console.export_text()


def test_a_seen_error_that_is_not_known_has_its_reason(written):
    report, text = written["normal"][1], page_of(written, "normal").text
    assert any(row.error_nats is None for row in report.budgets)
    assert "a dash where no such hold-out reached that far" in text


def test_summary_fits_a_screen(written):
    for kind in KINDS:
        console = Console(width=100, record=True, file=open(os.devnull, "w"), highlight=False)  # noqa: SIM115
        console.print(summary(written[kind][1], written[kind][0] / "report"))
        text = console.export_text()
        assert len(text.splitlines()) <= 40
        assert "report.html" in text
    assert "no fit" in text


def test_missing_and_damaged_files_are_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "sweeps" / "there", "tiny")
    with pytest.raises(UserError, match=r"gone: no sweeps/gone/table.parquet \(collected sweeps: there\)"):
        SweepDir.find("gone", collected=True)
    (tmp_path / "sweeps" / "there" / "fit.json").write_text("{")
    there = results.load(SweepDir.find("there", collected=True).path)  # the data can be shown all the same
    assert re.search(r"fit.json: damaged .*; make it again with `python -m sweep fit there`", there.refused)
    for name in ("meta.json", "samples.parquet", "curves.parquet", "table.parquet"):
        (tmp_path / "sweeps" / "there" / name).write_bytes(b"PAR1 and then nothing")
        with pytest.raises(UserError, match=rf"{name}: damaged .*; delete it and run `python -m sweep collect there`"):
            results.load(SweepDir.find("there", collected=True).path)


@pytest.mark.slow
def test_the_verb_imports_nothing_heavy(written):
    code = """
import sys
from sweep.verbs import report
from types import SimpleNamespace
from pathlib import Path
status = report.run(SimpleNamespace(sweep=sys.argv[1], sweeps="sweeps", out=Path(sys.argv[2])))
heavy = {"torch", "wandb", "datasets", "tokenizers", "models", "kernels"} & set(sys.modules)
assert not heavy, heavy
sys.exit(status)
"""
    folder = written["lr"][0]
    command = [sys.executable, "-c", code, str(folder), str(folder / "elsewhere")]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "25 trials, 25 finished" in ran.stdout
    assert (folder / "elsewhere" / "report.html").exists()


# ---- In a browser ----------------------------------------------------------------------------------------------


def opened(chromium: str, path, tmp_path, script: str = "") -> tuple[str, str]:
    """(the page's DOM after it was drawn, the console) of headless Chromium without a network."""
    if script:
        path = shutil.copy(path, tmp_path / "probe.html")
        with open(path, "a") as file:
            file.write(f"<script>{script}</script>")
    command = [
        chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1300,2000",
        "--enable-logging=stderr", "--v=0", "--virtual-time-budget=30000", "--dump-dom", f"file://{path}",
    ]  # fmt: skip
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    console = "\n".join(line for line in ran.stderr.splitlines() if "CONSOLE" in line)
    return ran.stdout, console


def test_page_draws_in_a_browser_without_a_network(chromium, written, tmp_path):
    folder, report = written["normal"]
    # What a person does: reads an answer, filters the table, sorts it, moves the slider, zooms.
    script = """
const tell = (name, value) => (document.body.dataset[name] = value);
document.getElementById("filter").value = "diverged";
document.getElementById("filter").dispatchEvent(new Event("input"));
tell("shown", [...document.querySelectorAll("#trials tbody tr")].filter((row) => !row.hidden).length);
document.getElementById("sample-step").value = 1e9;
document.getElementById("sample-step").dispatchEvent(new Event("input"));
tell("sample", document.getElementById("sample-text").textContent.length);
tell("pwned", String(window.pwned));
document.getElementById("amount").value = "1e13";
document.getElementById("unit").dispatchEvent(new Event("input"));
tell("optimum", JSON.stringify(document.getElementById("answer").dataset));
document.getElementById("unit").value = "loss_nats";
document.getElementById("amount").value = "2.8";
document.getElementById("unit").dispatchEvent(new Event("input"));
tell("cheapest", document.getElementById("answer").dataset.flops);
const heads = document.querySelectorAll("#trials th");
const sizes = () => [...document.querySelectorAll("#trials tbody tr")].map((row) => Number(row.cells[3].dataset.value));
heads[3].click(); tell("ascending", String(sizes().every((n, i, all) => !i || all[i - 1] <= n)));
heads[3].click(); tell("descending", String(sizes().every((n, i, all) => !i || all[i - 1] >= n)));
"""
    dom, console = opened(chromium, folder / "report" / "report.html", tmp_path, script)
    assert console == ""
    assert re.search(r'<body[^>]* data-drawn="all"', dom), dom[-300:]
    assert "data-broken" not in dom
    assert 'data-pwned="undefined"' in dom
    assert len(re.findall(r'class="plot js-plotly-plot"', dom)) == len(report.figures)
    buttons = set(re.findall(r'data-title="([^"]+)"', dom))
    assert "Zoom" in buttons
    assert not any("hare" in title or "cloud" in title.lower() for title in buttons)  # none that uploads
    assert f'data-sample="{len(HOSTILE)}"' in dom
    assert 'data-shown="1"' in dom
    assert 'data-ascending="true"' in dom
    assert 'data-descending="true"' in dom
    law = fit_file.read(OutputPaths("normal", folder)).law
    answer = json.loads(html.unescape(re.search(r'data-optimum="([^"]+)"', dom)[1]))
    expected = vars(law.optimal(1e13))
    assert [float(answer[name]) for name in ("N", "D", "loss_nats")] == pytest.approx(
        [expected[name] for name in ("N", "D", "loss_nats")]
    )
    assert [float(end) for end in answer["interval"].split(",")] == pytest.approx(expected["loss_nats_interval"])
    flops = float(re.search(r'data-cheapest="([^"]+)"', dom)[1])
    assert flops == pytest.approx(law.compute_for_loss(2.8), rel=1e-6)


def test_page_without_a_fit_draws_too(chromium, written, tmp_path):
    folder, report = written["refused"]
    dom, console = opened(chromium, folder / "report" / "report.html", tmp_path)
    assert console == ""
    assert 'data-drawn="all"' in dom
    assert len(re.findall(r'class="plot js-plotly-plot"', dom)) == len(report.figures)
