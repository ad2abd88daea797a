"""A trial trained in a stack is the trial trained alone, up to rounding; and bit-equal to itself in any stack.

The trials differ in learning rate, weight decay, seed, data subset and budget.
"""

import itertools
import json
import math
import shutil
import types
from dataclasses import replace

import numpy as np
import pytest
import torch

from sweep.runs.rundir import RunDir
from sweep.train import checkpoint, family, loop
from sweep.train.cuda_graph import gather
from sweep.train.curve import Curve, State
from sweep.train.stack import Stack
from sweep.verbs.plan import plan_here
from tests.helpers import stacking, tiny

BUDGETS = (20, 40, 60)  # steps; they branch at 16, 32 and 48
AXES = [tiny.steps(*BUDGETS), "seed=0,1", "optim.lr_multiplier=1,3"]


@pytest.fixture(scope="module")
def plan(overrides):
    return plan_here([*overrides, *AXES])


@pytest.fixture(scope="module")
def alone(plan, tmp_path_factory):
    runs = tmp_path_factory.mktemp("alone") / "runs"
    assert tiny.train(plan, runs) == 0
    return runs


@pytest.fixture(scope="module")
def stacked(plan, tmp_path_factory):
    """Three slots for four families."""
    runs = tmp_path_factory.mktemp("stacked") / "runs"
    ended = stacking.train(plan, runs, slots=3)
    assert ended == {trials[0].family_id: (False, []) for trials in plan.families()}
    return runs


def assert_bit_equal(plan, runs, others):
    for trial in plan.trials:
        assert tiny.everything(runs, trial.trial_id) == tiny.everything(others, trial.trial_id)


def losses(runs, trial) -> np.ndarray:
    rows = tiny.curve(runs, trial.trial_id)
    return np.array([[row[key] for key in ("train_loss_nats", "val_loss_nats")] for row in rows], float)


# ---- one step ----


def plain_step(plan, trial, start, dtype):
    """Weights after one more step of a curve from `start`, and what its gradient norm was."""
    setup = stacking.setup_of(plan, trial)
    state, _ = checkpoint.load(start, trial.family_id, setup)
    setup.model.to(dtype)
    for moments in state.optimizer.state.values():
        moments |= {key: moments[key].to(dtype) for key in ("exp_avg", "exp_avg_sq")}
    curve = Curve(setup, state)
    norm = loop.update(setup, state, curve.lr(state.step))
    return {name: p.detach().double() for name, p in setup.model.named_parameters()}, norm.double()


@pytest.mark.slow
@pytest.mark.parametrize("micro_batch", [None, 2])
def test_one_step_from_the_same_state_is_the_same_step(plan, alone, micro_batch):
    """Every trunk's last state, in one stack: updates err no more than twice what a plain step errs by."""
    trials = [family[0] for family in plan.families()]
    starts = [RunDir.of_trunk(alone, trial.family_id).stable(48) for trial in trials]
    stack = Stack(stacking.setup_of(plan, trials[0], micro_batch_sequences=micro_batch), len(trials))
    curves = []
    for trial, start in zip(trials, starts, strict=True):
        setup = stacking.setup_of(plan, trial, model=stack.scratch_model, micro_batch_sequences=micro_batch)
        curves.append(Curve(setup, checkpoint.load(start, trial.family_id, setup)[0]))
        stack.seat(curves[-1])
    rates = stack.update()
    for trial, start, curve in zip(trials, starts, curves, strict=True):
        assert curve.state.step == 49
        lr, norm = rates[stack.slot(curve)]
        assert lr == trial.config.optim.lr
        stack.read(curve)
        before = checkpoint.read(start)["model"]
        plain, plain_norm = plain_step(plan, trial, start, torch.float32)
        truth, true_norm = plain_step(plan, trial, start, torch.float64)
        ulp = torch.finfo(torch.float32).eps
        assert (norm - true_norm).abs() <= 2 * (plain_norm - true_norm).abs() + 8 * ulp * true_norm
        for name, true in truth.items():
            here = stack.scratch_model.get_parameter(name).detach().double()
            step = (true - before[name]).norm()
            assert (here - true).norm() <= 2 * (plain[name] - true).norm() + 4 * ulp * true.norm()
            assert (here - true).norm() < 1e-3 * step  # and it is the step, not the start
        assert not torch.equal(here.float(), before[name])


# ---- whole curves ----


