"""Every planned trial is a row, whatever became of it."""

import json
import math
import os
import shutil
import time
from dataclasses import asdict, replace

import pandas as pd
import pytest

from sweep.cli import main
from sweep.common import artefacts, files
from sweep.common.errors import UserError
from sweep.runs import attempt_log, claim
from sweep.runs.claim import Holder
from sweep.runs.collect import collect as collect_now
from sweep.runs.record import Record
from sweep.runs.rundir import RunDir
from sweep.runs.sweepdir import SweepDir
from tests.helpers import tiny


@pytest.fixture(scope="module")
def trained(overrides, tmp_path_factory):
    """A sweep of two families with two budgets each, all trained."""
    folder = tmp_path_factory.mktemp("collect")
    where = [f"paths.runs={folder}/runs", f"paths.sweeps={folder}/sweeps"]
    plan, _ = tiny.make_sweep([*overrides, *where, tiny.steps(20, 40), "seed=0,1"])
    assert tiny.train(plan) == 0
    return plan, folder


@pytest.fixture
def swept(trained, tmp_path, monkeypatch):
    """(plan, sweep, runs) in a copy that a test may change."""
    plan, folder = trained
    shutil.copytree(folder, tmp_path / "copy")
    sweep = SweepDir(tmp_path / "copy" / "sweeps" / "small")
    settings = asdict(sweep.settings())
    settings["paths"]["runs"] = str(tmp_path / "copy" / "runs")
    files.write_json(sweep.path / "sweep.json", settings)
    monkeypatch.chdir(tmp_path)
    return plan, sweep, tmp_path / "copy" / "runs"


def row_of(collected, trial):
    (row,) = collected.table[collected.table["trial_id"] == trial.trial_id].to_dict("records")
    return row


def test_finished_trials_have_their_facts_and_results(swept):
    plan, sweep, runs = swept
    collected = collect_now(sweep)
    assert list(collected.table["status"]) == ["finished"] * 4
    for trial in plan.trials:
        row, record = row_of(collected, trial), tiny.record(runs, trial.trial_id)
        assert {key: row[key] for key in vars(trial.facts)} == vars(trial.facts)
        for name in ("loss_nats", "best_loss_nats", "train_loss_nats", "bits_per_byte", "code_hash", "execution_class"):
            assert row[name] == record[name]
        for name in ("intrinsic_dimension", "dimension_points"):
            assert row[name] == record[name] > 1
        assert (row["device_seconds"], row["wall_seconds"]) == (record["own_seconds"], record["wall_seconds"])
    saved = pd.read_parquet(sweep.path / "table.parquet")
    pd.testing.assert_frame_equal(saved, collected.table, check_dtype=False)


def test_curves_and_samples_are_every_line_of_every_trial(swept):
    plan, sweep, runs = swept
    collected = collect_now(sweep)
    for trial in plan.trials:
        rows = tiny.lines(RunDir.of_trial(runs, trial.trial_id).metrics)
        curve = collected.curves[collected.curves["trial_id"] == trial.trial_id]
        assert list(curve["step"]) == [row["step"] for row in rows]
        assert list(curve["phase"]) == [row["phase"] for row in rows]
        expected = [math.nan if row["val_loss_nats"] is None else row["val_loss_nats"] for row in rows]
        assert list(curve["val_loss_nats"]) == pytest.approx(expected, nan_ok=True)
        texts = collected.samples[collected.samples["trial_id"] == trial.trial_id]
        assert list(texts["text"]) == [line["text"] for line in tiny.samples(runs, trial.trial_id)]


def test_meta_says_what_was_saved_and_what_the_losses_are_read_against(swept):
    plan, sweep, _ = swept
    collect_now(sweep)
    meta = json.loads((sweep.path / "meta.json").read_text())
    assert meta["flops_total"] == pytest.approx(sum(trial.flops for trial in plan.trials))
    # The longer budget took the shorter one's 16 trunk steps over, in both families.
    assert meta["flops_saved"] == pytest.approx(2 * 16 * tiny.STEP_TOKENS * plan.trials[0].flops_per_token.exact)
    assert meta["reference_lines"]["uniform"] == pytest.approx(math.log(257))
    assert meta["command"][:4] == ["python", "-m", "sweep", "launch"]


