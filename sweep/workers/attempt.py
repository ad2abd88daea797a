"""An attempt at training a family: its claim, what it is trained with, and what is written down of how it went."""

import dataclasses
import os
import traceback
from dataclasses import dataclass
from typing import Any, Literal

from sweep.common import devices
from sweep.common.errors import UserError
from sweep.common.exits import FAILED
from sweep.data.tokens import Tokens
from sweep.plan.trial import Trial
from sweep.runs import attempt_log, claim, environment, state
from sweep.runs.attempt_log import SavedState
from sweep.runs.claim import Claim
from sweep.runs.rundir import RunDir
from sweep.train import checkpoint
from sweep.train.curve import Stopped
from sweep.train.family import Family
from sweep.train.setup import Setup
from sweep.train.stack import Stack
from sweep.workers.ceiling import flops_ceiling
from sweep.workers.context import WorkerContext
from sweep.workers.memory import options_that_fit
from sweep.workers.process import LOG

# blocked: somebody else holds the family; lost: somebody else took it over while it was trained; let go: not over, its
# worker trains it in another way
Outcome = Literal["done", "blocked", "stopped", "let go", "lost", "failed", "given up"]


class NotBegun(Exception):
    """A family is not to be trained now; `outcome` says why."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome)
        self.outcome = outcome


@dataclass(eq=False)
class Attempt:
    """A family that this process holds."""

    context: WorkerContext
    trials: list[Trial]
    held: Claim

    @classmethod
    def begin(cls, context: WorkerContext, trials: list[Trial]) -> "Attempt":
        """Claim a family and write down that it begins.

        NotBegun where it is done, somebody else holds it, it is given up, or it cannot be claimed or written down.
        """
        if all(has_record(context, trial) for trial in trials):
            raise NotBegun("done")
        trunk = RunDir.of_trunk(context.runs, trials[0].family_id)
        try:
            last_beat = claim.last_beat(trunk.path)
            held = claim.acquire(trunk.path, context.job_is_gone)
            if held is None:
                raise NotBegun("blocked")
            attempt = cls(context, trials, held)
            in_vain = attempt._write_start(last_beat)
        except UserError as error:  # a damaged claim or list of attempts, a full disk: of this family alone
            tell_failure(context, trials[0], error)
            raise NotBegun("failed") from error
        if context.max_attempts is not None and len(in_vain) >= context.max_attempts:
            raise NotBegun(attempt._give_up(in_vain))
        return attempt

    @property
    def trunk(self) -> RunDir:
        return RunDir.of_trunk(self.context.runs, self.trials[0].family_id)

    def family(self, stack: Stack | None = None) -> Family:
        """The family, to be trained alone or in a stack."""
        context, held = self.context, self.held

        def on_progress(news: dict[str, Any]) -> None:
            held.report(news)
            context.on_row(news)

        def should_stop() -> bool:
            if held.lost:
                raise Stopped  # at once: the folder is another worker's now, and nothing may be saved there
            return context.stop.asked

        setup, env = set_up(context, self.trials, stack)
        return Family(
            setup=setup,
            trials=self.trials,
            runs=context.runs,
            env=env,
            should_stop=should_stop,
            on_progress=on_progress,
            asked=context.options,
        )

    def end(self, outcome: Outcome, error: str | None = None) -> Outcome:
        """Write down how it ended and let the family go; the outcome, `failed` where that cannot be written."""
        try:
            attempt_log.end(self.trunk, self.held, outcome, error)
        except UserError as full_disk:
            tell_failure(self.context, self.trials[0], full_disk)
            outcome = "failed"
        finally:
            self.held.release()
        return outcome

    def stop(self) -> Outcome:
        """End it where training was stopped, by a signal or because another worker took the family over."""
        return self.end("lost" if self.held.lost else "stopped")

    def fail(self, error: Exception) -> Outcome:
        """End it where none of its trials can be trained; the first that is missing tells why."""
        missing = [trial for trial in self.trials if not has_record(self.context, trial)]
        return self.end("failed", tell_failure(self.context, (missing or self.trials)[0], error))

    def _write_start(self, last_beat: float | None) -> list[attempt_log.Attempt]:
        """Write down that it begins; the attempts just before it that began where it does, and so came to nothing."""
        try:
            saved = self._saved()
            in_vain = attempt_log.without_progress(self.trunk, saved)
            trial_ids = [trial.trial_id for trial in self.trials]
            log = os.environ.get(LOG)
            attempt_log.begin(
                self.trunk, self.held, trial_ids, saved, self.context.since, devices.device_share(), log, last_beat
            )
        except BaseException:
            self.held.release()
            raise
        return in_vain

    def _saved(self) -> SavedState:
        """What there is of the family: records, and the steps of its checkpoints. Training on changes it."""
        runs = [RunDir.of_trial(self.context.runs, trial.trial_id) for trial in self.trials]
        steps = {run.path.name: checkpoint.step_of(run.checkpoint) for run in runs if run.checkpoint.exists()}
        return SavedState(
            records=sum(run.record.exists() for run in runs),
            trunk_steps=self.trunk.stable_steps()[-1:],
            trial_steps=steps,
        )

    def _give_up(self, in_vain: list[attempt_log.Attempt]) -> Outcome:
        line = (
            f"given up after {len(in_vain)} attempts without progress (the last: "
            f"{in_vain[-1].error or in_vain[-1].outcome or 'killed'}); `python -m sweep retry SWEEP` tries again"
        )
        self.context.log(f"{FAILED}{self.trials[0].family_id}: {line}")
        return self.end(attempt_log.GIVEN_UP, line)


def has_record(context: WorkerContext, trial: Trial) -> bool:
    return state.has_record(context.runs, trial.trial_id)


def set_up(
    context: WorkerContext, trials: list[Trial], stack: Stack | None = None, slots: int = 0
) -> tuple[Setup, dict[str, Any]]:
    """What a family's curves share, and its `env.json`. `slots` are of a stack that is to be made of it."""
    trial, device = trials[0], context.device
    backend = devices.attention_backend(context.options.backend, device, trial.config.model.head_dim)
    if device == "cuda":
        context.log(f"{trial.family_id}: attention by {backend} (run.backend={context.options.backend})")
    options = options_that_fit(context, trials, slots) if stack is None else stack.setup.options
    stacked = None if stack is None else stack.slots
    env = environment.describe(device, backend, dataclasses.asdict(options), stacked)
    setup = Setup.of(
        trial,
        Tokens.open(context.tokens_root, trial.config.data.fingerprint),
        options,
        device,
        backend,
        execution_class=env["execution_class"],
        flops_ceiling=flops_ceiling(context.runs, device, trial.config.precision),
        shared_model=None if stack is None else stack.scratch_model,
    )
    return setup, env


def in_one_line(error: Exception) -> str:
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}".splitlines()[0]


def tell_failure(context: WorkerContext, trial: Trial, error: Exception) -> str:
    """Why a trial failed, in one line; the traceback, unless a person can correct it, is left in its folder."""
    line = in_one_line(error)
    text = line if isinstance(error, UserError) else "".join(traceback.format_exception(error))
    context.log(f"{FAILED}{trial.trial_id}: {line}")
    path = RunDir.of_trial(context.runs, trial.trial_id).error
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    except OSError as full:
        context.log(f"{path}: cannot be written ({full.strerror}); it would say:\n{text}")
    return line
