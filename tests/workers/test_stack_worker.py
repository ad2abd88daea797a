"""A worker trains families of one shape in a stack: claims, attempts and failures are each family's own."""

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sweep.common.errors import UserError
from sweep.runs import claim
from sweep.runs.rundir import RunDir
from sweep.train import loop
from sweep.train.stack import Stack
from sweep.verbs.plan import plan_here
from sweep.workers import stack_worker
from sweep.workers.families import train_families
from sweep.workers.worker import Worker
from tests.helpers import tiny
from tests.helpers.killed import start


def with_options(plan, **options):
    return replace(plan, config=replace(plan.config, run=replace(plan.config.run, **options)))


@pytest.fixture(scope="module")
def plan(overrides):
    """Four families of two budgets, and one of another shape."""
    one = plan_here([*overrides, tiny.steps(20, 40), "seed=0,1,2,3", "run.stack=4"])
    other = plan_here([*overrides, tiny.steps(20), "model.width=24", "run.stack=4"])
    one.estimates.update(other.estimates)
    return replace(one, trials=[*one.trials, *other.trials])


@pytest.fixture(scope="module")
def uninterrupted(plan, tmp_path_factory):
    runs = tmp_path_factory.mktemp("whole") / "runs"
    assert tiny.train(plan, runs) == 0
    return runs


def assert_equal(plan, runs, uninterrupted):
    for trial in plan.trials:
        assert tiny.everything(runs, trial.trial_id) == tiny.everything(uninterrupted, trial.trial_id)


def stack_of(runs, trial) -> int | None:
    return json.loads(RunDir.of_trial(runs, trial.trial_id).env.read_text())["class"]["stack"]


def attempts_of(runs, trial) -> list[str]:
    rows = tiny.lines(RunDir.of_trunk(runs, trial.family_id).attempts)
    return [row.get("outcome") or row["event"] for row in rows]


def before_update(monkeypatch, number, action):
    """Do something once, before the stack's update of this number."""
    update, count = Stack.update, iter(range(1, 10**6))

    def acting(self):
        if next(count) == number:
            action()
        return update(self)

    monkeypatch.setattr(Stack, "update", acting)


def no_memory_for_two(monkeypatch):
    """A device that is too small for a step of more than one slot."""
    update = Stack.update

    def full(self):
        if self.slots > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return update(self)

    monkeypatch.setattr(Stack, "update", full)


def test_families_of_one_shape_share_a_stack_and_the_others_are_alone(plan, uninterrupted):
    *stacked, alone = plan.trials
    assert {stack_of(uninterrupted, trial) for trial in stacked} == {4}
    assert stack_of(uninterrupted, alone) is None
    for trial in plan.trials:
        assert attempts_of(uninterrupted, trial) == ["start", "done"]
        assert claim.held_by(RunDir.of_trunk(uninterrupted, trial.family_id).path) is None
    assert not list(uninterrupted.rglob("checkpoint.pt"))


def test_a_stack_trains_each_trunk_once(plan, uninterrupted):
    for trial in plan.trials:
        branch = trial.config.branch_step
        assert tiny.record(uninterrupted, trial.trial_id)["shared_steps"] == branch


def test_run_stack_off_trains_alone_up_to_rounding(plan, uninterrupted, tmp_path):
    assert tiny.train(with_options(plan, stack="off"), tmp_path) == 0
    for trial in plan.trials:
        assert stack_of(tmp_path, trial) is None
        mine, theirs = (tiny.record(runs, trial.trial_id)["loss_nats"] for runs in (tmp_path, uninterrupted))
        assert mine == pytest.approx(theirs, rel=1e-5)


def test_without_a_calibration_auto_is_alone(plan, tmp_path):
    few = replace(with_options(plan, stack="auto"), trials=plan.trials[:2])
    assert tiny.train(few, tmp_path) == 0
    assert {stack_of(tmp_path, trial) for trial in few.trials} == {None}


@pytest.mark.slow
@pytest.mark.parametrize("number", [8, 35])
def test_a_signal_saves_every_curve_and_asks_to_be_run_again(plan, uninterrupted, workspace, monkeypatch, number):
    with monkeypatch.context() as patched:
        before_update(patched, number, lambda: os.kill(os.getpid(), signal.SIGTERM))
        worker = Worker(plan.runs, Path(plan.config.paths.tokens), plan.config.run, "cpu")
        worker.stop.listen()
        assert train_families(worker, plan.families()) == 75
    saved = [trial for trial in plan.trials if attempts_of_if_any(plan.runs, trial) == ["start", "stopped"]]
    assert len({trial.family_id for trial in saved}) == 4
    assert tiny.train(plan) == 0
    assert_equal(plan, plan.runs, uninterrupted)


