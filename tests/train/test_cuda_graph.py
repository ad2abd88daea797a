"""What a captured step is made of, run without CUDA: tokens by index, one step that asks the host nothing."""

import itertools

import numpy as np
import pytest
import torch

from sweep.data.tokens import windows
from sweep.train import loop
from sweep.train.cuda_graph import gather, resident
from sweep.train.curve import Curve, State
from sweep.train.stack import Stack
from sweep.verbs.plan import plan_here
from tests.helpers import stacking, tiny


@pytest.mark.parametrize(("dtype", "largest"), [(np.uint16, 65_535), (np.uint32, 200_000)])
def test_windows_by_index_are_the_windows(dtype, largest):
    """Also token ids past the half of 16 bits, which the device holds as negative numbers."""
    tokens = np.random.default_rng(0).integers(0, largest + 1, 1000).astype(dtype)
    tokens[:3] = largest, 0, largest // 2 + 1
    numbers_KB = torch.tensor([[0, 5, 0], [61, 2, 1]])
    found_KBT = gather(resident(tokens, "cpu"), numbers_KB, seq_len=16)
    assert found_KBT.dtype == torch.int64
    assert np.array_equal(found_KBT.numpy(), windows(tokens, 16)[numbers_KB.numpy()].astype(np.int64))


def test_on_the_cpu_the_mapped_file_itself_is_read(tmp_path):
    path = tmp_path / "train.bin"
    np.arange(100, dtype=np.uint16).tofile(path)
    mapped = np.memmap(path, dtype=np.uint16, mode="r")
    assert resident(mapped, "cpu").data_ptr() == mapped.ctypes.data


@pytest.fixture(scope="module")
def plan(overrides):
    return plan_here([*overrides, tiny.steps(40), "seed=0,1,2"])


def stack_of(plan):
    stack = Stack(stacking.setup_of(plan, plan.trials[0]), len(plan.trials))
    for trial in plan.trials:
        setup = stacking.setup_of(plan, trial, model=stack.scratch_model)
        stack.seat(Curve(setup, State.fresh(setup)))
    return stack


class Reads(torch.utils._python_dispatch.TorchDispatchMode):
    """Notes every operation that would make the host wait for a device."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero", "is_nonzero", "item", "equal"):
            self.found.append(str(operation))
        return operation(*args, **(kwargs or {}))


def test_a_step_reads_nothing_back(plan):
    stack = stack_of(plan)
    with Reads() as reads:
        for _ in range(3):
            stack.update()
    assert reads.found == []
    with Reads() as reads:
        stack.loss_sum_K.sum().item()
    assert reads.found


def test_replaying_the_step_alone_goes_on_from_what_lies_in_its_tensors(plan):
    """As a captured graph does: the same call, with other factors and windows written before it, is the next step."""
    one, other = stack_of(plan), stack_of(plan)
    addresses = [t.data_ptr() for t in (other.factors_FK, other.windows_KB, other.weights_KP, *other.parameters)]
    for _ in range(5):
        one.update()
    replay = other.step
    for _ in range(5):
        other.step = lambda: None  # the host's part alone: writes the tensors
        other.update()
        replay()
    assert torch.equal(one.weights_KP, other.weights_KP)
    assert torch.equal(one.loss_sum_K, other.loss_sum_K)
    assert addresses == [
        t.data_ptr() for t in (other.factors_FK, other.windows_KB, other.weights_KP, *other.parameters)
    ]


def test_warming_up_leaves_idle_weights_as_they_are(plan):
    """A capture runs the step before anybody is seated."""
    stack = Stack(stacking.setup_of(plan, plan.trials[0]), 2)
    before = stack.weights_KP.clone()
    stack.step()
    assert torch.equal(stack.weights_KP, before)
    assert torch.isfinite(stack.weights_KP).all()


@pytest.mark.slow
def test_torch_compile_sees_the_whole_step(plan):
    """Without a break in its graph, forward, backward and update; and it computes the same."""
    plain, compiled = stack_of(plan), stack_of(plan)
    compiled.losses = torch.compile(compiled.model.losses, backend="aot_eager", fullgraph=True)
    compiled.apply = torch.compile(compiled._apply, backend="aot_eager", fullgraph=True)
    for _ in range(3):
        plain.update()
        compiled.update()
    torch.testing.assert_close(compiled.weights_KP, plain.weights_KP, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(compiled.loss_sum_K, plain.loss_sum_K)


# ---- rows that are read a step late, as on a device that works on meanwhile ----


@pytest.fixture(scope="module")
def families(overrides):
    return plan_here([*overrides, tiny.steps(20, 40), "seed=0,1"])


@pytest.fixture(scope="module")
def at_once(families, tmp_path_factory):
    runs = tmp_path_factory.mktemp("at_once")
    assert tiny.train(families, runs) == 0
    stacking.train(families, runs / "stack", slots=3)
    return runs


def test_rows_that_are_read_late_are_the_same_rows(families, at_once, tmp_path, monkeypatch):
    began = []
    take_row = loop.take_row
    monkeypatch.setattr(loop, "take_row", lambda *args: began.append(args) or take_row(*args))
    monkeypatch.setattr(loop, "READ_LATE", ("cpu",))
    assert tiny.train(families, tmp_path) == 0
    stacking.train(families, tmp_path / "stack", slots=3)
    for trial in families.trials:
        assert tiny.everything(tmp_path, trial.trial_id) == tiny.everything(at_once, trial.trial_id)
        assert tiny.everything(tmp_path / "stack", trial.trial_id) == tiny.everything(at_once / "stack", trial.trial_id)
    assert len(began) > 20


def test_a_row_is_written_before_a_curve_is_left(families, at_once, tmp_path, monkeypatch):
    """However early it is told to stop; what is gone on with has every row, once."""
    monkeypatch.setattr(loop, "READ_LATE", ("cpu",))
    for calls in (11, 12, 30, 31):
        runs, asked = tmp_path / str(calls), itertools.count(1)
        stacking.train(families, runs, slots=3, should_stop=lambda asked=asked, calls=calls: next(asked) > calls)
        stacking.train(families, runs, slots=3)
        for trial in families.trials:
            assert tiny.curve(runs, trial.trial_id) == tiny.curve(at_once / "stack", trial.trial_id), calls


@pytest.mark.parametrize("checkpoint_seconds", [0, 1000])
def test_divergence_ends_a_trial_at_the_step_that_diverged(overrides, tmp_path, monkeypatch, checkpoint_seconds):
    """Whenever it is noticed."""
    plan = plan_here(
        [*overrides, tiny.steps(40), "optim.lr_multiplier=1e30", f"run.checkpoint_seconds={checkpoint_seconds}"]
    )
    assert tiny.train(plan, tmp_path / "at_once") == 0
    monkeypatch.setattr(loop, "READ_LATE", ("cpu",))
    assert tiny.train(plan, tmp_path / "late") == 0
    (trial,) = plan.trials
    assert tiny.everything(tmp_path / "late", trial.trial_id) == tiny.everything(tmp_path / "at_once", trial.trial_id)
    assert tiny.record(tmp_path / "late", trial.trial_id)["status"] == "diverged"
