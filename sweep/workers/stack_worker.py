"""A worker's stack: families of one shape, each under its claim, trained together until none is left.

No more families are held at a time than this worker's share of them, so that the others have theirs.
"""

import math

import torch

from sweep.common.devices import free_memory
from sweep.common.errors import UserError
from sweep.plan.trial import Trial
from sweep.train.stack import Stack
from sweep.train.stack_scheduler import Member, StackScheduler
from sweep.workers import memory
from sweep.workers.attempt import Attempt, NotBegun, Outcome, in_one_line, set_up, tell_failure
from sweep.workers.context import WorkerContext
from sweep.workers.family_worker import train_family


class NoStack(Exception):
    """These families cannot be stacked; each alone meets what is in the way, and tells of it as its own."""


def train_stack(context: WorkerContext, families: list[list[Trial]], slots: int) -> dict[str, Outcome]:
    """How each family went. A stack that the device has no memory for is halved, in the end to no stack at all."""
    try:
        return _train(context, families, slots)
    finally:
        free_memory(context.device)


def _train(context: WorkerContext, families: list[list[Trial]], slots: int) -> dict[str, Outcome]:
    outcomes: dict[str, Outcome] = {}
    while slots and not context.stop.asked:
        free_memory(context.device)  # of who was there before; an error's frames hold their tensors until it is over
        try:
            StackRun(context, families, _stack(context, families[0], slots), outcomes).train()
            return outcomes
        except NoStack as why:
            context.log(str(why))
            break
        except torch.OutOfMemoryError:
            fewer = slots // 2
            context.log(f"out of device memory with a stack of {slots}; going on with {fewer or 'one trial'} at a time")
            slots = fewer
        except UserError as error:
            return outcomes | _fail(context, [t for t in families if t[0].family_id not in outcomes], error)
    free_memory(context.device)
    for trials in _left(families, outcomes):
        if not context.stop.asked:
            outcomes[trials[0].family_id] = train_family(context, trials)
    return outcomes


def _stack(context: WorkerContext, trials: list[Trial], slots: int) -> Stack:
    """NoStack where there cannot be one, but UserError where a graph was asked for and cannot be had."""
    graph = context.options.graph and context.device == "cuda"
    try:
        setup, _ = set_up(context, trials, slots=slots)
        return Stack(setup, slots, graph)
    except torch.OutOfMemoryError:
        raise
    except (UserError, RuntimeError) as error:
        why = in_one_line(error)
        if graph and not isinstance(error, UserError):
            raise UserError(f"run.graph=true: the step cannot be captured ({why}); give run.graph=false") from error
        raise NoStack(f"no stack of {slots}, each trial alone: {why}") from error


def _fail(context: WorkerContext, families: list[list[Trial]], error: UserError) -> dict[str, Outcome]:
    """How families went that nothing can be done for: each an attempt that failed, unless it is done or another's."""
    outcomes: dict[str, Outcome] = {}
    for trials in families:
        try:
            outcomes[trials[0].family_id] = Attempt.begin(context, trials).fail(error)
        except NotBegun as why:
            outcomes[trials[0].family_id] = why.outcome
    return outcomes


def _left(families: list[list[Trial]], outcomes: dict[str, Outcome]) -> list[list[Trial]]:
    """Those that no stack has come to, or that one has let go."""
    return [trials for trials in families if outcomes.get(trials[0].family_id) in (None, "let go")]


class StackRun:
    """The families of a stack, and how each of them went."""

    def __init__(
        self, context: WorkerContext, families: list[list[Trial]], stack: Stack, outcomes: dict[str, Outcome]
    ) -> None:
        self.context, self.stack, self.outcomes = context, stack, outcomes
        self.left = _left(families, outcomes)
        self.most = math.ceil(len(families) / context.peers)
        self.attempts: dict[Member, Attempt] = {}

    def train(self) -> None:
        """torch.OutOfMemoryError where the device is too small, NoStack where a step of all breaks off for another
        reason: every family is let go as last saved."""
        scheduler = StackScheduler(self.stack, self._next)
        try:
            scheduler.train()
            memory.compare_with_model(self.context, self.stack.setup, self.stack.slots)
        except torch.OutOfMemoryError:
            scheduler.let_go()
            raise
        except Exception as error:
            scheduler.let_go()
            raise NoStack(f"a stack of {self.stack.slots} broke off, each trial alone: {in_one_line(error)}") from error
        finally:
            for attempt in self.attempts.values():
                attempt.held.release()

    def _next(self) -> Member | None:
        """The next family that nobody else holds, if this worker may have one more."""
        while self.left and len(self.attempts) < self.most and not self.context.stop.asked:
            member = self._begin(self.left.pop(0))
            if member is not None:
                return member
        return None

    def _begin(self, trials: list[Trial]) -> Member | None:
        family_id = trials[0].family_id
        try:
            attempt = Attempt.begin(self.context, trials)
        except NotBegun as why:
            self.outcomes[family_id] = why.outcome
            return None
        try:
            family = attempt.family(self.stack)
        except Exception as error:  # noqa: BLE001 — whatever ends one family must not end the others
            self.outcomes[family_id] = attempt.fail(error)
            return None
        member = Member(family, lambda trial, error: tell_failure(self.context, trial, error), self._ended)
        self.attempts[member] = attempt
        return member

    def _ended(self, member: Member) -> None:
        attempt = self.attempts.pop(member)
        if member.let_go:
            outcome = attempt.end("let go")
        elif member.stopped:
            outcome = attempt.stop()
        elif member.failures:
            outcome = attempt.end("failed", member.failures[0])
        else:
            outcome = attempt.end("done")
        self.outcomes[member.family.family_id] = outcome
