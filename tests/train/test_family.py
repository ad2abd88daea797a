"""What a trial gives does not depend on how it was come by: alone, out of its family, extended, or past its trunk."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sweep.common.errors import UserError
from sweep.config.schema import RunOptions
from sweep.data.tokens import Tokens
from sweep.runs.environment import describe
from sweep.runs.rundir import RunDir
from sweep.train import checkpoint, loop
from sweep.train.curve import Curve, State
from sweep.train.setup import Setup
from sweep.verbs.plan import plan_here
from tests.helpers import tiny

BUDGETS = (20, 40, 60)  # steps; they branch at 16, 32 and 48


@pytest.fixture
def steps_trained(monkeypatch):
    """The number of every step that is trained."""
    steps = []
    update = loop.update

    def counted(setup, state, lr):
        steps.append(state.step)
        return update(setup, state, lr)

    monkeypatch.setattr(loop, "update", counted)
    return steps


@pytest.fixture(scope="module")
def plan(overrides):
    return plan_here([*overrides, tiny.steps(*BUDGETS)])


@pytest.fixture(scope="module")
def together(plan, tmp_path_factory):
    """A runs folder in which the family's three budgets were trained at once."""
    runs = tmp_path_factory.mktemp("together") / "runs"
    assert tiny.train(plan, runs) == 0
    return runs


@pytest.fixture(scope="module")
def alone(plan, tmp_path_factory):
    """A runs folder for each budget, which had nothing else in it."""
    folder = tmp_path_factory.mktemp("alone")
    for trial in plan.trials:
        assert tiny.train(replace(plan, trials=[trial]), folder / trial.trial_id) == 0
    return {trial.trial_id: folder / trial.trial_id for trial in plan.trials}


def test_a_lone_trial_equals_the_same_trial_out_of_its_family(plan, together, alone):
    for trial in plan.trials:
        assert tiny.everything(together, trial.trial_id) == tiny.everything(alone[trial.trial_id], trial.trial_id)


def test_a_trial_has_all_its_points_in_order(plan, together):
    (first, _, last) = plan.trials
    rows = tiny.curve(together, last.trial_id)
    logged = [*range(5, 61, 5)]
    validated = [8, 11, 16, 23, 32, 45, 60]
    assert [row["step"] for row in rows] == sorted({*logged, *validated})
    assert [row["step"] for row in rows if row["val_loss_nats"] is not None] == validated
    assert [row["phase"] for row in rows] == ["stable" if row["step"] <= 48 else "decay" for row in rows]
    assert all(row["tokens"] == row["step"] * tiny.STEP_TOKENS for row in rows)
    assert rows[-1]["flops"] == last.flops
    assert [row["step"] for row in tiny.samples(together, last.trial_id)] == [16, 60]
    # The family's trials agree on the trunk, and on nothing after it.
    short = tiny.curve(together, first.trial_id)
    assert [row for row in short if row["step"] <= 16] == [row for row in rows if row["step"] <= 16]
    assert short[-1]["val_loss_nats"] < rows[5]["val_loss_nats"]


def test_the_loss_falls_and_the_record_says_what_the_curve_says(plan, together):
    for trial in plan.trials:
        rows, record = tiny.curve(together, trial.trial_id), tiny.record(together, trial.trial_id)
        validation = {row["tokens"]: row["val_loss_nats"] for row in rows if row["val_loss_nats"] is not None}
        assert record["loss_nats"] == rows[-1]["val_loss_nats"]
        assert record["best_loss_nats"] == min(validation.values()) == validation[record["best_tokens"]]
        assert record["loss_nats"] < 0.65 * math.log(257)
        assert record["bits_per_byte"] == pytest.approx(record["loss_nats"] / math.log(2), rel=0.02)  # bytes, and ends
        assert record["steps_done"] == trial.config.steps


def test_the_trunk_is_trained_once(plan, tmp_path, steps_trained):
    assert tiny.train(plan, tmp_path) == 0
    assert sorted(steps_trained) == sorted([*range(48), *range(16, 20), *range(32, 40), *range(48, 60)])
    shared = [tiny.record(tmp_path, trial.trial_id)["shared_steps"] for trial in plan.trials]
    assert shared == [16, 32, 48]
    trunk = RunDir.of_trunk(tmp_path, plan.trials[0].family_id)
    assert trunk.stable_steps() == [48]