def test_nothing_is_read_again_when_nothing_changed(swept, monkeypatch, capsys):
    _, sweep, _ = swept
    first = collect_now(sweep)
    stamps = {path: path.stat().st_mtime_ns for path in sweep.path.glob("*.parquet")}
    opened = []
    monkeypatch.setattr(Record, "read", opened.append)
    read_lines = artefacts.read_lines
    monkeypatch.setattr(artefacts, "read_lines", lambda kind, path: opened.append(path) or read_lines(kind, path))
    again = collect_now(sweep)
    assert (first.read, again.read, opened) == (4, 0, [])
    assert {path: path.stat().st_mtime_ns for path in sweep.path.glob("*.parquet")} == stamps
    for one, two in ((first.table, again.table), (first.curves, again.curves), (first.samples, again.samples)):
        pd.testing.assert_frame_equal(one, two, check_dtype=False)
    assert main(["collect", str(sweep.path)]) == 0
    assert "4 trials (4 finished); 0 read" in capsys.readouterr().out


def test_only_what_changed_is_read_again(swept):
    plan, sweep, runs = swept
    first = collect_now(sweep)
    trial = plan.trials[1]
    path = RunDir.of_trial(runs, trial.trial_id).record
    record = files.read_json(path)
    files.write_json(path, {**record, "loss_nats": 1.5})
    again = collect_now(sweep)
    assert again.read == 1
    assert row_of(again, trial)["loss_nats"] == 1.5
    assert len(again.curves) == len(first.curves)
    assert sorted(again.curves["trial_id"].unique()) == sorted(first.curves["trial_id"].unique())


def test_missing_trials_say_why(swept):
    plan, sweep, runs = swept
    by_seed = {(t.config.seed, t.config.steps): t for t in plan.trials}
    never, stopped, beside, gone = (by_seed[key] for key in ((0, 20), (1, 20), (1, 40), (0, 40)))
    for trial in (never, stopped, beside, gone):
        shutil.rmtree(runs / trial.trial_id)
    shutil.rmtree(RunDir.of_trunk(runs, never.family_id).path)
    trunk = RunDir.of_trunk(runs, stopped.family_id)
    tiny.attempt(trunk, "start", time=0.0, attempt=2)
    tiny.attempt(trunk, "end", time=0.0, attempt=2, outcome="stopped", error=None)
    collected = collect_now(sweep)
    assert {row["status"] for row in collected.table.to_dict("records")} == {"missing"}
    assert row_of(collected, never)["reason"] == "never started"
    assert row_of(collected, stopped)["reason"] == "stopped with everything saved; launch again to go on"
    assert collected.table["loss_nats"].isna().all()
    assert len(collected.curves) == 0
    tiny.attempt(trunk, "start", time=0.0, attempt=3)
    assert "exited without reporting a result" in row_of(collect_now(sweep), stopped)["reason"]
    tiny.attempt(trunk, "end", time=0.0, attempt=3, outcome="failed", error="out of memory")
    assert row_of(collect_now(sweep), beside)["reason"] == "out of memory"
    tiny.attempt(trunk, "start", time=0.0, attempt=4)
    tiny.attempt(trunk, "end", time=0.0, attempt=4, outcome="given up", error="given up after 3 attempts")
    row = row_of(collect_now(sweep), beside)
    assert (row["status"], row["reason"]) == ("given up", "given up after 3 attempts")
    attempt_log.retry(trunk)  # a line of its own, no attempt
    row = row_of(collect_now(sweep), beside)
    assert (row["status"], "set free by `retry`" in row["reason"]) == ("missing", True)


def test_a_failed_trial_says_how(swept, capsys):
    plan, sweep, runs = swept
    run = RunDir.of_trial(runs, plan.trials[0].trial_id)
    run.record.unlink()
    run.error.write_text('Traceback (most recent call last):\n  File "x"\nRuntimeError: out of luck\n')
    row = row_of(collect_now(sweep), plan.trials[0])
    assert (row["status"], row["reason"]) == ("failed", "RuntimeError: out of luck")
    assert main(["collect", str(sweep.path)]) == 0
    assert f"failed: {plan.trials[0].trial_id}: RuntimeError: out of luck" in capsys.readouterr().out


def test_a_running_trial_says_how_far_it_is(swept):
    plan, sweep, runs = swept
    short, long = sorted((t for t in plan.trials if t.config.seed == 0), key=lambda t: t.config.steps)
    for trial in (short, long):
        RunDir.of_trial(runs, trial.trial_id).record.unlink()
    trunk = RunDir.of_trunk(runs, short.family_id).path
    assert files.create_json(trunk / "claim.000009.json", asdict(replace(Holder.here(), host="elsewhere")))
    files.write_json(
        trunk / "heartbeat.json", {"time": time.time(), "trial_id": short.trial_id, "step": 12, "steps": 20}
    )
    collected = collect_now(sweep)
    assert (row_of(collected, short)["status"], row_of(collected, short)["reason"]) == ("running", "step 12 of 20")
    assert (row_of(collected, long)["status"], row_of(collected, long)["reason"]) == (
        "waiting",
        "its family is being trained",
    )
    error = RunDir.of_trial(runs, long.trial_id).error
    error.write_text("RuntimeError: out of luck\n")
    assert row_of(collect_now(sweep), long)["status"] == "failed"
    os.utime(error, (1, 1))  # of an earlier attempt: this one may still come to the trial again
    assert row_of(collect_now(sweep), long)["reason"] == "its family is being trained"
    error.unlink()
    claim.force_release(trunk)
    assert row_of(collect_now(sweep), short)["status"] == "missing"


