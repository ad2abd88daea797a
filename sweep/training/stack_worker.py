"""A worker's stack: families of one shape, each under its claim, trained together until none is left.

No more families are held at a time than this worker's share of them, so that the others have theirs.
"""

import math
from typing import TYPE_CHECKING

import torch

from sweep.claim import Claim
from sweep.environment import free_memory
from sweep.errors import UserError
from sweep.training.stack import Stack
from sweep.training.together import Member, Together
from sweep.trial import Trial

if TYPE_CHECKING:
    from sweep.training.worker import Worker


def train_stack(worker: "Worker", families: list[list[Trial]], slots: int) -> dict[str, str]:
    """How each family went. A stack that the device has no memory for is halved, in the end to no stack at all."""
    outcomes: dict[str, str] = {}
    while slots:
        try:
            stack, fits = _stack(worker, families[0], slots)
        except UserError as error:
            return outcomes | _failed(worker, [t for t in families if t[0].family_id not in outcomes], error)
        if stack is None and fits:
            break
        if stack is not None and _Company(worker, families, stack, outcomes).train():
            return outcomes
        del stack
        free_memory(worker.device)
        worker.log(f"out of device memory with a stack of {slots}; going on with {slots // 2 or 'one trial'} at a time")
        slots //= 2
    for trials in families:
        if outcomes.get(trials[0].family_id) in (None, "stopped") and not worker.stop.asked:
            outcomes[trials[0].family_id] = worker.run_family(trials)
    return outcomes


def _failed(worker: "Worker", families: list[list[Trial]], error: UserError) -> dict[str, str]:
    """How families went that nothing can be done for: each an attempt that failed, unless it is done or another's."""
    outcomes = {}
    for trials in families:
        held = _enter(worker, trials)
        outcomes[trials[0].family_id] = held if isinstance(held, str) else "failed"
        if not isinstance(held, str):
            worker.end(trials, held, "failed", worker.failed(trials[0], error))
    return outcomes


def _enter(worker: "Worker", trials: list[Trial]) -> Claim | str:
    """As `Worker.enter`; a damaged claim or list of attempts, or a full disk, is of this family alone."""
    try:
        return worker.enter(trials)
    except UserError as error:
        worker.failed(trials[0], error)
        return "failed"


def _stack(worker: "Worker", trials: list[Trial], slots: int) -> tuple[Stack | None, bool]:
    """A stack, and whether the device has the memory for one.

    None where there cannot be one; then each family alone meets what is in the way, and tells of it as its own. But
    UserError where a graph was asked for and cannot be had.
    """
    graph = worker.options.graph and worker.device == "cuda"
    try:
        setup, _ = worker.setup(trials, slots=slots)
        return Stack(setup, slots, graph), True
    except torch.OutOfMemoryError:
        return None, False
    except (UserError, RuntimeError) as error:
        why = str(error).splitlines()[0]
        if graph and not isinstance(error, UserError):
            raise UserError(f"run.graph=true: the step cannot be captured ({why}); give run.graph=false") from error
        worker.log(f"no stack of {slots}, each trial alone: {why}")
        return None, True


class _Company:
    """The families of a stack, and how each of them went."""

    def __init__(self, worker: "Worker", families: list[list[Trial]], stack: Stack, outcomes: dict[str, str]):
        self.worker, self.stack, self.outcomes = worker, stack, outcomes
        self.left = [trials for trials in families if outcomes.get(trials[0].family_id) in (None, "stopped")]
        self.most = math.ceil(len(families) / worker.peers)
        self.held: dict[Member, Claim] = {}

    def train(self) -> bool:
        """False where the device's memory is too small: every family is let go as its last checkpoints left it."""
        together = Together(self.stack, self._next)
        try:
            together.train()
            self.worker.check_memory(self.stack.setup, self.stack.slots)
        except torch.OutOfMemoryError:
            together.let_go()
            return False
        finally:
            for held in self.held.values():
                held.release()
        return True

    def _next(self) -> Member | None:
        """The next family that nobody else holds, if this worker may have one more."""
        while self.left and len(self.held) < self.most and not self.worker.stop.asked:
            member = self._enter(self.left.pop(0))
            if member is not None:
                return member
        return None

    def _enter(self, trials: list[Trial]) -> Member | None:
        worker, family_id = self.worker, trials[0].family_id
        held = _enter(worker, trials)
        if isinstance(held, str):
            self.outcomes[family_id] = held
            return None
        try:
            member = Member(worker.family(trials, held, self.stack), worker.failed, self._ended)
        except Exception as error:  # noqa: BLE001 — whatever ends one family must not end the others
            self.outcomes[family_id] = "failed"
            worker.end(trials, held, "failed", worker.failed(trials[0], error))
            return None
        self.held[member] = held
        return member

    def _ended(self, member: Member) -> None:
        held, trials = self.held.pop(member), member.family.trials
        outcome = ("lost" if held.lost else "stopped") if member.stopped else "failed" if member.failures else "done"
        self.outcomes[member.family.family_id] = outcome
        try:
            self.worker.end(trials, held, outcome, member.failures[0] if outcome == "failed" else None)
        except UserError as error:
            self.outcomes[member.family.family_id] = "failed"
            self.worker.failed(trials[0], error)
