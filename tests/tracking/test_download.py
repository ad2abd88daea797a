"""Runs read back by the real wandb from a stand-in server (tests/helpers/wandb_api.py, the mock at the edge)."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks.fit_simulation import HOFFMANN, table
from sweep.cli import main
from sweep.common import files
from sweep.fit.foreign import from_wandb
from sweep.fit.rows import prepare
from sweep.plan.trial import Trial
from sweep.runs.metrics import Scale
from sweep.runs.record import Record
from sweep.runs.rundir import RunDir
from sweep.tracking import download, run_content
from tests.helpers import tiny
from tests.helpers.wandb_api import ENTITY, Stored, signed_in


@pytest.fixture(scope="module")
def server():
    with signed_in() as standing:
        yield standing


@pytest.fixture(autouse=True)
def empty(server):
    server.runs.clear()
    server.troubles.clear()


def export(n=40):
    """What W&B's page exports of a project of ours, as text from a CSV: its own columns, config, summary."""
    frame = table(HOFFMANN).head(n)
    rows = pd.DataFrame({"Name": [f"trial-{i}" for i in range(n)], "State": "finished", "ID": frame.index.astype(str)})
    rows["trial_id"] = rows["Name"]
    rows["family_id"] = [f"family-{size:g}" for size in frame["N"]]
    rows["status"], rows["loss_nats"] = "finished", frame["loss"]
    return rows.assign(
        N=frame["N"], D=frame["D"], C=6 * frame["N"] * frame["D"], tokens=1.0, params_total=2 * frame["N"]
    )


def reasons(rows):
    return {dropped.row: dropped.reason for dropped in rows.dropped}


def test_an_export_is_known_by_its_columns():
    rows = prepare(from_wandb(export()))
    assert len(rows.row) == 40
    assert rows.columns["N"] == "params_non_embedding"
    np.testing.assert_array_equal(rows.D, export()["D"])  # not the history's last `tokens`
    assert len(set(rows.family)) == export()["family_id"].nunique()
    other = export().drop(columns="State")
    assert from_wandb(other) is other


def test_rows_of_an_export_that_are_no_results_say_why():
    frame = export()
    frame.loc[0, ["State", "status"]] = ["crashed", None]  # of a project whose runs W&B lost sight of
    frame.loc[1, ["State", "status"]] = ["running", None]
    frame.loc[2, ["State", "status"]] = ["finished", "diverged"]
    frame.loc[3, ["State", "status"]] = ["crashed", "finished"]  # its record is there all the same
    frame.loc[4, ["State", "status"]] = ["preempted", "stopped"]
    again = frame.loc[[5]].assign(Name="copy", ID="other")  # the same trial logged twice
    resumed = frame.loc[[6]].assign(State="failed", status=None)  # before the one that finished
    made = from_wandb(pd.concat([resumed, frame, again], ignore_index=True))
    found = reasons(prepare(made))
    assert found == {
        0: "unfinished",
        1: "unfinished",
        2: "unfinished",
        3: "diverged",
        5: "unfinished",
        41: "duplicate",
    }


def test_anybodys_export_takes_ids_and_states():
    frame = export().drop(columns=["trial_id", "family_id", "status", "params_total"])
    frame = frame.rename(columns={"N": "size", "D": "seen", "C": "compute", "loss_nats": "eval/loss"})
    frame.loc[1, "ID"] = frame.loc[0, "ID"]
    frame.loc[1, ["size", "seen", "eval/loss"]] = frame.loc[0, ["size", "seen", "eval/loss"]].to_numpy()
    frame.loc[2, "State"] = "killed"
    rows = prepare(from_wandb(frame), columns={"N": "size", "D": "seen", "loss": "eval/loss"})
    assert reasons(rows) == {1: "duplicate", 2: "unfinished"}


def test_fit_reads_an_export(workspace, capsys):
    export().to_csv("export.csv", index=False)
    assert main(["fit", "export.csv", "--bootstrap", "0", "--no-report"]) == 0
    assert "additive on 40 " in capsys.readouterr().out
    assert Path("export.fit.json").exists()


def project(server, n=40):
    for i, row in export(n).iterrows():
        config = {name: {"value": row[name]} for name in ("trial_id", "family_id", "N", "D", "C", "params_total")}
        config["optim"] = {"value": {"lr": 0.1}}
        summary = {"loss_nats": row["loss_nats"], "status": "finished", "_step": 3, "samples": {"_type": "table-file"}}
        server.runs[f"run{i}"] = Stored(f"run{i}", "p", {"jobType": "trial"}, config, summary)
    server.runs["own"] = Stored("own", "p", {"jobType": "frontier"}, {}, {"fit/E": 1.7})


def test_fit_reads_a_project(workspace, server, capsys):
    project(server)
    server.runs["run0"].state, server.runs["run0"].summary["status"] = "running", None
    assert main(["fit", f"wandb:{ENTITY}/p", "--bootstrap", "0", "--no-report"]) == 0
    out, err = capsys.readouterr()
    assert f"40 runs of {ENTITY}/p are in {ENTITY}-p.csv" in err
    assert "additive on 39 " in out
    assert "1 unfinished" in out
    frame = pd.read_csv(f"{ENTITY}-p.csv")
    assert {"Name", "ID", "State", "optim.lr", "config_sha256"} <= set(frame.columns)
    assert not [name for name in frame.columns if name.startswith(("_", "samples"))]