def test_a_larger_budget_later_extends_the_trunk(plan, alone, tmp_path, steps_trained):
    small, large = plan.trials[0], plan.trials[2]
    assert tiny.train(replace(plan, trials=[small]), tmp_path) == 0
    steps_trained.clear()
    assert tiny.train(replace(plan, trials=[large]), tmp_path) == 0
    assert steps_trained == [*range(16, 60)]
    assert tiny.everything(tmp_path, large.trial_id) == tiny.everything(alone[large.trial_id], large.trial_id)


def test_a_smaller_budget_later_goes_on_alone(plan, together, alone, tmp_path, steps_trained):
    """The trunk is past its branch: it starts from the nearest checkpoint before it, here step 0 and then step 16."""
    shutil.copytree(together, tmp_path / "runs")
    runs, small, middle = tmp_path / "runs", plan.trials[0], plan.trials[1]
    trunk = RunDir.of_trunk(runs, small.family_id)
    for trial, states, trained in ((small, [48], range(20)), (middle, [16, 48], range(16, 40))):
        shutil.rmtree(runs / trial.trial_id)
        if 16 in states:
            shutil.copy(RunDir.of_trunk(alone[small.trial_id], small.family_id).stable(16), trunk.path)
        assert trunk.stable_steps() == states
        steps_trained.clear()
        assert tiny.train(replace(plan, trials=[trial]), runs) == 0
        assert steps_trained == [*trained]
        assert tiny.everything(runs, trial.trial_id) == tiny.everything(alone[trial.trial_id], trial.trial_id)
    assert trunk.stable_steps()[-1] == 48  # the trunk itself was left as it was


def test_half_a_line_at_the_end_of_a_trunk_is_not_copied(plan, together, alone, tmp_path):
    shutil.copytree(together, tmp_path / "runs")
    runs, large = tmp_path / "runs", plan.trials[2]
    shutil.rmtree(runs / large.trial_id)
    with open(RunDir.of_trunk(runs, large.family_id).metrics, "a") as file:
        file.write('{"step": 49, "tok')
    assert tiny.train(replace(plan, trials=[large]), runs) == 0
    assert tiny.everything(runs, large.trial_id) == tiny.everything(alone[large.trial_id], large.trial_id)


def test_cosine_shares_nothing(overrides, tmp_path, steps_trained):
    plan = plan_here(
        [*overrides, tiny.steps(10, 20), "schedule=cosine", f"schedule.warmup_tokens={4 * tiny.STEP_TOKENS}"]
    )
    assert tiny.train(plan, tmp_path / "both") == 0
    assert steps_trained == [*range(10), *range(20)]
    long = plan.trials[1]
    assert tiny.record(tmp_path / "both", long.trial_id)["shared_steps"] == 0
    assert RunDir.of_trunk(tmp_path / "both", long.family_id).stable_steps() == []
    assert tiny.train(replace(plan, trials=[long]), tmp_path / "one") == 0
    assert tiny.everything(tmp_path / "both", long.trial_id) == tiny.everything(tmp_path / "one", long.trial_id)


# ---- gradient accumulation ----


def setup_of(plan, micro_batch=None):
    trial = plan.trials[0]
    options = replace(plan.config.run, micro_batch_sequences=micro_batch)
    tokens = Tokens.open(plan.config.paths.tokens, trial.config.data.fingerprint)
    return Setup.of(trial, tokens, options, "cpu", "sdpa", execution_class="test")


def gradients(setup, dtype=torch.float32):
    """The gradient of the first step, as `loop.update` accumulates it, in one float64 vector; and the mean loss."""
    state = State.fresh(setup)
    setup.model.to(dtype)
    taken = []
    state.optimizer.step = lambda: taken.extend(p.grad.double().clone() for p in setup.model.parameters())
    setup.config = replace(setup.config, optim=replace(setup.config.optim, clip_norm=1e9))
    loop.update(setup, state, lr=0.0)
    return torch.cat([grad.flatten() for grad in taken]), state.loss_sum.item()


