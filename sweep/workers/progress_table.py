"""The live table of a launch on this machine: who trains what, how far it is, and how long the rest will take."""

import time

from rich.console import Group
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from sweep.common.errors import UserError
from sweep.common.units import duration, short
from sweep.plan.plan import Plan
from sweep.runs.claim import Heartbeat
from sweep.runs.record import Record
from sweep.runs.rundir import RunDir
from sweep.runs.state import States


class ProgressTable:
    """How far a plan is. Reads the run folders only; printed by rich."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self.trials = {trial.trial_id: trial for trial in plan.trials}
        self.families = plan.families()
        self.started = time.monotonic()
        self.done: set[str] = set()
        self.beats: list[Heartbeat] = []
        self.work_before = 0.0
        self.update()
        self.work_before = self._work()

    def update(self) -> None:
        """Look at the run folders again."""
        self.done, states = self.plan.done(), States(self.plan.runs)
        self.beats = []
        for family in self.families:
            if all(trial.trial_id in self.done for trial in family):
                continue
            held = states.held(family[0].family_id)
            if held is not None and not held.is_silent and held.heartbeat.trial_id in self.trials:
                self.beats.append(held.heartbeat)

    def outcome(self, trial_id: str) -> str:
        """One line on a trial that has just ended."""
        try:
            record = Record.read(RunDir.of_trial(self.plan.runs, trial_id).record)
        except UserError as error:
            return str(error)
        loss = f"{record.loss_nats:.4f} nats" if record.loss_nats is not None else record.status
        times = f"{duration(time.monotonic() - self.started)}, {duration(self.time_left())} left"
        return f"{trial_id:<36} {loss}  ({times})"

    def _work(self) -> float:
        """Estimated device seconds of what is trained already."""
        seconds = sum(self.plan.family_seconds([t for t in f if t.trial_id in self.done]) for f in self.families)
        return seconds + sum(
            beat.step / max(1, beat.steps) * self.plan.estimates[str(beat.trial_id)].seconds for beat in self.beats
        )

    def time_left(self) -> float:
        """Seconds, from how fast the estimated work has been done since the start; NaN where nothing has been yet."""
        total = sum(self.plan.family_seconds(family) for family in self.families)
        work = self._work()
        elapsed = time.monotonic() - self.started
        gained = work - self.work_before
        return max(0.0, total - work) * elapsed / gained if gained > 0 else float("nan")

    def __rich__(self) -> Group:
        bar = Progress(
            TextColumn(f"sweep {self.plan.name}"), BarColumn(40), TextColumn("{task.completed}/{task.total} trials"),
            TextColumn(f"{duration(time.monotonic() - self.started)}, {duration(self.time_left())} left"),
        )  # fmt: skip
        bar.add_task("", total=len(self.trials), completed=len(self.done))
        table = Table(box=None, pad_edge=False)
        for heading in ("training", "N", "D", "step", "loss", "tokens/s", "left"):
            table.add_column(heading, justify="left" if heading == "training" else "right", no_wrap=True)
        for beat in self.beats:
            trial = self.trials[str(beat.trial_id)]
            speed, loss = beat.tokens_per_second, beat.loss_nats
            left = (trial.config.steps - beat.step) * trial.config.batch_tokens
            table.add_row(
                trial.trial_id,
                short(trial.params_non_embedding),
                short(trial.tokens),
                f"{beat.step}/{trial.config.steps}",
                f"{loss:.4f}" if loss else "",
                f"{speed:,.0f}" if speed else "",
                duration(left / speed) if speed else "",
            )
        return Group(bar, table)
