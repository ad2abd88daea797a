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
from sweep.training.family import Course, Family, trial_course, trunk_course, waits_for_trunk
from sweep.training.loop import Clock, Curve, Diverged, State, Stopped
from sweep.training.stack import Stack
from sweep.trial import Trial


@dataclass(eq=False)
class Member:
    """A family in the stack. `failed` is told each trial's error, `ended` once that nothing of it is left to do."""

    family: Family
    failed: Callable[[Trial, Exception], str]  # writes it down; in one line
    ended: Callable[["Member"], None]
    rows: int = 0  # in the queue or in a slot
    stopped: bool = False
    failures: list[str] = field(default_factory=list)


@dataclass(eq=False)
class Row:
    """What a slot is wanted for: a trial's own curve, or the trunk for all trials that wait for it."""

    member: Member
    trials: list[Trial]
    course: Course
    curve: Curve = field(init=False)  # once it has a slot
    until: int = field(init=False)


class Together:
    """The queue before a stack, and the rows in it."""

    def __init__(self, stack: Stack, next_family: Callable[[], Member | None]):
        self.stack, self.next_family = stack, next_family
        self.queue: deque[Row] = deque()
        self.rows: list[Row] = []
        self.clock = SharedClock(lambda: [row.curve.state for row in self.rows])

    def train(self) -> None:
        """Train until no family is left. Families that are told to stop leave with everything saved."""
        self._fill()
        while self.rows:
            self.clock.skip()
            for row in [*self.rows]:
                self._attend(row, partial(self._ask_to_stop, row))
            if self.rows:
                self._step()
            self._fill()

    def let_go(self) -> None:
        """Leave every family as its last checkpoints left it."""
        for row in [*self.rows, *self.queue]:
            row.member.stopped = True
            self._remove(row)
        self.queue.clear()

    def _step(self) -> None:
        """One update of all rows, then what follows it for each."""
        rates = self.stack.update()
        for row, (lr, grad_norm) in [(row, rates[self.stack.slot(row.curve)]) for row in self.rows]:
            self._attend(row, partial(self._follow, row, lr, grad_norm))
        self.clock.share()

    def _follow(self, row: Row, lr: float, grad_norm: Tensor) -> None:
        loop.after_update(row.curve, self.clock, lr, grad_norm)
        if row.curve.state.step == row.until:
            loop.arrive(row.curve, self.clock)
            row.curve, row.until = next(row.course)
            self.clock.skip()

    def _ask_to_stop(self, row: Row) -> None:
        if row.curve.should_stop():
            loop.stop(row.curve, self.clock)

    def _attend(self, row: Row, action: Callable[[], None]) -> None:
        """Do something of one row. It leaves when its course is over; what goes wrong ends this row alone."""
        member = row.member
        try:
            try:
                action()
                return
            except Diverged as diverged:
                row.course.throw(diverged)  # it writes the record, and has nothing more to train
        except StopIteration:
            pass
        except Stopped:
            member.stopped = True
        except Exception as error:  # noqa: BLE001 — whatever ends one row must not end the others
            member.failures += [member.failed(trial, error) for trial in row.trials]
        self._remove(row)

    # ---- into slots and out of them ----

    def _fill(self) -> None:
        while self.stack.free() and (row := self._next()) is not None:
            self._attend(row, partial(self._seat, row))

    def _next(self) -> Row | None:
        """The next row that wants a slot; another family is asked for when there is none."""
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
            self._queue(Row(member, waiting, trunk_course(family, waiting, partial(self._at_branch, member))))
        for trial in missing:
            if trial not in waiting:
                self._queue(Row(member, [trial], trial_course(family, trial)))
        if not missing:
            member.ended(member)

    def _at_branch(self, member: Member, trial: Trial) -> None:
        self._queue(Row(member, [trial], trial_course(member.family, trial)), first=True)

    def _queue(self, row: Row, first: bool = False) -> None:
        row.member.rows += 1
        self.queue.insert(0 if first else len(self.queue), row)

    def _seat(self, row: Row) -> None:
        """Begin a course: its curve gets a slot, and is read from there whenever it is looked at."""
        family, trial = row.member.family, row.trials[-1]  # a trunk goes by its longest trial
        if family.should_stop():
            raise Stopped
        row.curve, row.until = next(row.course)
        curve, save = row.curve, row.curve.save

        def save_from_slot(curve: Curve) -> None:
            self.stack.read(curve, moments=True)
            save(curve)
            curve.state.optimizer.state.clear()

        def on_progress(news: dict[str, Any]) -> None:
            if "tokens_per_second" in news:  # of all rows, in metrics; of this one for who waits for it
                news = {**news, "tokens_per_second": news["tokens_per_second"] / len(self.rows)}
            family.on_progress({"trial_id": trial.trial_id, "steps": trial.config.steps, **news})

        curve.save, curve.on_progress = save_from_slot, on_progress
        curve.fetch = partial(self.stack.read, curve)
        self.stack.seat(curve)
        self.clock.skip()
        curve.saved_at = self.clock.last
        self.rows.append(row)

    def _remove(self, row: Row) -> None:
        if row in self.rows:
            self.rows.remove(row)
            self.stack.leave(row.curve)
        row.member.rows -= 1
        if row.member.rows == 0:
            row.member.ended(row.member)


class SharedClock(Clock):
    """A stack's: the time of a step is divided evenly; what is done for one row alone is charged to that one."""

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