def test_gradient_accumulation_changes_rounding_only(plan):
    """Against the same gradient in float64, accumulating errs no more than twice what the whole batch errs by."""
    truth, _ = gradients(setup_of(plan), torch.float64)
    whole, whole_loss = gradients(setup_of(plan))
    rounding = (whole - truth).norm()
    assert 0 < rounding < 1e-5 * truth.norm()
    for micro_batch in (2, 1):
        parts, loss = gradients(setup_of(plan, micro_batch))
        assert (parts - truth).norm() <= 2 * rounding
        assert loss == pytest.approx(whole_loss, rel=1e-6)


def test_a_micro_batch_gives_the_same_trial_and_nearly_the_same_curve(plan, alone, tmp_path):
    small = plan.trials[0]
    run = replace(plan.config.run, micro_batch_sequences=1)
    parts = replace(plan, trials=[small], config=replace(plan.config, run=run))
    assert tiny.train(parts, tmp_path) == 0
    whole, here = tiny.curve(alone[small.trial_id], small.trial_id), tiny.curve(tmp_path, small.trial_id)
    assert [row["train_loss_nats"] for row in here] == pytest.approx(
        [row["train_loss_nats"] for row in whole], rel=1e-4
    )
    assert (
        tiny.record(tmp_path, small.trial_id)["execution_class"]
        != tiny.record(alone[small.trial_id], small.trial_id)["execution_class"]
    )


def test_a_micro_batch_that_does_not_divide_the_batch_is_refused(plan):
    with pytest.raises(UserError, match=r"run\.micro_batch_sequences=3: must divide batch\.sequences=4"):
        setup_of(plan, 3)


# ---- divergence ----


def break_at(monkeypatch, step):
    """Weights that are not finite from this step on."""
    update = loop.update

    def breaking(setup, state, lr):
        grad_norm = update(setup, state, lr)
        if state.step + 1 >= step:
            with torch.no_grad():
                next(setup.model.parameters()).fill_(math.nan)
        return grad_norm

    monkeypatch.setattr(loop, "update", breaking)


def test_a_loss_that_is_not_finite_ends_the_trial_with_a_record_alone_and_in_its_family(plan, tmp_path, monkeypatch):
    """Step 37: after the first trial's end, in the second one's decay (32 to 40) and in the third one's trunk."""
    break_at(monkeypatch, 37)
    assert tiny.train(plan, tmp_path / "together") == 0
    first, *broken = plan.trials
    assert tiny.record(tmp_path / "together", first.trial_id)["status"] == "finished"
    for trial in broken:
        record = tiny.record(tmp_path / "together", trial.trial_id)
        rows = tiny.curve(tmp_path / "together", trial.trial_id)
        assert record["status"] == "diverged"
        assert record["steps_done"] == rows[-1]["step"] == 40
        assert record["loss_nats"] is None
        assert record["best_loss_nats"] == min(row["val_loss_nats"] for row in rows if row["val_loss_nats"])
        assert rows[-1]["train_loss_nats"] is None
        assert all(row["train_loss_nats"] for row in rows[:-1])
        assert not RunDir.of_trial(tmp_path / "together", trial.trial_id).weights.exists()
        assert tiny.train(replace(plan, trials=[trial]), tmp_path / trial.trial_id) == 0
        lone = tiny.everything(tmp_path / trial.trial_id, trial.trial_id)
        assert tiny.everything(tmp_path / "together", trial.trial_id) == lone
    text = RunDir.of_trial(tmp_path / "together", broken[0].trial_id).metrics.read_text()
    assert "NaN" not in text  # JSON has none


def test_a_trunk_that_diverges_is_trained_once_for_all_its_budgets(plan, tmp_path, monkeypatch, steps_trained):
    break_at(monkeypatch, 9)
    assert tiny.train(plan, tmp_path) == 0
    assert steps_trained == [*range(10)]
    for trial in plan.trials:
        record = tiny.record(tmp_path, trial.trial_id)
        assert (record["status"], record["steps_done"], record["shared_steps"]) == ("diverged", 10, 0)


