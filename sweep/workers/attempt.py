"""An attempt at training a family, from its claim to the records of its trials. It reads from top to bottom.

`train_family` trains a family alone. In a stack (`sweep.workers.stack_worker`) an attempt begins and ends in the same
way, and the stack's scheduler trains the family in between.
"""

import os
import traceback
from dataclasses import dataclass, field
from typing import Literal

import torch

from sweep.common import devices
from sweep.common.errors import UserError
from sweep.common.exits import FAILED
from sweep.data.tokens import Tokens
from sweep.plan.trial import Trial
from sweep.runs import attempt_log, claim, environment
from sweep.runs.attempt_log import SavedState
from sweep.runs.claim import Claim
from sweep.runs.environment import Environment
from sweep.runs.progress import Progress
from sweep.runs.rundir import RunDir
from sweep.runs.state import has_record
from sweep.train import checkpoint
from sweep.train.curve import Stopped
from sweep.train.family import Family, train_trial
from sweep.train.setup import Setup
from sweep.train.stack import Stack
from sweep.workers import memory
from sweep.workers.ceiling import flops_ceiling
from sweep.workers.process import LOG
from sweep.workers.worker import Worker

# blocked: somebody else holds the family; lost: somebody else took it over while it was trained; let go: its stack
# could not go on, and the worker trains it in another way
Outcome = Literal["done", "blocked", "stopped", "let go", "lost", "failed", "given up"]


def train_family(worker: Worker, trials: list[Trial]) -> Outcome:
    """Train a family alone. How it went; what went wrong is in its attempts and in error.txt."""
    attempt = begin(worker, trials)
    if not isinstance(attempt, Attempt):
        return attempt
    try:
        return attempt.train()
    finally:
        attempt.held.release()


def begin(worker: Worker, trials: list[Trial]) -> "Attempt | Outcome":
    """Claim a family and write down that an attempt begins.

    An outcome instead, where the family is done, somebody else holds it, it is given up, or it cannot be claimed or
    written down.
    """
    if all(has_record(worker.runs, trial.trial_id) for trial in trials):
        return "done"
    trunk = RunDir.of_trunk(worker.runs, trials[0].family_id)
    try:
        last_beat = claim.last_beat(trunk.path)
        held = claim.acquire(trunk.path, worker.job_is_gone)
        if held is None:
            return "blocked"
        attempt = Attempt(worker, trials, held)
        without_progress = attempt.write_start(last_beat)
    except UserError as error:  # a damaged claim or list of attempts, a full disk: a matter of this family alone
        tell_failure(worker, trials[0], error)
        return "failed"
    if worker.max_attempts is not None and len(without_progress) >= worker.max_attempts:
        return attempt.give_up(without_progress)
    return attempt