def test_a_measured_value_keeps_its_name(workspace, server):
    project(server, 2)
    server.runs["run0"].config |= {"loss_nats": {"value": 0.0}, "State": {"value": "odd"}, "seed": {"value": 7}}
    _, frame = download.project_table("wandb:p")
    row = frame.set_index("ID").loc["run0"]
    assert row["loss_nats"] == export(2)["loss_nats"][0]
    assert (row["State"], row["config.State"], row["config.loss_nats"], row["seed"]) == ("finished", "odd", 0.0, 7)


def test_the_same_config_twice_is_the_same_trial_twice(workspace, server):
    project(server, 5)
    for run in server.runs.values():
        run.config.pop("trial_id", None)
    server.runs["again"] = Stored("again", "p", {"jobType": "trial"}, server.runs["run0"].config, {"loss_nats": 9.0})
    _, frame = download.project_table("wandb:p")
    assert reasons(prepare(from_wandb(frame))) == {5: "duplicate"}


@pytest.fixture
def trained(overrides, workspace):
    """A trained trial, and what its run in W&B would hold."""
    plan, _ = tiny.make_sweep([*overrides, tiny.steps(20)])
    assert tiny.train(plan) == 0
    run = RunDir.of_trial(Path("runs"), plan.trials[0].trial_id)
    config = run_content.config(Trial.read(run.trial), Scale(), files.read_json(run.env))
    summary = run_content.summary(Record.read(run.record))
    config = {name: {"value": value} for name, value in config.items()}
    return plan.trials[0].trial_id, plan.config.paths.tokens, Stored("r1", "p", {}, config, summary)


@pytest.mark.parametrize("how", ["wandb:{entity}/p/r1", "https://wandb.ai/{entity}/p/runs/r1?nw=x"])
def test_rerun_takes_a_run_of_wandb(trained, server, capsys, how):
    trial_id, tokens, server.runs["r1"] = trained
    status = main(["rerun", how.format(entity=ENTITY), "--tokens", str(tokens)])
    out, err = capsys.readouterr()
    assert status == 0, err
    assert out.startswith("equal: ")
    assert f"reruns/{trial_id}-1" in out


def test_rerun_compares_with_the_summary(trained, server, capsys):
    _, tokens, server.runs["r1"] = trained
    server.runs["r1"].summary["loss_nats"] -= 0.01
    assert main(["rerun", f"wandb:{ENTITY}/p/r1", "--tokens", str(tokens)]) == 1
    assert "differ by up to 0.01 nats" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fit", "wandb:"], "wandb:: write wandb:ENTITY/PROJECT"),
        (["fit", "wandb:a/b/c"], "wandb:a/b/c: write wandb:ENTITY/PROJECT, or the address of its page"),
        (["rerun", "wandb:a/b"], "wandb:a/b: write wandb:ENTITY/PROJECT/RUN, or the address of its page"),
        (["rerun", f"wandb:{ENTITY}/p/nothing"], "Could not find run"),
        (["rerun", f"wandb:{ENTITY}/p/foreign"], "its config holds no `trial`, so it is not a run of a sweep of ours"),
        (["rerun", f"wandb:{ENTITY}/p/damaged"], "`trial` in its config: damaged (invalid JSON"),
        (["rerun", f"wandb:{ENTITY}/p/edited"], "`trial` in its config: damaged (trial_id is missing)"),
    ],
)
def test_bad_input_is_one_line(workspace, server, capsys, arguments, said):
    server.runs["foreign"] = Stored("foreign", "p", {}, {"lr": {"value": 1}})
    server.runs["damaged"] = Stored("damaged", "p", {}, {"trial": {"value": "{"}})
    server.runs["edited"] = Stored("edited", "p", {}, {"trial": {"value": json.dumps({"schema_version": 1})}})
    assert main(arguments) == 2
    err = capsys.readouterr().err.strip().splitlines()
    assert said in err[-1]
    assert len(err) == 1


def test_a_project_that_is_not_there_or_empty(workspace, server, capsys, monkeypatch):
    assert main(["fit", f"wandb:{ENTITY}/p"]) == 2
    assert f"wandb:{ENTITY}/p: the project has no runs" in capsys.readouterr().err
    monkeypatch.setattr(server, "project_is_missing", True)
    assert main(["fit", f"wandb:{ENTITY}/p"]) == 2
    assert "Could not find project p" in capsys.readouterr().err


@pytest.mark.parametrize("address", ["wandb:", "wandb:a/b/c"])
def test_a_wrong_form_is_told_before_a_key_is_asked_for(workspace, capsys, monkeypatch, address):
    monkeypatch.delenv("WANDB_API_KEY")
    assert main(["fit", address]) == 2
    assert f"{address}: write wandb:ENTITY/PROJECT" in capsys.readouterr().err