@pytest.mark.slow
def test_two_hundred_steps_are_as_near_as_another_micro_batch(overrides, tmp_path):
    """Rounding that training amplifies: measured here, trial by trial."""
    plan = plan_here([*overrides, tiny.steps(220), "seed=0,1", "optim.lr_multiplier=1,2"])
    assert tiny.train(plan, tmp_path / "alone") == 0
    stacking.train(plan, tmp_path / "stacked", slots=4)
    for micro_batch in (1, 2):
        config = replace(plan.config, run=replace(plan.config.run, micro_batch_sequences=micro_batch))
        assert tiny.train(replace(plan, config=config), tmp_path / f"micro-{micro_batch}") == 0

    def distance(name: str, trial) -> float:
        differences = losses(tmp_path / name, trial) - losses(tmp_path / "alone", trial)
        return float(np.sqrt(np.nanmean(np.square(differences))))

    for trial in plan.trials:
        noise = max(distance("micro-1", trial), distance("micro-2", trial))
        rounding = np.finfo(np.float32).eps * np.nanmean(losses(tmp_path / "alone", trial))  # of one loss as it is
        assert 0 < distance("stacked", trial) <= 2 * noise + rounding < 0.01


def test_every_trial_leaves_what_it_would_leave_alone(plan, alone, stacked):
    for trial in plan.trials:
        mine, theirs = tiny.record(stacked, trial.trial_id), tiny.record(alone, trial.trial_id)
        assert mine.keys() == theirs.keys()
        for key, value in theirs.items():
            if key in ("execution_class", "execution_classes"):
                assert mine[key] != value
            elif key not in tiny.CLOCK:
                assert mine[key] == (pytest.approx(value, rel=1e-3) if isinstance(value, float) else value), key
        assert np.allclose(losses(stacked, trial), losses(alone, trial), rtol=1e-5, equal_nan=True)
        rows, others = tiny.curve(stacked, trial.trial_id), tiny.curve(alone, trial.trial_id)
        rounded = ("train_loss_nats", "val_loss_nats", "grad_norm")
        for row, other in zip(rows, others, strict=True):
            assert {k: v for k, v in row.items() if k not in rounded} == {
                k: v for k, v in other.items() if k not in rounded
            }
        assert tiny.samples(stacked, trial.trial_id) == tiny.samples(alone, trial.trial_id)
        here = {path.name for path in RunDir.of_trial(stacked, trial.trial_id).path.iterdir()}
        assert here == {path.name for path in RunDir.of_trial(alone, trial.trial_id).path.iterdir()}
        assert json.loads(RunDir.of_trial(stacked, trial.trial_id).env.read_text())["class"]["stack"] == 3


def test_its_weights_are_those_of_one_model_alone(plan, alone, stacked):
    for trial in plan.trials:
        mine, theirs = (torch.load(RunDir.of_trial(runs, trial.trial_id).weights) for runs in (stacked, alone))
        assert mine.keys() == theirs.keys()
        for name, weight in mine.items():
            torch.testing.assert_close(weight, theirs[name], rtol=1e-3, atol=1e-4)
            assert weight.untyped_storage().nbytes() == weight.nbytes


@pytest.mark.parametrize("slots", [1, 2, 12])
def test_bits_depend_neither_on_the_slot_nor_on_the_neighbours(plan, stacked, tmp_path, slots):
    """On the CPU: other slots, other neighbours, other moments to move up."""
    stacking.train(plan, tmp_path, slots)
    assert_bit_equal(plan, tmp_path, stacked)


def test_bits_of_a_stack_whose_slots_are_all_computed(plan, stacked, tmp_path, monkeypatch):
    """As on CUDA: idle slots take part in every step, and nobody moves."""
    monkeypatch.setattr(Stack, "fixed", property(lambda self: True, lambda self, value: None), raising=False)
    stacking.train(plan, tmp_path, slots=5)
    assert_bit_equal(plan, tmp_path, stacked)


def test_data_subsets_and_weight_decay_are_each_trials_own(overrides, tmp_path):
    axes = [tiny.steps(40), "data.unique_tokens=320,1280", "optim.weight_decay=0.0,0.5"]
    plan = plan_here([*overrides, *axes])
    assert tiny.train(plan, tmp_path / "alone") == 0
    stacking.train(plan, tmp_path / "stacked", slots=4)
    for trial in plan.trials:
        assert np.allclose(
            losses(tmp_path / "stacked", trial), losses(tmp_path / "alone", trial), rtol=1e-5, equal_nan=True
        )
    finals = {tiny.record(tmp_path / "stacked", trial.trial_id)["loss_nats"] for trial in plan.trials}
    assert len(finals) == len(plan.trials)


def test_cosine_and_wsd_and_another_evaluation_share_a_stack(overrides, tmp_path):
    both = [
        plan_here([*overrides, tiny.steps(20, 40), *other])
        for other in (["schedule=wsd"], ["schedule=cosine", "eval.log_every_steps=7"])
    ]
    plan = replace(both[0], trials=[t for one in both for t in one.trials])
    plan.estimates.update(both[1].estimates)
    assert tiny.train(plan, tmp_path / "alone") == 0
    stacking.train(plan, tmp_path / "stacked", slots=3)
    for trial in plan.trials:
        assert np.allclose(
            losses(tmp_path / "stacked", trial), losses(tmp_path / "alone", trial), rtol=1e-5, equal_nan=True
        )


