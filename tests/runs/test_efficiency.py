"""Shares of what devices can do: of a speed (MFU), and of a sweep's whole time."""

import json

import pandas as pd
import pytest

from sweep.runs.collect import collect
from sweep.runs.efficiency import efficiency, worker_seconds
from sweep.runs.rundir import RunDir
from sweep.workers import ceiling
from tests.helpers import tiny


def attempts(runs, family_id, *rows):
    trunk = RunDir.of_trunk(runs, family_id)
    trunk.path.mkdir(parents=True)
    for row in rows:
        tiny.attempt(trunk, **row)


def start(at, pid=1, **more):
    who = {"host": "a", "pid": pid, "started": 5.0, "worker_since": 95.0}
    return {"event": "start", "attempt": 1, "time": at, **who, **more}


def end(at):
    return {"event": "end", "attempt": 1, "time": at, "outcome": "done", "error": None}


def test_a_process_counts_from_its_start_to_the_end_of_its_last_family(tmp_path):
    """Two families one after the other, with a gap, and two at once in a stack; a killed one and a shared device."""
    attempts(tmp_path, "one", start(100.0), end(110.0))
    attempts(tmp_path, "two", start(112.0), end(130.0))
    assert worker_seconds(tmp_path, ["one", "two"]) == 35.0
    attempts(tmp_path, "beside", start(112.0), end(140.0))
    assert worker_seconds(tmp_path, ["one", "two", "beside"]) == 45.0
    attempts(tmp_path, "elsewhere", start(100.0, pid=2, device_share=0.25), end(120.0))
    assert worker_seconds(tmp_path, ["one", "two", "elsewhere"]) == 35.0 + 0.25 * 25.0
    attempts(tmp_path, "killed", start(500.0, pid=3, worker_since=499.0))
    assert worker_seconds(tmp_path, ["killed", "never began"]) == 1.0
    (RunDir.of_trunk(tmp_path, "killed").path / "heartbeat.json").write_text('{"time": 507.0}')
    assert worker_seconds(tmp_path, ["killed"]) == 8.0
    again = start(600.0, pid=5, worker_since=600.0, attempt=2, last_beat=507.0)
    attempts(tmp_path, "killed, then done", start(500.0, pid=3), again, end(610.0) | {"attempt": 2})
    assert worker_seconds(tmp_path, ["killed, then done"]) == (507.0 - 95.0) + 10.0
    attempts(tmp_path, "retried", start(500.0, pid=4, worker_since=499.0), {"event": "retry", "time": 900.0})
    assert worker_seconds(tmp_path, ["retried"]) == 1.0  # a person's word takes no device


def test_efficiency_is_unknown_where_no_ceiling_was_measured():
    assert efficiency(50.0, 10.0, pd.DataFrame({"flops_ceiling": [10.0, None]})) == 0.5
    assert efficiency(50.0, 10.0, pd.DataFrame({"flops_ceiling": [None]})) is None
    assert efficiency(50.0, 10.0, pd.DataFrame({"loss": [1.0]})) is None
    assert efficiency(50.0, 0.0, pd.DataFrame({"flops_ceiling": [10.0]})) is None


def test_a_ceiling_is_measured_once_for_a_device_a_precision_and_threads(tmp_path, monkeypatch):
    measured = []
    monkeypatch.setattr(ceiling, "_measure", lambda *how: measured.append(how) or 1e9)
    assert [ceiling.flops_ceiling(tmp_path, "cpu", "fp32") for _ in range(2)] == [1e9, 1e9]
    ceiling.flops_ceiling(tmp_path, "cpu", "bf16")
    assert len(measured) == len(tiny.lines(tmp_path / "ceilings.jsonl")) == 2


def test_a_measured_ceiling_is_of_this_machine():
    assert 1e8 < ceiling._measure("cpu", "fp32", 1) < 1e13


def test_rows_records_and_the_table_carry_mfu(overrides, workspace):
    plan, sweep = tiny.make_sweep([*overrides, tiny.steps(20, 40), "run.stack=2"])
    assert tiny.train(plan) == 0
    collected = collect(sweep)
    for trial in plan.trials:
        record = tiny.record(plan.runs, trial.trial_id)
        expected = record["tokens_per_second"] * trial.flops_per_token.exact / record["flops_ceiling"]
        assert record["mfu"] == pytest.approx(expected, abs=1e-4)
        rows = tiny.lines(RunDir.of_trial(plan.runs, trial.trial_id).metrics)
        assert all(row["mfu"] > 0 for row in rows)
    assert (collected.table["mfu"] > 0).all()
    meta = json.loads((sweep.path / "meta.json").read_text())
    assert 0 < meta["efficiency"] < 1
    assert collect(sweep).read == 0
