"""How a sweep stands: what is finished, running, waiting, queued, failed or lost. Reads only.

  python -m sweep status                    all sweeps, with counts
  python -m sweep status default            one sweep: totals, what runs, what waits for what, what went wrong
  python -m sweep status default --all      every trial
  python -m sweep status default --watch    again and again, until nothing runs or waits
  python -m sweep status default --json     for programs

States:
  finished, diverged   it has a record; damaged: the record cannot be read
  running, stalled     it is being trained; stalled: without a sign of life for two minutes
  waiting, queued      its turn comes after others of its family, job or launch; queued: with Slurm's reason
  failed, given up     with the line of the error (`logs RUN` shows more); given up: until a person says `retry`
  lost                 its attempt or its job exited without reporting a result; `launch` again goes on
  missing              nobody trains it; `launch` does

On a cluster it asks Slurm, and where that does not answer it shows what the run folders say. Exit status 0.
"""

import argparse
import json
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from slurm.queue_state import QueueState, ask
from sweep.common.console import open_console
from sweep.common.errors import UserError
from sweep.common.units import duration
from sweep.runs import launches
from sweep.runs.lookup import add_sweep
from sweep.runs.state import KINDS, MAY_CHANGE, Kind, States, TrialState
from sweep.runs.sweepdir import SweepDir

SHOWN = 12  # trials of a state, without --all
WATCH_SECONDS = 5.0
COLORS: dict[Kind, str] = {
    "finished": "green",
    "diverged": "magenta",
    "running": "cyan",
    "stalled": "yellow",
    "failed": "red",
    "given up": "red",
    "damaged": "red",
    "lost": "yellow",
}
WENT_WRONG: tuple[Kind, ...] = ("failed", "given up", "damaged", "stalled", "lost")
NOT_YET: tuple[Kind, ...] = ("waiting", "queued", "missing")


@dataclass(frozen=True)
class StatusRow:
    """One trial, as `--json` has it; `note` says why it is in its state, `where` the node or host, and the job."""

    trial_id: str
    family_id: str
    state: Kind
    note: str
    where: str
    step: int | None = None
    steps: int | None = None
    tokens_per_second: float | None = None
    seconds_left: float | None = None

    @classmethod
    def of(cls, trial: TrialState, steps: int, batch_tokens: int) -> "StatusRow":
        """With how far it is, where it is being trained."""
        facts = (trial.trial_id, trial.family_id, trial.kind, trial.reason, trial.where)
        if trial.kind not in ("running", "stalled") or trial.held is None:
            return cls(*facts)
        beat = trial.held.heartbeat
        if beat.trial_id != trial.trial_id:
            return cls(*facts)
        speed = beat.tokens_per_second
        left = (steps - beat.step) * batch_tokens / speed if speed else None
        return cls(*facts, beat.step, steps, speed, left)


@dataclass(frozen=True)
class Status:
    """A sweep: its trials in the order of its plan, and what Slurm said."""

    sweep: str
    trials: list[StatusRow]
    queue: QueueState

    def counts(self) -> Counter[Kind]:
        return Counter(trial.state for trial in self.trials)


def look(sweep: SweepDir) -> Status:
    """How every trial of a sweep stands. Slurm is asked once, for all jobs of the sweep; metrics are not read."""
    queue = ask(sweep)
    states = States(Path(sweep.settings().paths.runs), queue, launches.alive(sweep.path))
    trials = [
        StatusRow.of(states.trial(line.trial_id, line.family_id), line.steps, line.batch_tokens)
        for line in sweep.planned()
    ]
    return Status(sweep.name, trials, queue)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_sweep(parser, about="the sweep's name or folder (default: list them all)", nargs="?")
    parser.add_argument("--all", action="store_true", help="every trial, however many")
    parser.add_argument("--watch", action="store_true", help="keep showing it")
    parser.add_argument("--json", action="store_true", help="as JSON on standard output")


def run(args: argparse.Namespace) -> int:
    console = open_console()
    if args.sweep is None:
        return _list(args, console)
    sweep = SweepDir.find(args.sweep, args.sweeps)
    if args.json:
        print(json.dumps(to_json(look(sweep)), indent=1))
    elif args.watch:
        _watch(sweep, args, console)
    else:
        console.print(table(look(sweep), args.all))
    return 0


def _list(args: argparse.Namespace, console: Console) -> int:
    """One line for each sweep."""
    counts: dict[str, Counter[Kind]] = {}
    damaged: dict[str, str] = {}
    for path in sorted(Path(args.sweeps).glob("*/plan.jsonl")):
        sweep = SweepDir(path.parent)
        try:
            counts[sweep.name] = look(sweep).counts()
        except UserError as error:
            damaged[sweep.name] = str(error)
    if args.json:
        print(json.dumps(counts, indent=1))
    elif counts or damaged:
        console.print(_overview(counts, damaged))
    else:
        console.print(f"{args.sweeps}/ has no sweep yet; `python -m sweep launch sweep=default` makes one")
    return 0