def test_a_learning_rate_out_of_all_bounds_diverges(overrides, tmp_path):
    plan = plan_here([*overrides, tiny.steps(10), "optim.lr=1e38"])
    assert tiny.train(plan, tmp_path) == 0
    record = tiny.record(tmp_path, plan.trials[0].trial_id)
    assert (record["status"], record["loss_nats"], record["best_loss_nats"]) == ("diverged", None, None)
    assert tiny.train(plan, tmp_path) == 0  # done for good, not tried again


# ---- checkpoints ----


@pytest.fixture
def saved(plan, together, tmp_path):
    """A trunk's checkpoint at step 48, in a folder of its own."""
    trunk = RunDir.of_trunk(together, plan.trials[0].family_id)
    for path in (trunk.stable(48), trunk.metrics, trunk.samples):
        shutil.copy(path, tmp_path)
    return tmp_path / trunk.stable(48).name


def curve_at(setup, state, folder):
    return Curve(setup, state, None, folder / "metrics.jsonl", folder / "samples.jsonl")


def test_a_checkpoint_read_and_written_again_is_the_same(plan, saved):
    family_id = plan.trials[0].family_id
    setup = setup_of(plan)
    state, lengths = checkpoint.load(saved, family_id, setup)
    assert state.step == 48
    assert lengths == ((saved.parent / "metrics.jsonl").stat().st_size, (saved.parent / "samples.jsonl").stat().st_size)
    again = saved.parent / "again.pt"
    state.classes.remove("test")
    checkpoint.save(again, family_id, curve_at(setup, state, saved.parent))
    assert same(checkpoint.read(saved), checkpoint.read(again))


def same(one, two):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(same, one, two))
    return one == two


def test_a_checkpoint_of_another_family_is_refused(plan, saved):
    with pytest.raises(UserError, match=r"checkpoint of .*, expected other in format 1; delete it"):
        checkpoint.load(saved, "other", setup_of(plan))


@pytest.mark.parametrize("damage", ["empty", "half", "text", "flipped", "pickle"])
def test_a_damaged_checkpoint_is_named_in_one_line(saved, damage):
    content = saved.read_bytes()
    if damage == "pickle":
        torch.save({"format": 1, "owner": Path("x")}, saved)  # an object, which must not be built
    else:
        middle = len(content) // 2
        flipped = (
            content[:middle] + bytes(255 - byte for byte in content[middle : middle + 64]) + content[middle + 64 :]
        )
        saved.write_bytes({"empty": b"", "half": content[:middle], "text": b"no zip" * 99, "flipped": flipped}[damage])
    with pytest.raises(UserError, match=r"stable-000000048\.pt: damaged checkpoint \(.+\); delete it") as caught:
        checkpoint.read(saved)
    assert "\n" not in str(caught.value)


def test_files_shorter_than_their_checkpoint_are_refused(plan, saved):
    _, lengths = checkpoint.load(saved, plan.trials[0].family_id, setup_of(plan))
    metrics, samples = saved.parent / "metrics.jsonl", saved.parent / "samples.jsonl"
    with open(metrics, "ab") as file:
        file.write(b'{"step": 49}\n{"st')
    checkpoint.truncate(metrics, samples, lengths)
    assert json.loads(metrics.read_text().splitlines()[-1])["step"] == 45
    metrics.write_text("")
    with pytest.raises(UserError, match=r"metrics\.jsonl: shorter than its checkpoint says"):
        checkpoint.truncate(metrics, samples, lengths)


def test_the_environment_tells_what_decides_rounding():
    options = RunOptions()
    classes = {
        describe("cpu", backend, replace(options, **change)).execution_class
        for backend, change in (
            ("sdpa", {}),
            ("reference", {}),
            ("sdpa", {"threads": 2}),
            ("sdpa", {"micro_batch_sequences": 2}),
        )
    }
    assert len(classes) == 4
    assert describe("cpu", "sdpa", options) == describe("cpu", "sdpa", options)
