"""Training families of one shape in a stack, each under its own claim, until none is left.

A worker holds no more families at a time than its share of them, so that the other workers have theirs.
"""

import math

import torch

from sweep.common.devices import free_memory
from sweep.common.errors import UserError
from sweep.plan.trial import Trial
from sweep.train.family import Family
from sweep.train.stack import Stack
from sweep.train.stack_scheduler import StackScheduler
from sweep.workers import memory
from sweep.workers.attempt import Attempt, Outcome, begin, in_one_line, set_up, train_family
from sweep.workers.worker import Worker


class NoStack(Exception):
    """These families cannot be stacked. Each is trained alone, and tells of what is in its way itself."""


def train_stack(worker: Worker, families: list[list[Trial]], slots: int) -> dict[str, Outcome]:
    """How each family went. A stack that does not fit into device memory is halved, in the end to no stack at all."""
    try:
        return _train(worker, families, slots)
    finally:
        free_memory(worker.device)


def _train(worker: Worker, families: list[list[Trial]], slots: int) -> dict[str, Outcome]:
    outcomes: dict[str, Outcome] = {}
    while slots and not worker.stop.asked:
        free_memory(worker.device)  # of the stack before; an error's frames hold their tensors until it is handled
        try:
            _train_together(worker, families, _stack(worker, families[0], slots), outcomes)
            return outcomes
        except NoStack as why:
            worker.log(str(why))
            break
        except torch.OutOfMemoryError:
            fewer = slots // 2
            worker.log(f"out of device memory with a stack of {slots}; going on with {fewer or 'one trial'} at a time")
            slots = fewer
        except UserError as error:
            return outcomes | _fail(worker, [t for t in families if t[0].family_id not in outcomes], error)
    free_memory(worker.device)
    for trials in _left(families, outcomes):
        if not worker.stop.asked:
            outcomes[trials[0].family_id] = train_family(worker, trials)
    return outcomes


def _stack(worker: Worker, trials: list[Trial], slots: int) -> Stack:
    """An empty stack. NoStack where there cannot be one; UserError where a graph that was asked for cannot be had."""
    graph = worker.options.graph and worker.device == "cuda"
    try:
        setup, _ = set_up(worker, trials, slots=slots)
        return Stack(setup, slots, graph)
    except torch.OutOfMemoryError:
        raise
    except (UserError, RuntimeError) as error:
        why = in_one_line(error)
        if graph and not isinstance(error, UserError):
            raise UserError(f"run.graph=true: the step cannot be captured ({why}); give run.graph=false") from error
        raise NoStack(f"no stack of {slots}, each trial alone: {why}") from error


def _fail(worker: Worker, families: list[list[Trial]], error: UserError) -> dict[str, Outcome]:
    """How families went that cannot be trained: each an attempt that failed, unless it is done or somebody else's."""
    outcomes: dict[str, Outcome] = {}
    for trials in families:
        begun = begin(worker, trials)
        outcomes[trials[0].family_id] = begun.cannot_begin(error) if isinstance(begun, Attempt) else begun
    return outcomes


def _left(families: list[list[Trial]], outcomes: dict[str, Outcome]) -> list[list[Trial]]:
    """Families that no stack has begun, or that one has let go."""
    return [trials for trials in families if outcomes.get(trials[0].family_id) in (None, "let go")]


def _train_together(worker: Worker, families: list[list[Trial]], stack: Stack, outcomes: dict[str, Outcome]) -> None:
    """Train families in a stack until none is left; how each went is put into `outcomes`.

    torch.OutOfMemoryError where device memory is too small, NoStack where a step of all breaks off for another reason:
    every family is then let go as last saved.
    """
    left = _left(families, outcomes)
    most = math.ceil(len(families) / worker.peers)
    attempts: list[Attempt] = []

    def next_family() -> Family | None:
        """The next family that nobody else holds, if this worker may have one more."""
        while left and sum(one.outcome is None for one in attempts) < most and not worker.stop.asked:
            trials = left.pop(0)
            begun = begin(worker, trials)
            if not isinstance(begun, Attempt):
                outcomes[trials[0].family_id] = begun
                continue
            attempts.append(begun)
            try:
                return begun.family(stack)
            except Exception as error:  # noqa: BLE001 — whatever ends one family must not end the others
                begun.cannot_begin(error)
        return None

    scheduler = StackScheduler(stack, next_family)
    try:
        scheduler.train()
        memory.compare_with_model(worker, stack.setup, stack.slots)
    except torch.OutOfMemoryError:
        scheduler.let_go()
        raise
    except Exception as error:
        scheduler.let_go()
        raise NoStack(f"a stack of {stack.slots} broke off, each trial alone: {in_one_line(error)}") from error
    finally:
        for attempt in attempts:
            if attempt.outcome is None:
                attempt.held.release()
            else:
                outcomes[attempt.family_id] = attempt.outcome
