"""Training families of one shape in one stack: who sits in its slots, and what follows when they arrive.

A family comes in when slots are free. Its trunk takes one, and each time that it comes to a branch, the trial that
leaves it there joins the queue as a curve of its own. What happens to a curve between two steps is `loop.after_update`,
as for a curve alone; whatever ends one (its last step, divergence, an error, a lost claim) frees its slot and leaves
the others be. So a stack is only a way to train: each trial is left on disk as it would be alone.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from sweep.training import loop
from sweep.training.curve import Curve, Diverged, State, Stopped
from sweep.training.family import Course, Family, trial_course, trunk_course, waits_for_trunk
from sweep.training.loop import Clock
from sweep.training.stack import Stack
from sweep.trial import Trial


@dataclass(eq=False)
class Member:
    """A family in the stack. `failed` is told each trial's error, `ended` once that nothing of it is left to do."""

    family: Family
    failed: Callable[[Trial, Exception], str]  # writes it down; in one line
    ended: Callable[["Member"], None]
    lanes: int = 0  # in the queue or in a slot
    stopped: bool = False
    failures: list[str] = field(default_factory=list)


@dataclass(eq=False)
class Lane:
    """What a slot is wanted for: a trial's own curve, or the trunk for all trials that wait for it."""

    member: Member
    trials: list[Trial]
    course: Course
    curve: Curve = field(init=False)  # once it has a slot
    until: int = field(init=False)


class StackScheduler:
    """The queue before a stack, and the lanes in it."""

    def __init__(self, stack: Stack, next_family: Callable[[], Member | None]):
        self.stack, self.next_family = stack, next_family
        self.queue: deque[Lane] = deque()
        self.lanes: list[Lane] = []
        self.clock = SharedClock(lambda: [lane.curve.state for lane in self.lanes])

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
            lane.member.stopped = True
            self._remove(lane)
        self.queue.clear()

    def _step(self) -> None:
        """One update of all lanes, then what follows it for each."""
        rates = self.stack.update()
        for lane, (lr, grad_norm) in [(lane, rates[self.stack.slot(lane.curve)]) for lane in self.lanes]:
            self._attend(lane, partial(self._follow, lane, lr, grad_norm))
        self.clock.share()

    def _follow(self, lane: Lane, lr: float, grad_norm: Tensor) -> None:
        loop.after_update(lane.curve, self.clock, lr, grad_norm)
        if lane.curve.state.step == lane.until:
            loop.arrive(lane.curve, self.clock)
            lane.curve, lane.until = next(lane.course)
            self.clock.skip()

    def _ask_to_stop(self, lane: Lane) -> None:
        if lane.curve.should_stop():
            loop.stop(lane.curve, self.clock)

    def _attend(self, lane: Lane, action: Callable[[], None]) -> None:
        """Do something of one lane. It leaves when its course is over; what goes wrong ends this lane alone."""
        member = lane.member
        try:
            try:
                action()
                return
            except Diverged as diverged:
                lane.course.throw(diverged)  # it writes the record, and has nothing more to train
        except StopIteration:
            pass
        except Stopped:
            member.stopped = True
        except Exception as error:  # noqa: BLE001 — whatever ends one lane must not end the others
            member.failures += [member.failed(trial, error) for trial in lane.trials]
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
        family, missing = member.family, member.family.missing()
        waiting = [trial for trial in missing if waits_for_trunk(family, trial)]
        if waiting:
            self._queue(Lane(member, waiting, trunk_course(family, waiting, partial(self._at_branch, member))))
        for trial in missing:
            if trial not in waiting:
                self._queue(Lane(member, [trial], trial_course(family, trial)))
        if not missing:
            member.ended(member)

    def _at_branch(self, member: Member, trial: Trial) -> None:
        self._queue(Lane(member, [trial], trial_course(member.family, trial)), first=True)

    def _queue(self, lane: Lane, first: bool = False) -> None:
        lane.member.lanes += 1
        self.queue.insert(0 if first else len(self.queue), lane)

    def _seat(self, lane: Lane) -> None:
        """Begin a course: its curve gets a slot, and is read from there whenever it is looked at."""
        family, trial = lane.member.family, lane.trials[-1]  # what is told of a trunk is told as its longest trial's
        if family.should_stop():
            raise Stopped
        lane.curve, lane.until = next(lane.course)
        curve, save = lane.curve, lane.curve.save

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
            self.stack.leave(lane.curve)
        lane.member.lanes -= 1
        if lane.member.lanes == 0:
            lane.member.ended(lane.member)


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
