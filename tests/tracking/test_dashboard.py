"""Dashboards by their JSON, saved through the real wandb and wandb-workspaces to a stand-in server."""

import json
from pathlib import Path

import pytest
import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws

from sweep.cli import main
from sweep.report import report, results
from sweep.runs.metrics import MetricsRow, Scale
from sweep.runs.sweepdir import SweepDir
from sweep.tracking import dashboard, run_content, sweep_run
from tests.helpers import example_sweeps
from tests.helpers.wandb_api import ENTITY, KEY, Trouble, signed_in


@pytest.fixture(scope="module")
def server():
    with signed_in() as standing:
        yield standing


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    """The report.json of a fitted sweep."""
    found = results.load(example_sweeps.write(tmp_path_factory.mktemp("sweeps") / "normal"))
    return json.loads(report.to_json(report.numbers(found, report.describe(found))))


@pytest.fixture
def sweep(workspace, numbers, server):
    server.views.clear()
    server.charts.clear()
    server.troubles.clear()
    folder = workspace / "sweeps" / "normal"
    (folder / "report").mkdir(parents=True)
    (folder / "report" / "report.json").write_text(json.dumps(numbers))
    (folder / "plan.jsonl").write_text("")
    (folder / "sweep.json").write_text(json.dumps({"paths": {"runs": "runs"}, "wandb": {"project": "p"}}))
    return SweepDir.find("normal")


@pytest.fixture
def exported(sweep, capsys):
    assert main(["dashboard", "normal", "--export"]) == 0
    paths = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert [path.name for path in paths] == ["workspace.json", "report.json", "chart.json"]
    return {path.stem: json.loads(path.read_text()) for path in paths}


def panels(exported):
    bank = exported["workspace"]["section"]["panelBankConfig"]
    return {section["name"]: [panel["config"] for panel in section["panels"]] for section in bank["sections"]}


def test_the_workspace_shows_what_a_sweep_is_about(exported):
    shown = panels(exported)
    assert list(shown) == [
        *("Frontier", "Loss against compute", "IsoFLOP", "Learning curves by size", "Speed", "Failures"),
    ]
    curves, final = shown["Loss against compute"]
    assert (curves["xAxis"], curves["metrics"]) == ("flops", ["loss/val_nats"])
    assert curves["xLogScale"]
    assert curves["yLogScale"]
    assert (final["xAxis"], final["yAxis"]) == ("config:C.value", "summary:loss_nats")
    assert final["showMinYAxisLine"]
    assert shown["IsoFLOP"][0]["xAxis"] == "config:N.value"
    assert {panel["groupBy"] for panel in shown["Learning curves by size"][:3]} == {"size.value"}
    assert [panel["metrics"] for panel in shown["Speed"][:2]] == [["speed/tokens_per_second"], ["speed/mfu"]]
    assert shown["Failures"][0]["metrics"] == ["optim/grad_norm"]


def test_the_workspaces_runs_are_the_sweeps(exported):
    (runset,) = exported["workspace"]["section"]["runSets"]
    (tagged,) = runset["filters"]["filters"]
    assert tagged["key"] == {"section": "run", "name": "tags"}
    assert tagged["value"] == ["normal"]
    assert runset["runFeed"]["columnPinned"]["summary:loss_nats"]


def test_panels_ask_for_what_runs_hold(exported):
    """Every key that a panel names is one that the mirror logs."""
    named = {metric for part in panels(exported).values() for panel in part for metric in panel.get("metrics", [])}
    row = MetricsRow(1, 1, 1.0, "stable", **dict.fromkeys(set(run_content.HISTORY.values()) - {"tokens", "flops"}, 1.0))
    scale = Scale(2.0, dict.fromkeys(("unigram", "bigram", "trigram"), 4.0))
    logged = run_content.history(row, 1.0, scale)
    assert named - set(logged) == set()


def test_the_custom_chart_reads_the_frontiers_table(exported):
    chart = panels(exported)["Frontier"][0]
    assert chart["panelDefId"] == "ENTITY/scaling-frontier"
    assert json.dumps(chart["userQuery"]).count(f'"{sweep_run.POINTS}"') == 1
    fields = chart["fieldSettings"]
    assert list(fields.values()) == sweep_run.POINT_COLUMNS
    text = json.dumps(exported["chart"])
    assert all(f"${{field:{name}}}" in text for name in fields)
    assert exported["chart"]["encoding"]["x"]["scale"]["type"] == "log"
    assert exported["chart"]["layer"][0]["encoding"]["y"]["scale"]["type"] == "log"