def attempts_of_if_any(runs, trial):
    return attempts_of(runs, trial) if RunDir.of_trunk(runs, trial.family_id).attempts.exists() else []


@pytest.mark.slow
def test_killed_processes_leave_what_others_go_on_with(overrides, uninterrupted, workspace):
    """By SIGKILL, twice, with a checkpoint of every curve now and then; a third worker finishes."""
    killed, sweep = tiny.make_sweep(
        [*overrides, tiny.steps(20, 40), "seed=0,1,2,3", "run.stack=4", "run.workers=1", "run.checkpoint_seconds=3"]
    )
    moments = workspace / "moments.json"
    moments.write_text(json.dumps([["stack", None, 14], ["stack", None, 25], ["none", None, 0]]))
    said, err = start(sweep.path, moments)
    assert [line["ended"] for line in said if "ended" in line] == [-9, -9, 0], err
    assert_equal(killed, killed.runs, uninterrupted)
    for trial in killed.trials:
        assert attempts_of(killed.runs, trial)[-1] == "done"
        assert stack_of(killed.runs, trial) == 4


def test_a_family_that_another_worker_holds_is_left_to_it(plan, workspace):
    first = plan.families()[0]
    held = claim.acquire(RunDir.of_trunk(plan.runs, first[0].family_id).path)
    assert tiny.train(plan) == 0
    assert plan.done() == {t.trial_id for t in plan.trials} - {t.trial_id for t in first}
    held.release()


def test_no_more_families_are_held_than_a_workers_share(plan, workspace, monkeypatch):
    held = []
    update = Stack.update

    def counting(self):
        folders = {RunDir.of_trunk(plan.runs, trial.family_id).path for trial in plan.trials}
        held.append(sum(folder.exists() and claim.held_by(folder) is not None for folder in folders))
        return update(self)

    monkeypatch.setattr(Stack, "update", counting)
    assert tiny.train(plan, peers=2) == 0
    assert max(held) == 2
    assert plan.done() == {t.trial_id for t in plan.trials}


def test_a_lost_claim_saves_nothing_more_and_the_others_go_on(plan, uninterrupted, workspace, monkeypatch):
    monkeypatch.setattr(claim, "HEARTBEAT_SECONDS", 0.01)
    victim = plan.families()[0]
    trunk = RunDir.of_trunk(plan.runs, victim[0].family_id)

    def lose():
        claim.force_release(trunk.path)
        time.sleep(0.2)

    before_update(monkeypatch, 10, lose)
    assert tiny.train(plan) == 0
    assert trunk.stable_steps() == []
    assert attempts_of(plan.runs, victim[0]) == ["start", "lost"]
    rest = replace(plan, trials=[t for t in plan.trials if t.family_id != victim[0].family_id])
    assert_equal(rest, plan.runs, uninterrupted)


def test_a_trial_that_fails_fails_alone(plan, uninterrupted, workspace):
    victim, other = plan.trials[:2]
    run = RunDir.of_trial(plan.runs, victim.trial_id)
    other.keep(run.trial)
    said = []
    assert tiny.train(plan, log=said.append) == 1
    assert said == [
        f"failed: {victim.trial_id}: {run.trial}: holds another trial than its folder's name says; restore or remove it"
    ]
    assert attempts_of(plan.runs, victim) == ["start", "failed"]
    rest = replace(plan, trials=[t for t in plan.trials if t is not victim])
    assert_equal(rest, plan.runs, uninterrupted)
    run.trial.unlink()
    assert tiny.train(plan) == 0
    assert not run.error.exists()
    assert_equal(plan, plan.runs, uninterrupted)


