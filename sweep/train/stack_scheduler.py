"""Training families of one shape in one stack: which curves have its slots, and what follows when they arrive.

When slots are free, a family is asked for. Its trunk takes a slot; when it comes to a branch, the trial that leaves it
there joins the queue with a curve of its own, behind the trunk on its way to the next branch. What happens to a curve
between two steps is `loop.after_update`, as for a curve alone. Whatever ends one (its last step, divergence, an error,
a lost claim) frees its slot and leaves the others as they are. So a stack is only a way to train: each trial is on disk
as it would be alone.
"""

from collections import deque
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from sweep.plan.trial import Trial
from sweep.train import loop
from sweep.train.curve import Diverged, State, Stopped
from sweep.train.family import Family, FamilyCurve, TrialCurve, TrunkCurve
from sweep.train.loop import Clock
from sweep.train.stack import Stack


class StackScheduler:
    """The queue before a stack, and the curves in it.

    `next_family` gives the next family to train, or None where there is none. Each family's owner hears of every trial
    that fails, and once that nothing is left to do.
    """

    def __init__(self, stack: Stack, next_family: Callable[[], Family | None]):
        self.stack, self.next_family = stack, next_family
        # What slots are wanted for: the trunk, for all trials that wait for it; or one trial's own steps.
        self.queue: deque[tuple[Family, list[Trial]]] = deque()
        self.curves: list[FamilyCurve] = []
        self.stopped: set[str] = set()  # ids of families
        self.clock = SharedClock(self.curves)

    def train(self) -> None:
        """Train until no family is left. Families that are told to stop leave with everything saved."""
        self._fill()
        while self.curves:
            self.clock.skip()
            for curve in [*self.curves]:
                self._attend(curve, partial(self._stop_if_asked, curve))
            if self.curves:
                self._step()
            self._fill()

    def let_go(self) -> None:
        """Leave every family as its last checkpoints left it."""
        families = {f.family_id: f for f in (*(c.family for c in self.curves), *(f for f, _ in self.queue))}
        for curve in self.curves:
            self.stack.leave(curve)
        self.curves.clear()
        self.queue.clear()
        for family in families.values():
            family.owner.end("let go")

    def _step(self) -> None:
        """One update of all curves, then what follows it for each."""
        rates = self.stack.update()
        for curve, (lr, grad_norm) in [(curve, rates[self.stack.slot(curve)]) for curve in self.curves]:
            self._attend(curve, partial(self._follow, curve, lr, grad_norm))
        self.clock.share()

    def _follow(self, curve: FamilyCurve, lr: float, grad_norm: Tensor) -> bool:
        """What follows an update; whether the curve has arrived."""
        loop.after_update(curve, self.clock, lr, grad_norm)
        if curve.state.step < curve.until:
            return False
        loop.arrive(curve, self.clock)
        curve.arrived()
        if isinstance(curve, TrunkCurve):
            self._queue(curve.family, curve.trials, first=True)
        return True

    def _stop_if_asked(self, curve: FamilyCurve) -> bool:
        if curve.should_stop():
            loop.stop(curve, self.clock)
        return False

    def _attend(self, curve: FamilyCurve, action: Callable[[], bool]) -> None:
        """Do something for one curve, which says whether it is over; then it leaves."""

        def attended() -> bool:
            try:
                return action()
            except Diverged:
                curve.diverged()
                return True

        if self._is_over(curve.family, curve.trials, attended):
            self.curves.remove(curve)
            self.stack.leave(curve)
            self._end_if_done(curve.family)

    def _is_over(self, family: Family, trials: list[Trial], action: Callable[[], bool]) -> bool:
        """Do something for these trials; whether they are done with. What goes wrong ends them alone, except that full
        device memory is a matter of the whole stack."""
        try:
            return action()
        except Stopped:
            self.stopped.add(family.family_id)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # noqa: BLE001 — whatever ends one curve must not end the others
            for trial in trials:
                family.owner.fail(trial, error)
        return True

    def _end_if_done(self, family: Family) -> None:
        """Tell the family's owner, if it has no curve any more and none in the queue."""
        if not any(other is family for other in (*(c.family for c in self.curves), *(f for f, _ in self.queue))):
            family.owner.end("stopped" if family.family_id in self.stopped else "done")
        self.clock.skip()  # writing its record is not the others' training

    # ---- into the slots ----

    def _fill(self) -> None:
        """Give free slots to the queue, and ask for another family when the queue is empty."""
        while self.stack.free():
            while not self.queue:
                if (family := self.next_family()) is None:
                    return
                self._queue(family, family.missing())
                if not self.queue:
                    self._end_if_done(family)
            family, trials = self.queue[0]  # it stays there where the device has no memory for it: the family is let go
            over = self._is_over(family, trials, partial(self._seat, family, trials))
            self.queue.popleft()
            if over:
                self._end_if_done(family)

    def _queue(self, family: Family, trials: list[Trial], first: bool = False) -> None:
        """Queue the trials that can begin, and before them the trunk where others wait for it."""
        waiting = [trial for trial in trials if family.waits_for_trunk(trial)]
        wanted = [waiting] if waiting else []
        wanted += [[trial] for trial in trials if trial not in waiting]
        entries = [(family, wanting) for wanting in wanted]
        if first:
            self.queue.extendleft(reversed(entries))
        else:
            self.queue.extend(entries)

    def _seat(self, family: Family, trials: list[Trial]) -> bool:
        """Give a curve a slot; True where it needs none."""
        if family.owner.should_stop():
            raise Stopped
        trunk = family.waits_for_trunk(trials[0])
        curve = TrunkCurve.open(family, trials) if trunk else TrialCurve.open(family, trials[0])
        curve.report()
        if curve.state.step == curve.until:  # the attempt before ended between its checkpoint and its record
            curve.arrived()
            return True
        self.stack.seat(curve)
        self.clock.skip()
        curve.saved_at = self.clock.last
        self.curves.append(curve)
        return False


class SharedClock(Clock):
    """A stack's clock: a step's time is divided evenly; what is done for one curve alone is charged to that one."""

    def __init__(self, curves: list[FamilyCurve]) -> None:
        super().__init__()
        self.curves = curves

    def charge_training(self, state: State) -> None:
        self.share()

    def share(self) -> None:
        """Charge the time since the last lap to all curves, in equal parts."""
        elapsed = self.lap()
        for curve in self.curves:
            curve.state.seconds += elapsed / len(self.curves)
            curve.state.row_seconds += elapsed / len(self.curves)
