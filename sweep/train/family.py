"""Training a family: the trunk that its budgets share, and each budget's own cooldown.

With WSD all budgets of a family agree until their decay begins. The trunk is trained once, with a checkpoint at each
branch; a trial is the trunk's rows up to its branch, then its own steps. The trunk is only a cache: a budget whose
branch the trunk has passed goes on alone from the nearest checkpoint before it, or from step 0, and gives the same
record. Cosine shares nothing (its branch is step 0), so all of its trials train alone.
"""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sweep.common import files
from sweep.common.devices import device_share
from sweep.config.schema import RunOptions
from sweep.plan.speeds import Packing, record_speed
from sweep.plan.trial import Trial
from sweep.runs.record import Ending, Record
from sweep.runs.rundir import RunDir
from sweep.train import checkpoint, loop
from sweep.train.activations import dimension_of
from sweep.train.curve import Curve, Diverged, State, Stopped
from sweep.train.evaluation import train_loss
from sweep.train.setup import Setup


@dataclass
class Family:
    """The trials of one family that this process trains, on one device."""

    setup: Setup
    trials: list[Trial]
    runs: Path
    env: dict[str, Any]
    should_stop: Callable[[], bool]
    on_progress: Callable[[dict[str, Any]], None]
    asked: RunOptions  # what the setup's options were before the device's memory had its say

    @property
    def family_id(self) -> str:
        return self.trials[0].family_id

    @property
    def trunk(self) -> RunDir:
        return RunDir.of_trunk(self.runs, self.family_id)

    @property
    def packing(self) -> Packing:
        """How its device is shared, which its speed is of."""
        return Packing(stack=self.env["class"]["stack"] or 0)

    def tell_progress(self, trial: Trial, step: int) -> None:
        """Tell which trial is being trained now, or has its trunk trained, and from which step on."""
        self.on_progress({"trial_id": trial.trial_id, "steps": trial.config.steps, "step": step})

    def missing(self) -> list[Trial]:
        """Trials without a record, those that branch first first."""
        ordered = sorted(self.trials, key=lambda trial: trial.config.steps)
        return [trial for trial in ordered if not RunDir.of_trial(self.runs, trial.trial_id).record.exists()]


@dataclass
class Segment:
    """A curve to train to a step, and what to do when it is there, or when it diverges on the way."""

    curve: Curve
    until: int
    arrived: Callable[[], None]
    diverged: Callable[[], None]


def train_trial(family: Family, trial: Trial) -> None:
    """One trial to its record, from its own checkpoint, the trunk or step 0, whichever is furthest.

    Raises Stopped when asked to stop, all state saved; other errors pass through.
    """
    if family.should_stop():
        raise Stopped
    if waits_for_trunk(family, trial):
        _open(family, trial)
        _train(family, trial, trunk_segment(family, trial))
    if trial in family.missing():  # it may have diverged with the trunk
        _train(family, trial, trial_segment(family, trial))


def _train(family: Family, trial: Trial, segment: Segment) -> None:
    family.tell_progress(trial, segment.curve.state.step)
    try:
        loop.train(segment.curve, segment.until)
    except Diverged:
        segment.diverged()
    else:
        segment.arrived()


def trunk_segment(family: Family, trial: Trial) -> Segment:
    """The trunk from its last checkpoint to the trial's branch, and a checkpoint there.

    Where it diverges, so would all that wait for it: its history is theirs, and each gets its record.
    """
    curve = _trunk_curve(family)

    def arrived() -> None:
        if not family.trunk.stable(curve.state.step).exists():
            curve.save(curve)

    def diverged() -> None:
        others = [other for other in family.missing() if other is not trial and waits_for_trunk(family, other)]
        for each in (trial, *others):
            run = _open(family, each)
            _copy_history(family.trunk, run, until=curve.state.step)
            _publish(family, run, each, curve.state, "diverged")

    return Segment(curve, trial.config.branch_step, arrived, diverged)


def trial_segment(family: Family, trial: Trial) -> Segment:
    """The trial's own steps, to its record. It must not have to wait for its trunk."""
    run = _open(family, trial)
    curve = _resume(family, run, trial) or _begin(family, run, trial)

    def arrived() -> None:
        curve.fetch()
        _publish(family, run, trial, curve.state, "finished")

    def diverged() -> None:
        _publish(family, run, trial, curve.state, "diverged")

    return Segment(curve, trial.config.steps, arrived, diverged)


def waits_for_trunk(family: Family, trial: Trial) -> bool:
    """Whether the trunk must be trained before the trial can begin."""
    run = RunDir.of_trial(family.runs, trial.trial_id)
    if run.record.exists() or run.checkpoint.exists():
        return False
    return (family.trunk.stable_steps() or [0])[-1] < trial.config.branch_step


def _open(family: Family, trial: Trial) -> RunDir:
    """The trial's folder, with what it is and what it is trained on."""
    run = RunDir.of_trial(family.runs, trial.trial_id)
    trial.keep(run.trial)
    files.write_json(run.env, family.env)
    return run


def _resume(family: Family, run: RunDir, trial: Trial) -> Curve | None:
    """The trial's own curve where an earlier attempt left it."""
    if not run.checkpoint.exists():
        return None
    state, lengths = checkpoint.load(run.checkpoint, trial.trial_id, family.setup)
    checkpoint.truncate(run.metrics, run.samples, lengths)
    return _curve(family, run, trial, state)