# ---- divergence and errors ----


def test_a_diverging_trial_freezes_and_the_others_go_on(overrides, plan, alone, stacked, tmp_path):
    """A learning rate that overflows: its trunk diverges with all budgets, as alone."""
    wild = plan_here([*overrides, tiny.steps(*BUDGETS), "optim.lr=1e36"])
    mixed = replace(plan, trials=[*plan.trials[:3], *wild.trials, *plan.trials[3:]])
    mixed.estimates.update(wild.estimates)
    assert tiny.train(wild, tmp_path / "alone") == 0
    stacking.train(mixed, tmp_path / "stacked", slots=2)
    assert_bit_equal(plan, tmp_path / "stacked", stacked)
    for trial in wild.trials:
        mine, theirs = (tiny.record(tmp_path / name, trial.trial_id) for name in ("stacked", "alone"))
        assert mine["status"] == theirs["status"] == "diverged"
        assert mine["steps_done"] == theirs["steps_done"]
        assert mine["shared_steps"] == theirs["shared_steps"]
        rows = [tiny.curve(tmp_path / name, trial.trial_id) for name in ("stacked", "alone")]
        assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]]


def break_from(monkeypatch, seed, step):
    """Weights of one seed that are not finite from this step on, in a stack and alone."""
    update, plain = Stack.update, loop.update

    def breaking(self):
        rates = update(self)
        for slot, curve in enumerate(self.seated):
            if curve is not None and curve.setup.config.seed == seed and curve.state.step >= step:
                self.weights_KP[slot] = math.nan
        return rates

    def breaking_alone(setup, state, lr):
        grad_norm = plain(setup, state, lr)
        if setup.config.seed == seed and state.step + 1 >= step:
            with torch.no_grad():
                next(setup.model.parameters()).fill_(math.nan)
        return grad_norm

    monkeypatch.setattr(Stack, "update", breaking)
    monkeypatch.setattr(loop, "update", breaking_alone)


@pytest.mark.slow
def test_divergence_in_a_cooldown_and_in_a_trunk(plan, stacked, tmp_path, monkeypatch):
    """Step 37: after the first budget's end, in the second one's decay (32 to 40) and in the third one's trunk."""
    with monkeypatch.context() as patched:
        break_from(patched, seed=1, step=37)
        stacking.train(plan, tmp_path / "stacked", slots=4)
        assert tiny.train(plan, tmp_path / "alone") == 0
    for trial in plan.trials:
        mine, theirs = (tiny.record(tmp_path / name, trial.trial_id) for name in ("stacked", "alone"))
        for key in ("status", "steps_done", "shared_steps"):
            assert mine[key] == theirs[key]
        if mine["status"] == "finished":
            assert tiny.everything(tmp_path / "stacked", trial.trial_id) == tiny.everything(stacked, trial.trial_id)
    broken = [t for t in plan.trials if tiny.record(tmp_path / "stacked", t.trial_id)["status"] == "diverged"]
    assert [(t.config.seed, t.config.steps) for t in broken] == [(1, 40), (1, 40), (1, 60), (1, 60)]


def test_an_error_of_one_trial_leaves_the_others_alone(plan, stacked, tmp_path):
    victim = next(t for t in plan.trials if t.config.steps == 40)
    other = next(t for t in plan.trials if t is not victim)
    run = RunDir.of_trial(tmp_path, victim.trial_id)
    run.path.mkdir(parents=True)
    shutil.copy(RunDir.of_trial(stacked, other.trial_id).trial, run.trial)
    ended = stacking.train(plan, tmp_path, slots=4)
    assert [failures for _, failures in ended.values() if failures] == [
        [f"{victim.trial_id}: {run.trial}: holds another trial than its folder's name says; restore or remove it"]
    ]
    rest = replace(plan, trials=[t for t in plan.trials if t is not victim])
    assert_bit_equal(rest, tmp_path, stacked)
    run.trial.unlink()
    stacking.train(plan, tmp_path, slots=4)
    assert_bit_equal(plan, tmp_path, stacked)


# ---- stopped, killed, gone on with ----


class Killed(BaseException):
    """As if the process ended here: nothing catches it."""


@pytest.fixture
def checkpoints_every_few_steps(monkeypatch):
    calls = itertools.count()
    monkeypatch.setattr(loop, "time", types.SimpleNamespace(monotonic=lambda: next(calls) / 100))


