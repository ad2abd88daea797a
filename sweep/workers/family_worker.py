"""A worker's family alone: under its claim, one trial after the other; a trial's failure is kept from the others."""

import torch

from sweep.plan.trial import Trial
from sweep.train.curve import Stopped
from sweep.train.family import Family, train_trial
from sweep.workers import memory
from sweep.workers.attempt import Attempt, NotBegun, Outcome, tell_failure
from sweep.workers.context import WorkerContext


def train_family(context: WorkerContext, trials: list[Trial]) -> Outcome:
    """How it went; what went wrong is in the attempts and error.txt."""
    try:
        attempt = Attempt.begin(context, trials)
    except NotBegun as why:
        return why.outcome
    try:
        return _train(attempt)
    finally:
        attempt.held.release()


def _train(attempt: Attempt) -> Outcome:
    context, failures = attempt.context, []
    try:
        family = attempt.family()
    except Exception as error:  # noqa: BLE001 — whatever ends one family must not end the others
        return attempt.fail(error)
    for trial in family.missing():
        try:
            while not _fits_in_memory(family, trial):
                memory.take_smaller_micro_batch(context, family, attempt.held)
        except Stopped:
            return attempt.stop()
        except Exception as error:  # noqa: BLE001 — whatever ends one trial must not end the others
            failures.append(tell_failure(context, trial, error))
    memory.compare_with_model(context, family.setup)
    return attempt.end("failed", failures[0]) if failures else attempt.end("done")


def _fits_in_memory(family: Family, trial: Trial) -> bool:
    """Train a trial; False where the device's memory is too small. The error's frames, and their tensors, end here."""
    try:
        train_trial(family, trial)
    except torch.OutOfMemoryError:
        return False
    return True
