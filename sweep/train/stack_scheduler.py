"""Training families of one shape in one stack: who sits in its slots, and what follows when they arrive.

A family comes in when slots are free. Its trunk takes one; when it comes to a branch, the trial that leaves it there
joins the queue as a curve of its own, behind the trunk's way to the next branch. What happens to a curve between two
steps is `loop.after_update`, as for a curve alone; whatever ends one (its last step, divergence, an error, a lost
claim) frees its slot and leaves the others be. So a stack is only a way to train: each trial is left on disk as it
would be alone.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sweep.plan.trial import Trial
from sweep.train import loop
from sweep.train.curve import Curve, Diverged, State, Stopped
from sweep.train.family import Family, Segment, trial_segment, trunk_segment, waits_for_trunk
from sweep.train.loop import Clock
from sweep.train.stack import Stack


@dataclass(eq=False)
class Member:
    """A family in the stack. `failed` is told each trial's error, `ended` once that nothing of it is left to do."""

    family: Family
    failed: Callable[[Trial, Exception], str]  # writes it down; in one line
    ended: Callable[["Member"], None]
    lanes: int = 0  # in the queue or in a slot
    stopped: bool = False
    let_go: bool = False  # as it is, for its stack cannot go on
    failures: list[str] = field(default_factory=list)


@dataclass(eq=False)
class Lane:
    """What a slot is wanted for: a trial's own steps, or those of its trunk to the next branch."""

    member: Member
    trials: list[Trial]  # one; of a trunk all that wait for it, the next to branch first
    of_trunk: bool
    segment: Segment = field(init=False)  # once it has a slot
    over: bool = False


class StackScheduler:
    """The queue before a stack, and the lanes in it."""

    def __init__(self, stack: Stack, next_family: Callable[[], Member | None]):
        self.stack, self.next_family = stack, next_family
        self.queue: deque[Lane] = deque()
        self.lanes: list[Lane] = []
        self.clock = SharedClock(lambda: [lane.segment.curve.state for lane in self.lanes])

    def train(self) -> None:
        """Train until no family is left. Families that are told to stop leave with everything saved."""
        self._fill()
        while self.lanes:
            self.clock.skip()
            for lane in [*self.lanes]:
                self._attend(lane, partial(self._ask_to_stop, lane))
            if self.lanes:
                self._step()
            self._fill()

    def let_go(self) -> None:
        """Leave every family as its last checkpoints left it."""
        for lane in [*self.lanes, *self.queue]:
            lane.member.let_go = True
            self._remove(lane)
        self.queue.clear()

    def _step(self) -> None:
        """One update of all lanes, then what follows it for each."""
        rates = self.stack.update()
        for lane, (lr, grad_norm) in [(lane, rates[self.stack.slot(lane.segment.curve)]) for lane in self.lanes]:
            self._attend(lane, partial(self._follow, lane, lr, grad_norm))
        self.clock.share()

    def _follow(self, lane: Lane, lr: float, grad_norm: Tensor) -> None:
        curve = lane.segment.curve
        loop.after_update(curve, self.clock, lr, grad_norm)
        if curve.state.step == lane.segment.until:
            loop.arrive(curve, self.clock)
            lane.segment.arrived()
            lane.over = True
            if lane.of_trunk:
                self._queue(lane.member, lane.trials, first=True)

    def _ask_to_stop(self, lane: Lane) -> None:
        if lane.segment.curve.should_stop():
            loop.stop(lane.segment.curve, self.clock)

    def _attend(self, lane: Lane, action: Callable[[], None]) -> None:
        """Do something of one lane. It leaves when it is over; what goes wrong ends this lane alone, but for a device
        whose memory is full: that is the stack's."""
        member = lane.member
        try:
            try:
                action()
            except Diverged:
                lane.segment.diverged()
                lane.over = True
        except Stopped:
            member.stopped = lane.over = True
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # noqa: BLE001 — whatever ends one lane must not end the others
            member.failures += [member.failed(trial, error) for trial in lane.trials]
            lane.over = True
        if lane.over:
            self._remove(lane)

    # ---- into slots and out of them ----

    def _fill(self) -> None:
        while self.stack.free() and (lane := self._next()) is not None:
            self._attend(lane, partial(self._seat, lane))

    def _next(self) -> Lane | None:
        """The next lane that wants a slot; another family is asked for when there is none."""
        while not self.queue:
            member = self.next_family()
            if member is None:
                return None
            self._admit(member)
        return self.queue.popleft()

    def _admit(self, member: Member) -> None:
        missing = member.family.missing()
        self._queue(member, missing)
        if not missing:
            member.ended(member)

    def _queue(self, member: Member, trials: list[Trial], first: bool = False) -> None:
        """Those of a family's trials that can begin, and before them the trunk where others wait for it."""
        waiting = [trial for trial in trials if waits_for_trunk(member.family, trial)]
        lanes = [Lane(member, waiting, of_trunk=True)] if waiting else []
        lanes += [Lane(member, [trial], of_trunk=False) for trial in trials if trial not in waiting]
        member.lanes += len(lanes)
        if first:
            self.queue.extendleft(reversed(lanes))
        else:
            self.queue.extend(lanes)

    def _seat(self, lane: Lane) -> None:
        """Begin a segment: its curve gets a slot, and is read from there whenever it is looked at."""
        family, trial = lane.member.family, lane.trials[0]  # what is told of a trunk is told as its next trial's
        if family.should_stop():
            raise Stopped
        lane.segment = (trunk_segment if lane.of_trunk else trial_segment)(family, trial)
        curve = lane.segment.curve
        save = curve.save
        family.tell_progress(trial, curve.state.step)
        if curve.state.step == lane.segment.until:  # the attempt before ended between its checkpoint and its record
            lane.segment.arrived()
            lane.over = True
            return

        def save_from_slot(curve: Curve) -> None:
            self.stack.read(curve, moments=True)
            save(curve)
            curve.state.optimizer.state.clear()

        def on_progress(news: dict[str, Any]) -> None:
            if "tokens_per_second" in news:  # counted for all lanes; this one's share tells when it is done
                news = {**news, "tokens_per_second": news["tokens_per_second"] / len(self.lanes)}
            family.on_progress({"trial_id": trial.trial_id, "steps": trial.config.steps, **news})

        curve.save, curve.on_progress = save_from_slot, on_progress
        curve.fetch = partial(self.stack.read, curve)
        self.stack.seat(curve)
        self.clock.skip()
        curve.saved_at = self.clock.last
        self.lanes.append(lane)

    def _remove(self, lane: Lane) -> None:
        if lane in self.lanes:
            self.lanes.remove(lane)
            self.stack.leave(lane.segment.curve)
        lane.member.lanes -= 1
        if lane.member.lanes == 0:
            lane.member.ended(lane.member)
        self.clock.skip()  # its record is not the others' training


class SharedClock(Clock):
    """A stack's: the time of a step is divided evenly; what is done for one lane alone is charged to that one."""

    def __init__(self, states: Callable[[], list[State]]) -> None:
        super().__init__()
        self.states = states

    def charge_training(self, state: State) -> None:
        self.share()

    def share(self) -> None:
        elapsed, states = self.lap(), self.states()
        for state in states:
            state.seconds += elapsed / len(states)
            state.row_seconds += elapsed / len(states)