@pytest.mark.parametrize("moments", [[5, 12, 60], [30, 33, 34]])
def test_killed_in_the_middle_each_curve_goes_on_from_its_own_checkpoint(
    plan, stacked, tmp_path, monkeypatch, checkpoints_every_few_steps, moments
):
    update = Stack.update
    for moment in moments:
        with monkeypatch.context() as patched:
            count = itertools.count(1)

            def dying(self, count=count, moment=moment):
                if next(count) == moment:
                    raise Killed
                return update(self)

            patched.setattr(Stack, "update", dying)
            with pytest.raises(Killed):
                stacking.train(plan, tmp_path, slots=3, checkpoint_seconds=0.3)
    saved = list(tmp_path.rglob("*.pt"))
    assert saved
    stacking.train(plan, tmp_path, slots=3, checkpoint_seconds=0.3)
    assert_bit_equal(plan, tmp_path, stacked)


def test_budgets_that_branch_at_one_step_are_trained_to_their_ends(overrides, tmp_path):
    """The trunk has come to both branches at once."""
    plan = plan_here([*overrides, tiny.steps(12, 13)])
    assert {trial.config.branch_step for trial in plan.trials} == {10}
    stacking.train(plan, tmp_path / "both", slots=2)
    for trial in plan.trials:
        stacking.train(replace(plan, trials=[trial]), tmp_path / "each", slots=2)
        mine, its = (tiny.everything(tmp_path / runs, trial.trial_id) for runs in ("both", "each"))
        assert mine == its


def test_killed_between_the_last_checkpoint_and_the_record_it_is_only_recorded(plan, stacked, tmp_path, monkeypatch):
    def dying(*_):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(family, "_publish", dying)
        with pytest.raises(Killed):
            stacking.train(plan, tmp_path, slots=3, checkpoint_seconds=0)
    stacking.train(plan, tmp_path, slots=3)
    assert_bit_equal(plan, tmp_path, stacked)


def test_told_to_stop_it_saves_every_curve_and_either_way_goes_on_from_there(plan, alone, stacked, tmp_path):
    asked = itertools.count()
    ended = stacking.train(plan, tmp_path / "one", slots=3, should_stop=lambda: next(asked) > 170)
    assert {stopped for stopped, _ in ended.values()} == {True}
    assert list((tmp_path / "one").rglob("checkpoint.pt"))
    assert list((tmp_path / "one").rglob("stable-*.pt"))
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    stacking.train(plan, tmp_path / "one", slots=3)
    assert_bit_equal(plan, tmp_path / "one", stacked)
    assert tiny.train(plan, tmp_path / "two") == 0  # by the plain path
    classes = set()
    for trial in plan.trials:
        record = tiny.record(tmp_path / "two", trial.trial_id)
        classes.add(len(record["execution_classes"]))
        assert np.allclose(losses(tmp_path / "two", trial), losses(alone, trial), rtol=1e-5, equal_nan=True)
    assert classes == {1, 2}


def test_a_stack_goes_on_with_what_was_begun_alone(plan, alone, tmp_path):
    short = replace(plan, trials=[t for t in plan.trials if t.config.steps == 20])
    assert tiny.train(short, tmp_path) == 0  # leaves the trunks at step 16
    stacking.train(plan, tmp_path, slots=3)
    for trial in plan.trials:
        assert np.allclose(losses(tmp_path, trial), losses(alone, trial), rtol=1e-5, equal_nan=True)
        expected = 1 if trial.config.steps == 20 else 2
        assert len(tiny.record(tmp_path, trial.trial_id)["execution_classes"]) == expected


def test_a_checkpoint_of_a_stack_is_as_large_as_one_of_a_trial_alone(plan, alone, stacked):
    for trial in plan.trials:
        mine, theirs = (RunDir.of_trunk(runs, trial.family_id).stable(48).stat().st_size for runs in (stacked, alone))
        assert mine == pytest.approx(theirs, rel=0.02)


# ---- what goes in ----


def test_the_stack_reads_the_batches_of_each_curve(plan):
    trials = [family[0] for family in plan.families()]
    stack = Stack(stacking.setup_of(plan, trials[0]), len(trials))
    curves = []
    for trial in trials:
        setup = stacking.setup_of(plan, trial, model=stack.scratch_model)
        state = State.fresh(setup)
        curves.append(Curve(setup, state))
        stack.seat(curves[-1])
    seen = []
    stack.step = lambda: seen.append(stack.windows_KB.clone())
    for _ in range(3):
        stack.update()
    for step, windows_KB in enumerate(seen):
        tokens_KBT = gather(stack.train_tokens, windows_KB, 32)
        for curve, tokens_BT in zip(curves, tokens_KBT.numpy(), strict=True):
            inputs_BT, targets_BT = curve.setup.batches.batch(step)
            assert np.array_equal(tokens_BT[:, :-1], inputs_BT)
            assert np.array_equal(tokens_BT[:, 1:], targets_BT)
