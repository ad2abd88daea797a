"""SIGKILL anywhere, then resumed, equals uninterrupted: bit-equal losses, curves and samples, every row once."""

import json
import signal

import pytest

from sweep.cli import main
from sweep.runs.rundir import RunDir
from tests.helpers import tiny
from tests.helpers.killed import start

BUDGETS = (40, 70)  # steps; they branch at 32 and 56
TRUNK, SHORT, LONG = None, *BUDGETS
MOMENTS = [
    ("update", TRUNK, 3),  # before the first checkpoint: from step 0 again
    ("row", TRUNK, 8),  # half a line
    ("update", TRUNK, 11),
    ("validation", TRUNK, 16),
    ("checkpoint write", TRUNK, 17),  # half a file
    ("after row", TRUNK, 20),  # a row that no checkpoint knows
    ("validation", TRUNK, 23),
    ("checkpoint write", TRUNK, 24),
    ("checkpoint written", TRUNK, 26),  # before the older one is removed
    ("update", SHORT, 33),
    ("checkpoint write", SHORT, 33),
    ("after row", SHORT, 35),
    ("checkpoint written", SHORT, 36),
    ("validation", SHORT, 40),
    ("before record", SHORT, 40),
    ("row", TRUNK, 45),  # the trunk goes on
    ("update", TRUNK, 50),
    ("checkpoint write", LONG, 57),
    ("after row", LONG, 60),
    ("update", LONG, 62),
    ("validation", LONG, 64),
    ("validation", LONG, 70),
    ("nowhere", LONG, 70),  # to the end
]


@pytest.fixture(scope="module")
def killed(overrides, tmp_path_factory):
    """(plan, uninterrupted runs, runs with all the kills, what the driver printed)."""
    folder = tmp_path_factory.mktemp("killed")
    overrides = [*overrides, tiny.steps(*BUDGETS), "run.checkpoint_seconds=1.5"]
    overrides += [f"paths.runs={folder}/runs", f"paths.sweeps={folder}/sweeps"]
    plan, sweep = tiny.make_sweep(overrides)
    assert tiny.train(plan, folder / "uninterrupted") == 0
    moments = folder / "moments.json"
    moments.write_text(json.dumps(MOMENTS))
    said, _ = start(sweep.path, moments)
    return plan, folder / "uninterrupted", folder / "runs", said


def test_every_worker_died_where_it_was_to_die(killed):
    _, _, _, said = killed
    ended = [line for line in said if "ended" in line]
    assert [(line["where"], line["ended"]) for line in ended] == [
        *((where, -signal.SIGKILL) for where, _, _ in MOMENTS[:-1]),
        ("nowhere", 0),
    ]
    died = [line for line in said if "killed" in line]
    for line, (where, _, step) in zip(died, MOMENTS, strict=False):
        assert line["killed"] == where
        # Checkpoints come when the clock says so, the rest at its very step.
        assert 0 <= line["step"] - step <= (5 if where.startswith("checkpoint") else 2)


def test_they_went_on_from_checkpoints_and_not_from_the_start(killed):
    """Otherwise all of the above would be equal for nothing."""
    *_, said = killed
    died = [line for line in said if "killed" in line]
    assert [line["from"] for line in died[:2]] == [0, 0]
    assert all(0 <= line["step"] - line["from"] <= 13 for line in died)
    assert len({line["from"] for line in died}) >= 10


def test_the_result_equals_the_uninterrupted_one(killed):
    plan, uninterrupted, runs, _ = killed
    for trial in plan.trials:
        assert tiny.everything(runs, trial.trial_id) == tiny.everything(uninterrupted, trial.trial_id)
        assert (
            tiny.record(runs, trial.trial_id)["execution_classes"]
            == tiny.record(uninterrupted, trial.trial_id)["execution_classes"]
        )


def test_every_row_is_there_once_and_the_seconds_never_go_back(killed):
    plan, uninterrupted, runs, _ = killed
    trunk = RunDir.of_trunk(runs, plan.trials[0].family_id)
    for trial, folder in [(trial, RunDir.of_trial(runs, trial.trial_id)) for trial in plan.trials]:
        rows = tiny.lines(folder.metrics)
        steps = [row["step"] for row in rows]
        assert steps == sorted(set(steps))
        assert steps[-1] == trial.config.steps
        seconds = [row["seconds"] for row in rows]
        assert seconds == sorted(seconds)
    steps = [row["step"] for row in tiny.lines(trunk.metrics)]
    assert steps == [row["step"] for row in tiny.lines(RunDir.of_trunk(uninterrupted, trunk.path.name).metrics)]


def test_nothing_is_left_but_what_clean_finds(killed, capsys):
    """The half-written temporary files of killed writers."""
    plan, _, runs, _ = killed
    for trial in plan.trials:
        assert not RunDir.of_trial(runs, trial.trial_id).checkpoint.exists()
    left = sorted(runs.rglob(".*.tmp"))
    assert len(left) == sum(where == "checkpoint write" for where, _, _ in MOMENTS)
    assert main(["clean", "--runs", str(runs), "--yes"]) == 0
    assert not list(runs.rglob(".*.tmp"))
    assert str(left[0]) in capsys.readouterr().out


def test_each_attempt_is_told(killed):
    plan, _, runs, _ = killed
    attempts = tiny.lines(RunDir.of_trunk(runs, plan.trials[0].family_id).attempts)
    assert [row["event"] for row in attempts] == ["start"] * len(MOMENTS) + ["end"]
    assert [row["attempt"] for row in attempts] == [*range(1, len(MOMENTS) + 1), len(MOMENTS)]
    assert attempts[-1]["outcome"] == "done"