def _begin(family: Family, run: RunDir, trial: Trial) -> Curve:
    """The trial's curve where it leaves the trunk: at its branch, before it if the trunk is past that, or at step 0."""
    branch = trial.config.branch_step
    state, _ = _trunk_state(family, max((step for step in family.trunk.stable_steps() if step <= branch), default=0))
    _copy_history(family.trunk, run, until=state.step)
    state.shared_steps, state.shared_seconds = state.step, state.seconds
    return _curve(family, run, trial, state)


def _trunk_curve(family: Family) -> Curve:
    """The trunk where its last checkpoint left it, its files cut back to that."""
    trunk = family.trunk
    trunk.path.mkdir(parents=True, exist_ok=True)
    state, lengths = _trunk_state(family, (trunk.stable_steps() or [0])[-1])
    checkpoint.truncate(trunk.metrics, trunk.samples, lengths)
    return Curve(
        setup=family.setup,
        state=state,
        length=None,
        metrics=trunk.metrics,
        samples=trunk.samples,
        save=lambda curve: _save_trunk(family, curve),
        should_stop=family.should_stop,
        on_progress=family.on_progress,
    )


def _trunk_state(family: Family, step: int) -> tuple[State, tuple[int, int]]:
    """The trunk's state at a step that it has a checkpoint of (or 0), and its files' lengths then."""
    if step == 0:
        return State.fresh(family.setup), (0, 0)
    return checkpoint.load(family.trunk.stable(step), family.family_id, family.setup)


def _save_trunk(family: Family, curve: Curve) -> None:
    """Checkpoint the trunk, then drop its older checkpoints at which no missing trial branches."""
    trunk, step = family.trunk, curve.state.step
    checkpoint.save(trunk.stable(step), family.family_id, curve)
    needed = {trial.config.branch_step for trial in family.missing()}
    for older in trunk.stable_steps():
        if older < step and older not in needed:
            trunk.stable(older).unlink()


def _curve(family: Family, run: RunDir, trial: Trial, state: State) -> Curve:
    return Curve(
        setup=family.setup,
        state=state,
        length=trial.config.steps,
        metrics=run.metrics,
        samples=run.samples,
        save=lambda curve: checkpoint.save(run.checkpoint, trial.trial_id, curve),
        should_stop=family.should_stop,
        on_progress=family.on_progress,
    )


def _copy_history(trunk: RunDir, run: RunDir, until: int) -> None:
    """The trunk's rows up to a step become the trial's, byte for byte."""
    for source, target in ((trunk.metrics, run.metrics), (trunk.samples, run.samples)):
        lines = source.read_bytes().splitlines(keepends=True) if until and source.exists() else []
        kept = b"".join(line for line in lines if line.endswith(b"\n") and _step_of(line) <= until)
        files.write(target, lambda file, kept=kept: file.write(kept))  # type: ignore[misc]


def _step_of(line: bytes) -> int:
    return json.loads(line)["step"]


def _publish(family: Family, run: RunDir, trial: Trial, state: State, status: Ending) -> None:
    """Write the record; after success the optimizer's state goes."""
    setup = family.setup
    rows = files.read_json_lines(run.metrics)
    finished = status == "finished"
    loss_nats = rows[-1]["val_loss_nats"] if finished else None
    tokens_per_second = statistics.median(row["tokens_per_second"] for row in rows)
    dimension = dimension_of(setup) if finished else None
    record = Record(
        trial_id=trial.trial_id,
        family_id=trial.family_id,
        status=status,
        params=trial.params_by_group,
        params_non_embedding=trial.params_non_embedding,
        params_total=trial.params_total,
        tokens=trial.tokens,
        flops=trial.flops,
        flops_per_token=setup.flops_per_token,
        steps_done=state.step,
        loss_nats=loss_nats,
        best_loss_nats=state.best_loss_nats if state.best_tokens else None,
        best_tokens=state.best_tokens or None,
        train_loss_nats=train_loss(setup, state.step) if finished else None,
        bits_per_byte=loop.finite(setup.tokens.bits_per_byte(loss_nats)) if loss_nats is not None else None,
        shared_steps=state.shared_steps,
        wall_seconds=state.seconds,
        own_seconds=state.seconds - state.shared_seconds,
        tokens_per_second=tokens_per_second,
        device=family.env["class"]["device_model"],
        execution_class=setup.execution_class,
        execution_classes=state.classes,
        code_hash="+".join(state.codes),
        finished_at=time.time(),
        intrinsic_dimension=dimension.d if dimension else None,
        dimension_points=dimension.points if dimension else None,
        mfu=setup.mfu(tokens_per_second),
        flops_ceiling=setup.flops_ceiling,
        device_bytes=torch.cuda.max_memory_allocated() if setup.device == "cuda" else None,
    )
    if finished:
        rate = state.step * trial.config.batch_tokens / state.seconds
        if device_share() == 1:  # what others did meanwhile is not known
            record_speed(family.runs, trial, family.asked, record.device, rate, packing=family.packing)
        if setup.options.keep_weights:
            files.write(run.weights, lambda file: torch.save(setup.model.state_dict(), file))
    record.publish(run.record)
    run.checkpoint.unlink(missing_ok=True)
    run.error.unlink(missing_ok=True)
