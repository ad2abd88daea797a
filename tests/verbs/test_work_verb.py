"""What an element of a Slurm array does about families that somebody else is training."""

import pytest

from sweep.common.exits import EXIT_AGAIN
from sweep.runs import claim
from sweep.runs.rundir import RunDir
from sweep.verbs.work import _leave_to_others
from tests.helpers import tiny


@pytest.fixture
def sweep(overrides):
    plan, sweep = tiny.make_sweep([*overrides, tiny.steps(20, 40)])
    return plan, sweep


def held_for(plan, trials):
    """Somebody's claim on the family, for these trials of it."""
    trunk = RunDir.of_trunk(plan.runs, plan.trials[0].family_id)
    held = claim.acquire(trunk.path)
    tiny.attempt(trunk, "start", attempt=1, time=0.0, trials=[trial.trial_id for trial in trials])
    return held


@pytest.mark.parametrize(("others_train", "status"), [(2, 0), (1, EXIT_AGAIN)])
def test_budgets_that_nobody_else_trains_are_waited_for(sweep, capsys, others_train, status):
    plan, folder = sweep
    family = plan.trials[0].family_id
    held = held_for(plan, plan.trials[:others_train])
    try:
        assert _leave_to_others(folder, [family], 0) == status
    finally:
        held.release()
    said = capsys.readouterr().err
    assert family in said
    assert ("left to who is training it" in said) == (status == 0)


def test_what_nobody_holds_any_more_changes_nothing(sweep):
    plan, folder = sweep
    held_for(plan, plan.trials).release()
    assert _leave_to_others(folder, [plan.trials[0].family_id], 1) == 1
