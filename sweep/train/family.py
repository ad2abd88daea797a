"""Training a family: the trunk that its budgets share, and each budget's own cooldown.

With WSD all budgets of a family agree until their decay begins. The trunk is trained once, with a checkpoint at each
branch; a trial is the trunk's rows up to its branch, then its own steps. The trunk is only a cache: a budget whose
branch the trunk has passed goes on alone from the nearest checkpoint before it, or from step 0, and gives the same
record. Cosine shares nothing (its branch is step 0), so all of its trials train alone.
"""

import json
import statistics
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch

from sweep.common import artefacts, files
from sweep.common.devices import device_share
from sweep.config.schema import RunOptions
from sweep.plan.speeds import Packing, record_speed
from sweep.plan.trial import Trial
from sweep.runs.environment import Environment
from sweep.runs.metrics import MetricsRow
from sweep.runs.progress import Progress
from sweep.runs.record import Ending, Record
from sweep.runs.rundir import RunDir
from sweep.train import checkpoint, loop
from sweep.train.activations import dimension_of
from sweep.train.curve import Curve, Diverged, State, Stopped
from sweep.train.evaluation import train_loss
from sweep.train.setup import Setup


class Owner(Protocol):
    """Whoever has a family trained (`sweep.workers.attempt.Attempt`): decides when it stops, hears how it goes."""

    def should_stop(self) -> bool:
        """Whether to save and stop. Raises Stopped where the family must be left without saving."""

    def hear(self, progress: Progress) -> None:
        """A trial of the family got this far."""

    def fail(self, trial: Trial, error: Exception) -> None:
        """A trial cannot be trained; the others go on."""

    def end(self, outcome: Literal["done", "stopped", "let go"]) -> object:
        """Nothing is left to do for the family; or it was stopped; or its stack let it go as last saved."""


@dataclass(frozen=True, eq=False)
class Family:
    """The trials of one family that this process trains, on one device."""

    setup: Setup
    trials: list[Trial]
    runs: Path
    environment: Environment
    owner: Owner
    asked: RunOptions  # the options before the device's memory limited the micro-batch

    @property
    def family_id(self) -> str:
        return self.trials[0].family_id

    @property
    def trunk(self) -> RunDir:
        return RunDir.of_trunk(self.runs, self.family_id)

    def missing(self) -> list[Trial]:
        """Trials without a record, those that branch first first."""
        ordered = sorted(self.trials, key=lambda trial: trial.config.steps)
        return [trial for trial in ordered if not RunDir.of_trial(self.runs, trial.trial_id).record.exists()]

    def waits_for_trunk(self, trial: Trial) -> bool:
        """Whether the trunk must be trained before the trial can begin."""
        run = RunDir.of_trial(self.runs, trial.trial_id)
        if run.record.exists() or run.checkpoint.exists():
            return False
        return (self.trunk.stable_steps() or [0])[-1] < trial.config.branch_step


def train_trial(family: Family, trial: Trial) -> None:
    """One trial to its record, from its own checkpoint, the trunk or step 0, whichever is furthest.

    Raises Stopped when asked to stop, with all state saved; other errors pass through.
    """
    if family.owner.should_stop():
        raise Stopped
    if family.waits_for_trunk(trial):
        _open(family, trial)
        others = [other for other in family.missing() if other is not trial and family.waits_for_trunk(other)]
        _train(TrunkCurve.open(family, [trial, *others]))
    if trial in family.missing():  # it may have diverged with the trunk
        _train(TrialCurve.open(family, trial))


def _train(curve: "FamilyCurve") -> None:
    curve.report()
    try:
        loop.train(curve, curve.until)
    except Diverged:
        curve.diverged()
    else:
        curve.arrived()


@dataclass(eq=False, kw_only=True)
class FamilyCurve(Curve, ABC):
    """A curve that is trained for trials of a family: its trunk, or one trial's own steps."""

    family: Family
    trials: list[Trial]  # that it is trained for; of a trunk, the next to branch first

    @property
    @abstractmethod
    def until(self) -> int:
        """The step that it is trained to."""

    @abstractmethod
    def arrived(self) -> None:
        """What follows when it has come to that step."""

    @abstractmethod
    def diverged(self) -> None:
        """What follows when it has diverged on the way."""

    def should_stop(self) -> bool:
        return self.family.owner.should_stop()

    def report(self, row: MetricsRow | None = None) -> None:
        speed = row.tokens_per_second if row else None
        if speed is not None and self.stack is not None:  # it is that of all curves together
            speed /= self.stack.occupied()
        trial = self.trials[0]
        self.family.owner.hear(Progress(trial.trial_id, trial.config.steps, self.state.step, row, speed))