def test_a_diverged_trial_is_a_row_with_its_step(swept, capsys):
    plan, sweep, runs = swept
    path = RunDir.of_trial(runs, plan.trials[0].trial_id).record
    record = {
        **files.read_json(path),
        "status": "diverged",
        "loss_nats": None,
        "train_loss_nats": None,
        "steps_done": 16,
    }
    files.write_json(path, record)
    row = row_of(collect_now(sweep), plan.trials[0])
    assert (row["status"], row["reason"]) == ("diverged", "loss not finite at step 16")
    assert math.isnan(row["loss_nats"])
    assert row["best_loss_nats"] == record["best_loss_nats"]
    main(["collect", str(sweep.path)])
    assert "3 finished, 1 diverged" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda record: "{", "record.json: damaged"),
        (lambda record: "[]", "record.json: damaged (input should be an object"),
        (lambda record: json.dumps({**record, "schema_version": 7}), "schema version 7, this code reads 1"),
        (lambda record: json.dumps({**record, "loss_nats": "low"}), "damaged (loss_nats='low': "),
        (lambda record: json.dumps({k: v for k, v in record.items() if k != "flops"}), "damaged (flops is missing)"),
        (lambda record: json.dumps({**record, "trial_id": "another"}), "is the record of another"),
    ],
)
def test_a_damaged_record_is_a_row_not_a_crash(swept, damage, said):
    plan, sweep, runs = swept
    path = RunDir.of_trial(runs, plan.trials[0].trial_id).record
    whole = path.read_text()
    path.write_text(damage(json.loads(whole)))
    collected = collect_now(sweep)
    row = row_of(collected, plan.trials[0])
    assert row["status"] == "damaged"
    assert said in row["reason"]
    assert "delete it" in row["reason"] or "collect it with that code" in row["reason"]
    assert list(collected.table["status"]).count("finished") == 3
    path.write_text(whole)
    assert list(collect_now(sweep).table["status"]) == ["finished"] * 4


def test_a_damaged_curve_leaves_the_result(swept):
    plan, sweep, runs = swept
    metrics = RunDir.of_trial(runs, plan.trials[0].trial_id).metrics
    whole = metrics.read_text()
    metrics.write_text("{oops}\n" + whole)
    row = row_of(collect_now(sweep), plan.trials[0])
    assert row["status"] == "finished"
    assert "metrics.jsonl:1: damaged (" in row["reason"]
    metrics.write_text(whole)
    again = collect_now(sweep)
    assert pd.isna(row_of(again, plan.trials[0])["reason"])
    assert plan.trials[0].trial_id in set(again.curves["trial_id"])


@pytest.mark.parametrize("name", ["table", "curves", "samples"])
def test_a_damaged_table_is_named(swept, name):
    plan, sweep, runs = swept
    collect_now(sweep)
    RunDir.of_trial(runs, plan.trials[0].trial_id).record.touch()
    (sweep.path / f"{name}.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match=rf"{name}\.parquet: damaged .*; delete it and collect again") as caught:
        collect_now(sweep)
    assert "\n" not in str(caught.value)
    (sweep.path / f"{name}.parquet").unlink()
    assert len(collect_now(sweep).table) == 4


def test_a_sweep_that_was_extended_gets_its_new_rows(swept):
    plan, sweep, _ = swept
    lines = sweep.plan.read_text().splitlines(keepends=True)
    sweep.plan.write_text("".join(lines[:3]))
    assert len(collect_now(sweep).table) == 3
    sweep.plan.write_text("".join(lines))
    collected = collect_now(sweep)
    assert (len(collected.table), collected.read) == (4, 1)
    assert set(collected.curves["trial_id"]) == {t.trial_id for t in plan.trials}


def test_a_plan_without_facts_is_of_another_version(swept):
    _, sweep, _ = swept
    sweep.plan.write_text('{"trial_id": "x"}\n')
    with pytest.raises(UserError, match=r"plan\.jsonl:1: damaged \(facts is missing\); remove it and launch again"):
        collect_now(sweep)