def test_the_report_holds_the_fits_numbers(exported, numbers):
    blocks = exported["report"]["blocks"]
    texts = "\n".join(block["content"] for block in blocks if block["type"] == "markdown-block")
    assert numbers["fit"]["formula"] in texts
    for row in numbers["fit"]["rows"]:
        assert f"| {row['name']} | {dashboard.with_interval(row['value'], row['interval'])} |" in texts
    assert texts.count("isoFLOP, parabola") == 1
    grids = [block for block in blocks if block["type"] == "panel-grid"]
    assert len(grids) == 6
    failed = grids[-1]["metadata"]["runSets"][0]
    assert "status" in json.dumps(failed["filters"])


def test_a_second_call_changes_the_first_ones(sweep, server, capsys):
    assert main(["dashboard", "normal"]) == 0
    first = capsys.readouterr().out
    assert "workspace made: " in first
    assert "report made: " in first
    assert list(server.charts) == [dashboard.CHART]
    addresses = vars(sweep_run.Remembered.of(sweep))
    written_by_hand(addresses)
    assert main(["dashboard", "normal"]) == 0
    assert capsys.readouterr().out == first.replace(" made: ", " brought up to date: ")
    assert len(server.views) == 2
    workspace = ws.Workspace.from_url(addresses["workspace"])
    assert [section.name for section in workspace.sections].count("Mine") == 1
    assert len(workspace.sections) == 7
    blocks = wr.Report.from_url(addresses["report"]).blocks
    assert isinstance(blocks[-1], wr.P)
    assert "What I saw" in str(blocks[-1])
    assert sum(isinstance(block, wr.PanelGrid) for block in blocks) == 6


def written_by_hand(addresses):
    """What a person adds in W&B: a section, and a paragraph below the report's Notes."""
    workspace = ws.Workspace.from_url(addresses["workspace"])
    workspace.sections = [*workspace.sections, ws.Section(name="Mine")]
    workspace.save()
    saved = wr.Report.from_url(addresses["report"])
    saved.blocks = [*saved.blocks, wr.P("What I saw")]
    saved.save()


def test_what_was_deleted_in_wandb_is_made_again(sweep, server, capsys):
    assert main(["dashboard", "normal"]) == 0
    server.views.clear()
    assert main(["dashboard", "normal"]) == 0
    assert capsys.readouterr().out.count("workspace made: ") == 2
    assert len(server.views) == 2


def test_before_the_report_there_are_panels_and_no_numbers(sweep, capsys):
    (sweep.path / "report/report.json").unlink()
    assert main(["dashboard", "normal", "--export", "out"]) == 0
    blocks = json.loads(Path("out/report.json").read_text())["blocks"]
    assert not [block for block in blocks if block["type"] == "markdown-block"]
    assert main(["dashboard", "normal"]) == 0
    assert "without numbers: run `python -m sweep collect normal`" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        (Trouble("graphql", 401, message="invalid API key"), "refused the key"),
        (Trouble("UpsertView2", 403, message="permission denied"), "permission denied"),
        (Trouble("upsertView", 404, message="project not found"), "project not found"),
    ],
)
def test_refusals_are_one_line(sweep, server, capsys, trouble, said):
    server.troubles.append(trouble)
    assert main(["dashboard", "normal"]) == 2
    err = capsys.readouterr().err.strip()
    assert said in err
    assert len(err.splitlines()) == 1
    assert KEY not in err
    assert ENTITY in err or "W&B at http" in err


def test_bad_input(sweep, capsys):
    assert main(["dashboard", "nothing"]) == 2
    assert "nothing: no such sweep; there are: normal" in capsys.readouterr().err
    path = sweep.path / "report/report.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "budgets": [{}]}))
    assert main(["dashboard", "normal", "--export"]) == 2
    assert (
        "damaged (budgets.0.times_largest is missing); run `python -m sweep report normal` again"
        in capsys.readouterr().err
    )
    path.write_text("{")
    assert main(["dashboard", "normal", "--export"]) == 2
    assert "report.json: damaged" in capsys.readouterr().err