class TrunkCurve(FamilyCurve):
    """The trunk, trained to the next branch."""

    @classmethod
    def open(cls, family: Family, trials: list[Trial]) -> "TrunkCurve":
        """The trunk where its last checkpoint left it, its files cut back to that. `trials` wait for it."""
        trunk = family.trunk
        trunk.path.mkdir(parents=True, exist_ok=True)
        state, lengths = _trunk_state(family, (trunk.stable_steps() or [0])[-1])
        checkpoint.truncate(trunk.metrics, trunk.samples, lengths)
        return cls(family.setup, state, None, trunk.metrics, trunk.samples, family=family, trials=trials)

    @property
    def until(self) -> int:
        return self.trials[0].config.branch_step

    def save(self) -> None:
        """Checkpoint the trunk, then drop its older checkpoints at which no missing trial branches."""
        trunk, step = self.family.trunk, self.state.step
        checkpoint.save(trunk.stable(step), self.family.family_id, self)
        needed = {trial.config.branch_step for trial in self.family.missing()}
        for older in trunk.stable_steps():
            if older < step and older not in needed:
                trunk.stable(older).unlink()

    def arrived(self) -> None:
        """A checkpoint at the branch."""
        if not self.family.trunk.stable(self.state.step).exists():
            self.save()

    def diverged(self) -> None:
        """Each trial that waits gets its record: the trunk's history would be its own."""
        for trial in self.trials:
            run = _open(self.family, trial)
            _copy_history(self.family.trunk, run, until=self.state.step)
            _publish(self.family, run, trial, self.state, "diverged")


class TrialCurve(FamilyCurve):
    """The steps that a trial does not share, to its record."""

    @classmethod
    def open(cls, family: Family, trial: Trial) -> "TrialCurve":
        """The trial where an earlier attempt left it, or where it leaves the trunk. It must not wait for the trunk."""
        run = _open(family, trial)
        state = _resumed(family, run, trial) or _branched(family, run, trial)
        return cls(family.setup, state, trial.config.steps, run.metrics, run.samples, family=family, trials=[trial])

    @property
    def trial(self) -> Trial:
        return self.trials[0]

    @property
    def run(self) -> RunDir:
        return RunDir.of_trial(self.family.runs, self.trial.trial_id)

    @property
    def until(self) -> int:
        return self.trial.config.steps

    def save(self) -> None:
        checkpoint.save(self.run.checkpoint, self.trial.trial_id, self)

    def arrived(self) -> None:
        self.fetch()
        _publish(self.family, self.run, self.trial, self.state, "finished")

    def diverged(self) -> None:
        _publish(self.family, self.run, self.trial, self.state, "diverged")


def _open(family: Family, trial: Trial) -> RunDir:
    """The trial's folder, with what it is and what it is trained on."""
    run = RunDir.of_trial(family.runs, trial.trial_id)
    trial.keep(run.trial)
    family.environment.write(run.env)
    return run


def _resumed(family: Family, run: RunDir, trial: Trial) -> State | None:
    """The trial's state where an earlier attempt left it, its files cut back to that."""
    if not run.checkpoint.exists():
        return None
    state, lengths = checkpoint.load(run.checkpoint, trial.trial_id, family.setup)
    checkpoint.truncate(run.metrics, run.samples, lengths)
    return state


def _branched(family: Family, run: RunDir, trial: Trial) -> State:
    """The trunk's state at the trial's branch; before it if the trunk is past that, or at step 0."""
    branch = trial.config.branch_step
    state, _ = _trunk_state(family, max((step for step in family.trunk.stable_steps() if step <= branch), default=0))
    _copy_history(family.trunk, run, until=state.step)
    state.shared_steps, state.shared_seconds = state.step, state.seconds
    return state


def _trunk_state(family: Family, step: int) -> tuple[State, tuple[int, int]]:
    """The trunk's state at a step that it has a checkpoint of (or 0), and its files' lengths then."""
    if step == 0:
        return State.fresh(family.setup), (0, 0)
    return checkpoint.load(family.trunk.stable(step), family.family_id, family.setup)


def _copy_history(trunk: RunDir, run: RunDir, until: int) -> None:
    """The trunk's rows up to a step become the trial's, byte for byte."""
    for source, target in ((trunk.metrics, run.metrics), (trunk.samples, run.samples)):
        lines = source.read_bytes().splitlines(keepends=True) if until and source.exists() else []
        kept = b"".join(line for line in lines if line.endswith(b"\n") and _step_of(line) <= until)
        files.write(target, lambda file, kept=kept: file.write(kept))  # type: ignore[misc]


def _step_of(line: bytes) -> int:
    return json.loads(line)["step"]


def _publish(family: Family, run: RunDir, trial: Trial, state: State, status: Ending) -> None:
    """Write the record, and remember the speed; after that the checkpoint has served its purpose."""
    setup = family.setup
    rows = artefacts.read_lines(MetricsRow, run.metrics)
    finished = status == "finished"
    loss_nats = rows[-1].val_loss_nats if finished else None
    tokens_per_second = statistics.median(row.tokens_per_second for row in rows if row.tokens_per_second is not None)
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
        device=family.environment.rounding.device_model,
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
            packing = Packing(stack=family.environment.rounding.stack or 0)
            record_speed(family.runs, trial, family.asked, record.device, rate, packing=packing)
        if setup.options.keep_weights:
            files.write(run.weights, lambda file: torch.save(setup.model.state_dict(), file))
    record.publish(run.record)
    run.checkpoint.unlink(missing_ok=True)
    run.error.unlink(missing_ok=True)