def _overview(counts: dict[str, Counter[Kind]], damaged: dict[str, str]) -> Table:
    """A row for each sweep, with a column for each state that any trial is in."""
    kinds = [kind for kind in KINDS if any(of_sweep[kind] for of_sweep in counts.values())]
    shown = Table(box=None, pad_edge=False)
    for heading in ("sweep", "trials", *kinds):
        shown.add_column(heading, justify="left" if heading == "sweep" else "right")
    for name, of_sweep in counts.items():
        shown.add_row(name, str(of_sweep.total()), *(str(of_sweep[kind] or "") for kind in kinds))
    for name, error in damaged.items():
        shown.add_row(name, error)
    return shown


def _watch(sweep: SweepDir, args: argparse.Namespace, console: Console) -> None:
    """Show it until nothing can change any more by itself, or Ctrl-C."""
    status = look(sweep)
    with Live(table(status, args.all), console=console, auto_refresh=False, vertical_overflow="visible") as live:
        while set(MAY_CHANGE) & status.counts().keys():
            time.sleep(WATCH_SECONDS)
            status = look(sweep)
            live.update(table(status, args.all), refresh=True)


def to_json(status: Status) -> dict[str, object]:
    """`slurm.answers` is null where there was nothing to ask it about."""
    queue = status.queue
    return {
        "sweep": status.sweep,
        "counts": dict(status.counts()),
        "slurm": {"answers": queue.answers if queue.submissions else None, "jobs": dict(queue.beside())},
        "problems": queue.problems,
        "trials": [asdict(trial) for trial in status.trials],
    }


def table(status: Status, everything: bool) -> Group:
    """Totals first; then what runs, what went wrong, what waits and why."""
    counts = status.counts()
    totals = Text(f"sweep {status.sweep}: {len(status.trials)} trials")
    for state in KINDS:
        if counts[state]:
            totals.append(f"  {counts[state]} {state}", style=COLORS.get(state, ""))
    parts: list[RenderableType] = [totals]
    parts += [Text(problem, style="yellow") for problem in status.queue.problems]
    parts += [Text(f"{what}: {how}") for what, how in status.queue.beside()]
    if everything:
        return Group(*parts, _rows(status.trials, with_state=True))
    running = [trial for trial in status.trials if trial.state == "running"]
    if running:
        parts += [Text("\nrunning", style=COLORS["running"]), _rows(_soonest(running)[:SHOWN])]
    if running[SHOWN:]:
        parts.append(Text(f"and {len(running) - SHOWN} more running; --all shows them"))
    for state in WENT_WRONG:
        alike = _alike([trial for trial in status.trials if trial.state == state])
        if alike:
            parts += [Text(f"\n{state}", style=COLORS[state]), _grouped(alike[:SHOWN])]
        if more := sum(map(len, alike[SHOWN:])):
            parts.append(Text(f"and {more} more {state}; --all shows them"))
    for state in NOT_YET:
        reasons = Counter(trial.note for trial in status.trials if trial.state == state)
        parts += [Text(f"\n{state}")] if reasons else []
        parts += [Text(f"{count:>6}  {reason}") for reason, count in reasons.most_common(SHOWN)]
    return Group(*parts)


def _alike(trials: list[StatusRow]) -> list[list[StatusRow]]:
    """Trials that went wrong for the same reason, together; the most common reason first."""
    found: dict[str, list[StatusRow]] = {}
    for trial in trials:
        found.setdefault(trial.note, []).append(trial)
    return sorted(found.values(), key=len, reverse=True)


def _grouped(alike: list[list[StatusRow]]) -> Table:
    """A row for each reason, with the first trial that has it: one to ask `logs` for."""
    shown = Table(box=None, pad_edge=False, show_header=False)
    for column in ("count", "note", "trial", "where"):
        shown.add_column(
            column, justify="right" if column == "count" else "left", min_width=6 if column == "count" else None,
            no_wrap=column in ("count", "trial"), overflow="fold",
        )  # fmt: skip
    for trials in alike:
        places = {trial.where for trial in trials}
        first = trials[0].trial_id + (", …" if trials[1:] else "")
        where = trials[0].where + (", …" if places - {trials[0].where} else "")
        shown.add_row(str(len(trials)), Text(trials[0].note), Text(first), Text(where))
    return shown


def _soonest(trials: list[StatusRow]) -> list[StatusRow]:
    """What ends first comes first."""
    return sorted(trials, key=lambda trial: float("inf") if trial.seconds_left is None else trial.seconds_left)


def _rows(trials: list[StatusRow], with_state: bool = False) -> Table:
    shown = Table(box=None, pad_edge=False, show_header=False)
    for column in ("trial", *(["state"] if with_state else []), "note", "where"):
        shown.add_column(column, no_wrap=column in ("trial", "state"), overflow="fold")
    for trial in trials:
        progress = ""
        if trial.step is not None:
            left = f", {duration(trial.seconds_left)} left" if trial.seconds_left is not None else ""
            progress = f"step {trial.step}/{trial.steps}{left}"
        state = [Text(trial.state, style=COLORS.get(trial.state, ""))] if with_state else []
        note = " ".join(filter(None, (progress, trial.note)))
        shown.add_row(Text(trial.trial_id), *state, Text(note), Text(trial.where))
    return shown