@dataclass(eq=False)
class Attempt:
    """A family that this process holds: the owner that it is trained for (`sweep.train.family.Owner`)."""

    worker: Worker
    trials: list[Trial]
    held: Claim
    failures: list[str] = field(default_factory=list)
    outcome: Outcome | None = None  # None: not over

    @property
    def family_id(self) -> str:
        return self.trials[0].family_id

    @property
    def trunk(self) -> RunDir:
        return RunDir.of_trunk(self.worker.runs, self.family_id)

    # ---- it begins ----

    def write_start(self, last_beat: float | None) -> list[attempt_log.Attempt]:
        """Write down that it begins. The attempts just before it that began from the same saved state, and so made no
        progress."""
        try:
            saved = self._saved()
            without_progress = attempt_log.without_progress(self.trunk, saved)
            trial_ids = [trial.trial_id for trial in self.trials]
            log, share = os.environ.get(LOG), devices.device_share()
            attempt_log.begin(self.trunk, self.held, trial_ids, saved, self.worker.since, share, log, last_beat)
        except BaseException:
            self.held.release()
            raise
        return without_progress

    def _saved(self) -> SavedState:
        """What there is of the family: records, and the steps of its checkpoints. Training on changes it."""
        runs = [RunDir.of_trial(self.worker.runs, trial.trial_id) for trial in self.trials]
        steps = {run.path.name: checkpoint.step_of(run.checkpoint) for run in runs if run.checkpoint.exists()}
        return SavedState(
            records=sum(run.record.exists() for run in runs),
            trunk_steps=self.trunk.stable_steps()[-1:],
            trial_steps=steps,
        )

    # ---- its family is trained ----

    def train(self) -> Outcome:
        """Train one trial after the other to its record; a trial's failure is kept from the others."""
        try:
            family = self.family()
        except Exception as error:  # noqa: BLE001 — whatever ends one family must not end the others
            return self.cannot_begin(error)
        for trial in family.missing():
            try:
                while not _fits_in_memory(family, trial):
                    memory.take_smaller_micro_batch(self.worker, family.setup, self.trunk, self.held)
                    family = self.family()
            except Stopped:
                return self.end("stopped")
            except Exception as error:  # noqa: BLE001 — whatever ends one trial must not end the others
                self.fail(trial, error)
        memory.compare_with_model(self.worker, family.setup)
        return self.end("done")

    def family(self, stack: Stack | None = None) -> Family:
        """The family on this worker's device, to be trained alone or in a stack."""
        setup, described = set_up(self.worker, self.trials, stack)
        return Family(
            setup=setup,
            trials=self.trials,
            runs=self.worker.runs,
            environment=described,
            owner=self,
            asked=self.worker.options,
        )

    def should_stop(self) -> bool:
        """Whether the worker was told to stop. Stopped where the claim is lost: the folder is another worker's now, and
        nothing may be saved there."""
        if self.held.lost:
            raise Stopped
        return self.worker.stop.asked

    def hear(self, progress: Progress) -> None:
        """Pass it on to the heartbeat, and to whoever listens to the worker."""
        news = {
            "trial_id": progress.trial_id,
            "steps": progress.steps,
            "step": progress.step,
            "loss_nats": progress.loss_nats,
            "tokens_per_second": progress.tokens_per_second,
        }
        self.held.report({key: value for key, value in news.items() if value is not None})
        self.worker.hear(progress)

    def fail(self, trial: Trial, error: Exception) -> None:
        """One of its trials cannot be trained."""
        self.failures.append(tell_failure(self.worker, trial, error))

    # ---- it ends ----

    def end(self, outcome: Outcome, error: str | None = None) -> Outcome:
        """Write down how it ended and let the family go; the outcome, `failed` where that cannot be written."""
        if outcome == "stopped" and self.held.lost:
            outcome = "lost"
        if outcome == "done" and self.failures:
            outcome, error = "failed", self.failures[0]
        try:
            attempt_log.end(self.trunk, self.held, outcome, error)
        except UserError as full_disk:
            tell_failure(self.worker, self.trials[0], full_disk)
            outcome = "failed"
        finally:
            self.held.release()
        self.outcome = outcome
        return outcome

    def cannot_begin(self, error: Exception) -> Outcome:
        """End it where none of its trials can be trained; the first that is missing tells why."""
        missing = [trial for trial in self.trials if not has_record(self.worker.runs, trial.trial_id)]
        self.fail((missing or self.trials)[0], error)
        return self.end("done")

    def give_up(self, without_progress: list[attempt_log.Attempt]) -> Outcome:
        """End it before it is trained: it has failed too often at the same place."""
        last = without_progress[-1]
        line = (
            f"given up after {len(without_progress)} attempts without progress (the last: "
            f"{last.error or last.outcome or 'killed'}); `python -m sweep retry SWEEP` tries again"
        )
        self.worker.log(f"{FAILED}{self.family_id}: {line}")
        return self.end(attempt_log.GIVEN_UP, line)


def set_up(
    worker: Worker, trials: list[Trial], stack: Stack | None = None, slots: int = 0
) -> tuple[Setup, Environment]:
    """What a family's curves share, and what it is trained on: in a stack, or for one of so many slots that is to be
    made."""
    trial, device = trials[0], worker.device
    backend = devices.attention_backend(worker.options.backend, device, trial.config.model.head_dim)
    if device == "cuda":
        worker.log(f"{trial.family_id}: attention by {backend} (run.backend={worker.options.backend})")
    options = memory.options_that_fit(worker, trials, slots) if stack is None else stack.setup.options
    described = environment.describe(device, backend, options, None if stack is None else stack.slots)
    setup = Setup.of(
        trial,
        Tokens.open(worker.tokens_root, trial.config.data.fingerprint),
        options,
        device,
        backend,
        execution_class=described.execution_class,
        flops_ceiling=flops_ceiling(worker.runs, device, trial.config.precision),
        shared_model=None if stack is None else stack.scratch_model,
    )
    return setup, described


def _fits_in_memory(family: Family, trial: Trial) -> bool:
    """Train a trial; False where device memory is too small. The error's frames, and their tensors, end here."""
    try:
        train_trial(family, trial)
    except torch.OutOfMemoryError:
        return False
    return True


def in_one_line(error: Exception) -> str:
    """What went wrong, as a person is told it."""
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}".splitlines()[0]


def tell_failure(worker: Worker, trial: Trial, error: Exception) -> str:
    """Why a trial failed, in one line; the traceback, unless a person can correct it, is left in its folder."""
    line = in_one_line(error)
    text = line if isinstance(error, UserError) else "".join(traceback.format_exception(error))
    worker.log(f"{FAILED}{trial.trial_id}: {line}")
    path = RunDir.of_trial(worker.runs, trial.trial_id).error
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    except OSError as full:
        worker.log(f"{path}: cannot be written ({full.strerror}); it would say:\n{text}")
    return line