@pytest.mark.slow
def test_a_device_too_small_for_the_stack_gets_half_of_it(plan, workspace, monkeypatch):
    """Down to trials alone; what was saved before is kept."""
    no_memory_for_two(monkeypatch)
    said = []
    assert tiny.train(plan, log=said.append) == 0
    assert said == [
        "out of device memory with a stack of 4; going on with 2 at a time",
        "out of device memory with a stack of 2; going on with 1 at a time",
    ]
    assert plan.done() == {t.trial_id for t in plan.trials}
    assert {stack_of(plan.runs, trial) for trial in plan.trials[:-1]} == {1}
    assert attempts_of(plan.runs, plan.trials[0]) == ["start", "let go", "start", "let go", "start", "done"]


@pytest.mark.slow
def test_a_stack_that_cannot_even_be_made_is_halved_too(plan, workspace, monkeypatch):
    make = Stack.__init__

    def full(self, setup, slots, graph=False):
        if slots > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        make(self, setup, slots, graph)

    monkeypatch.setattr(Stack, "__init__", full)
    said = []
    assert tiny.train(plan, log=said.append) == 0
    assert said == ["out of device memory with a stack of 4; going on with 2 at a time"]
    assert {stack_of(plan.runs, trial) for trial in plan.trials[:-1]} == {2}


@pytest.mark.slow
def test_a_validation_that_does_not_fit_takes_a_smaller_micro_batch_as_it_does_alone(overrides, tmp_path, monkeypatch):
    plan = plan_here([*overrides, tiny.steps(20), "seed=0,1", "run.stack=2"])
    evaluate = loop.evaluate

    def full(setup, windows):
        if setup.micro_batch > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return evaluate(setup, windows)

    monkeypatch.setattr(loop, "evaluate", full)
    assert tiny.train(plan, tmp_path) == 0
    assert all(stack_of(tmp_path, trial) is None for trial in plan.trials)


@pytest.mark.slow
def test_a_step_of_all_that_breaks_off_leaves_each_family_to_itself(plan, workspace, monkeypatch):
    def break_off():
        raise RuntimeError

    before_update(monkeypatch, 12, break_off)
    said = []
    assert tiny.train(plan, log=said.append) == 0
    assert "a stack of 4 broke off, each trial alone: RuntimeError: " in said
    for trial in plan.trials[:-1]:
        assert attempts_of(plan.runs, trial) == ["start", "let go", "start", "done"]


@pytest.mark.slow
def test_a_job_whose_stack_is_halved_again_and_again_gives_no_family_up(overrides, tmp_path, monkeypatch):
    plan = plan_here([*overrides, tiny.steps(20), "seed=range(8)", "run.stack=8"])
    no_memory_for_two(monkeypatch)
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    assert tiny.train(plan, tmp_path, max_attempts=2) == 0
    assert plan_here([*overrides, tiny.steps(20), "seed=range(8)", f"paths.runs={tmp_path}"]).left() == []


def test_missing_tokens_are_told_of_each_family(plan, workspace):
    said = []
    worker = Worker(plan.runs, workspace / "tokens", plan.config.run, "cpu", log=said.append)
    assert train_families(worker, plan.families()) == 1
    failed = [line for line in said if line.startswith("failed: ")]
    assert len(failed) == len(plan.families())
    assert all("no prepared tokens here; run: python -m sweep prepare" in line for line in failed)


def test_the_heartbeat_tells_of_one_trial_at_a_time(plan, workspace):
    *stacked, _ = plan.trials
    seen = []
    assert tiny.train(replace(plan, trials=stacked), hear=seen.append) == 0
    assert {progress.trial_id for progress in seen} == {t.trial_id for t in stacked}
    length = {t.trial_id: t.config.steps for t in stacked}
    assert all(progress.steps == length[progress.trial_id] >= progress.step for progress in seen)


def test_where_no_stack_can_be_had_at_all_each_family_is_an_attempt_that_failed(plan, tmp_path):
    done, *others = plan.families()
    assert tiny.train(replace(plan, trials=done), tmp_path) == 0
    worker = Worker(tmp_path, Path(plan.config.paths.tokens), plan.config.run, "cpu", log=(said := []).append)
    outcomes = stack_worker._fail(worker, [done, *others], UserError("run.graph=true: the step cannot be captured"))
    assert outcomes == {done[0].family_id: "done", **{family[0].family_id: "failed" for family in others}}
    assert len(said) == len(others)
    for family in others:
        start, end = tiny.lines(RunDir.of_trunk(tmp_path, family[0].family_id).attempts)
        assert (start["event"], end["outcome"]) == ("start", "failed")
        assert end["error"] == "run.graph=true: the step cannot be captured"
