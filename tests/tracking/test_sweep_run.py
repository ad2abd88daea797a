"""The sweep's own run, read back from the file that the real wandb wrote, and uploaded to a stand-in server."""

import json

import pandas as pd
import pytest
from PIL import Image

from sweep.cli import main
from sweep.common.errors import UserError
from sweep.config.schema import WandbSection
from sweep.report import report, results
from sweep.report.plotly_figures import plotly
from sweep.runs.sweepdir import SweepDir
from sweep.tracking import sweep_run, wandb_files
from tests.helpers import example_sweeps
from tests.helpers.wandb_api import ENTITY, signed_in

SECTION = WandbSection(mode="offline", project="p")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A collected, fitted and reported sweep."""
    root = tmp_path_factory.mktemp("sweeps")
    sweep = example_sweeps.write(root / "normal")
    found = results.load(sweep)
    figures = report.describe(found)
    (sweep / "report" / "figures").mkdir(parents=True)
    (sweep / "report" / "report.json").write_text(report.to_json(report.numbers(found, figures)))
    for figure in figures:  # drawing them for real is slow, and tested elsewhere
        Image.new("RGB", (3, 2)).save(sweep / "report" / "figures" / f"{figure.key}.png")
    (sweep / "plan.jsonl").write_text("")
    paths = {"runs": str(root / "runs"), "sweeps": str(root), "tokens": "tokens"}
    (sweep / "sweep.json").write_text(json.dumps({"paths": paths, "cluster": {}, "wandb": vars(SECTION)}))
    return sweep


@pytest.fixture
def sweep(folder):
    """The sweep, never written to W&B yet, all that a test changes put back."""
    kept = {path: path.read_bytes() for path in (folder / "fit.json", folder / "report/report.json")}
    (folder / "wandb.json").unlink(missing_ok=True)
    yield SweepDir(folder)
    for path, content in kept.items():
        path.write_bytes(content)


@pytest.fixture(scope="module")
def written(folder):
    """What wandb's own reader finds in the run's file."""
    (folder / "wandb.json").unlink(missing_ok=True)
    assert "written from" in sweep_run.refresh(SweepDir(folder), SECTION)
    (file,) = wandb_files.of_run(folder.parent / "runs", "normal-frontier")
    return file, list(wandb_files.read(file))


def merged(records, kind):
    found = {}
    for record in records:
        if record["type"] == kind:
            found |= record[kind].get("update") or record[kind].get("item") or {}
    return found


def numbers(sweep):
    return json.loads((sweep.path / "report/report.json").read_text())


def test_the_summary_is_the_reports_numbers(written, sweep):
    summary, said = merged(written[1], "summary"), numbers(sweep)
    for row in said["fit"]["rows"]:
        assert summary[f"fit/{row['name']}"] == row["value"]
        assert [summary[f"fit/{row['name']}_{end}"] for end in ("low", "high")] == row["interval"]
    for approach in said["fit"]["approaches"]:
        assert summary[f"a/{approach['key']}"] == approach["a"]
    assert summary["trials/finished"] == said["counts"]["finished"]
    assert summary["best/loss_nats"] == said["best"]["loss_nats"]


def test_the_run_says_what_it_is(written):
    (run,) = [record["run"] for record in written[1] if record["type"] == "run"]
    assert (run["run_id"], run["job_type"], run["project"]) == ("normal-frontier", "frontier", "p")
    assert run["config"]["update"]["formula"].startswith("L(N, D) = ")


def test_tables_figures_and_charts_are_there(written, sweep):
    history, file = merged(written[1], "history"), written[0]
    keys = {name.partition(".")[0] for name in history}
    figures = {figure["key"] for figure in numbers(sweep)["figures"]}
    assert {f"figures/{key}" for key in figures} <= keys
    assert {f"charts/{key}" for key in sweep_run.INTERACTIVE} <= keys
    assert {"table", "budgets", sweep_run.POINTS} <= keys
    chart = json.loads((file.parent / "files" / history["charts/headline.path"]).read_text())
    assert chart["layout"]["xaxis"]["type"] == "log"
    shown = {trace.get("name") for trace in chart["data"]}
    assert "frontier (parametric)" in shown
    table = json.loads((file.parent / "files" / history["table.path"]).read_text())
    assert len(table["data"]) == len(pd.read_parquet(sweep.path / "table.parquet"))


def test_lineage_leads_from_the_table_to_the_fit(written):
    artifacts = {r["artifact"]["name"]: r["artifact"] for r in written[1] if r["type"] == "artifact"}
    assert artifacts["normal-table"]["use_after_commit"]
    assert not artifacts["normal-fit"].get("use_after_commit")
    held = [entry["path"] for entry in artifacts["normal-fit"]["manifest"]["contents"]]
    assert sorted(held) == ["fit.json", "report.json"]


def test_a_figure_of_the_report_is_drawn_as_the_page_draws_it(sweep):
    described = {each.key: each for each in report.describe(results.load(sweep.path)) if hasattr(each, "panels")}
    figures = sweep_run.read_report(sweep).figures
    assert [figure.key for figure in figures] == list(described)
    for figure in figures:
        assert plotly(figure) == plotly(described[figure.key])


def test_points_are_the_headlines(sweep):
    points = sweep_run.points(sweep_run.read_report(sweep)).set_index("kind")
    finished = results.load(sweep.path).finished
    assert sorted(points.loc["run", "loss"]) == pytest.approx(sorted(finished["loss"]))
    assert set(points.loc["run", "trial"]) == set(finished["trial_id"])
    assert points.loc["frontier", "loss"].is_monotonic_decreasing
    assert (points.loc["interval", "low"] <= points.loc["interval", "high"]).all()


def test_it_is_written_again_only_after_a_change(sweep, monkeypatch, capsys):
    steps = []
    monkeypatch.setattr(sweep_run, "write", lambda made, section, step: steps.append(step))
    for _ in range(2):
        sweep_run.refresh(sweep, SECTION)
    path = sweep.path / "report/report.json"
    path.write_text(path.read_text().replace('"priced": true', '"priced": false'))
    assert main(["sync", str(sweep.path), "--no-upload"]) == 0
    assert "normal-frontier: written from" in capsys.readouterr().out
    assert "as they were" in sweep_run.refresh(sweep, SECTION)
    assert steps == [0, 1]


def test_sync_uploads_it_with_its_lineage(written, sweep, capsys):
    wandb_files.mark_up(written[0])  # one is enough
    with signed_in() as server:
        assert main(["sync", str(sweep.path)]) == 0
    assert f"up: 1 runs, in {ENTITY}/p" in capsys.readouterr().out
    run = server.runs["normal-frontier"]
    assert run.about["jobType"] == "frontier"
    assert run.summary["fit/E"] == numbers(sweep)["fit"]["rows"][0]["value"]
    assert server.used == ["normal-table"]
    assert {"normal-table", "normal-fit"} <= set(server.logged)


def test_what_is_missing_is_said_with_its_command(sweep, tmp_path):
    def refused():
        with pytest.raises(UserError) as error:
            sweep_run.refresh(sweep, SECTION)
        return str(error.value)

    fit = json.loads((sweep.path / "fit.json").read_text())
    (sweep.path / "fit.json").write_text(json.dumps(fit | {"data_sha256": "other"}))
    assert "older than the table or the fit; run `python -m sweep report normal` first" in refused()
    said = numbers(sweep) | {"made": ["other"]}
    del said["budgets"]
    (sweep.path / "report/report.json").write_text(json.dumps(said))
    assert "damaged (budgets is missing); run `python -m sweep report normal` again" in refused()
    (sweep.path / "report/report.json").unlink()
    assert "report.json: no such file; run `python -m sweep report normal` first" in refused()
    sweep = SweepDir(tmp_path)
    assert "table.parquet: no such file; run `python -m sweep collect" in refused()


def test_a_sweep_without_a_fit_has_its_table_and_no_law(tmp_path):
    sweep = example_sweeps.write(tmp_path / "single", "single")
    found = results.load(sweep)
    said = report.numbers(found, report.describe(found))
    assert sweep_run.summary(said)["refused"] == "too few budgets (1): the fit needs at least 3"
    assert "fit/E" not in sweep_run.summary(said)
    assert sweep_run.config(said) == {"sweep": "single"}
    assert len(sweep_run.budgets(said)) == 0
    assert set(sweep_run.points(said)["kind"]) == {"run"}
