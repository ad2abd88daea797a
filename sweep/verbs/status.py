"""How a sweep stands: what is done, running, queued, failed or lost. Reads only.

  python -m sweep status                    all sweeps, with counts
  python -m sweep status default            one sweep: totals, what runs, what waits for what, what went wrong
  python -m sweep status default --all      every trial
  python -m sweep status default --watch    again and again, until nothing runs or waits
  python -m sweep status default --json     for programs

States: finished and diverged have a record; running; queued with Slurm's reason, or behind another trial of its family;
failed with the line of the error, its own or its job's (`logs RUN` shows more); lost: its attempt or its job ended
without a word, `launch` again goes on; missing: nobody trains it, `launch` does. On a cluster it asks Slurm, and where
that does not answer it shows what the run folders say. Exit status 0.
"""

import argparse
import json
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from slurm.status import STATES, Status, TrialStatus, look
from sweep.common.console import open_console
from sweep.common.errors import UserError
from sweep.common.units import duration
from sweep.runs.lookup import add_sweep
from sweep.runs.sweepdir import SweepDir

SHOWN = 12  # trials of a state, without --all
WATCH_SECONDS = 5.0
COLORS = {"finished": "green", "diverged": "magenta", "running": "cyan", "failed": "red", "lost": "yellow"}


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
    shown = Table(box=None, pad_edge=False)
    for heading in ("sweep", "trials", *STATES):
        shown.add_column(heading, justify="left" if heading == "sweep" else "right")
    found = {}
    for path in sorted(Path(args.sweeps).glob("*/plan.jsonl")):
        sweep = SweepDir(path.parent)
        try:
            status = look(sweep)
        except UserError as error:
            shown.add_row(sweep.name, str(error))
            continue
        counts = status.counts()
        found[sweep.name] = dict(counts)
        shown.add_row(sweep.name, str(len(status.trials)), *(str(counts[state] or "") for state in STATES))
    if args.json:
        print(json.dumps(found, indent=1))
    elif shown.row_count:
        console.print(shown)
    else:
        console.print(f"{args.sweeps}/ has no sweep yet; `python -m sweep launch sweep=default` makes one")
    return 0


def _watch(sweep: SweepDir, args: argparse.Namespace, console: Console) -> None:
    """Show it until nothing can change any more by itself, or Ctrl-C."""
    status = look(sweep)
    with Live(table(status, args.all), console=console, auto_refresh=False, vertical_overflow="visible") as live:
        while {"running", "queued"} & status.counts().keys():
            time.sleep(WATCH_SECONDS)
            status = look(sweep)
            live.update(table(status, args.all), refresh=True)


def to_json(status: Status) -> dict[str, Any]:
    """`slurm.answers` is null where there was nothing to ask it about."""
    asked = status.asked
    return {
        "sweep": status.sweep,
        "counts": dict(status.counts()),
        "slurm": {"answers": asked.answers if asked.submissions else None, "jobs": dict(asked.beside())},
        "problems": asked.problems,
        "trials": [asdict(trial) for trial in status.trials],
    }


def table(status: Status, everything: bool) -> Group:
    """Totals first; then what runs, what waits and why, what went wrong."""
    counts = status.counts()
    totals = Text(f"sweep {status.sweep}: {len(status.trials)} trials")
    for state in STATES:
        if counts[state]:
            totals.append(f"  {counts[state]} {state}", style=COLORS.get(state, ""))
    parts: list[Any] = [totals]
    parts += [Text(problem, style="yellow") for problem in status.asked.problems]
    parts += [Text(f"{what}: {how}") for what, how in status.asked.beside()]
    if everything:
        return Group(*parts, _rows(status.trials, with_state=True))
    running = [trial for trial in status.trials if trial.state == "running"]
    if running:
        parts += [Text("\nrunning", style=COLORS["running"]), _rows(_soonest(running)[:SHOWN])]
    if running[SHOWN:]:
        parts.append(Text(f"and {len(running) - SHOWN} more running; --all shows them"))
    for state in ("failed", "lost"):
        alike = _alike([trial for trial in status.trials if trial.state == state])
        if alike:
            parts += [Text(f"\n{state}", style=COLORS[state]), _grouped(alike[:SHOWN])]
        if more := sum(map(len, alike[SHOWN:])):
            parts.append(Text(f"and {more} more {state}; --all shows them"))
    for state in ("queued", "missing"):
        reasons = Counter(trial.note or "nobody trains it: launch" for trial in status.trials if trial.state == state)
        parts += [Text(f"\n{state}")] if reasons else []
        parts += [Text(f"{count:>6}  {reason}") for reason, count in reasons.most_common(SHOWN)]
    return Group(*parts)


def _alike(trials: list[TrialStatus]) -> list[list[TrialStatus]]:
    """Trials that went wrong for the same reason, together; the most common reason first."""
    found: dict[str, list[TrialStatus]] = {}
    for trial in trials:
        found.setdefault(trial.note, []).append(trial)
    return sorted(found.values(), key=len, reverse=True)


def _grouped(alike: list[list[TrialStatus]]) -> Table:
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


def _soonest(trials: list[TrialStatus]) -> list[TrialStatus]:
    """What ends first comes first."""
    return sorted(trials, key=lambda trial: float("inf") if trial.seconds_left is None else trial.seconds_left)


def _rows(trials: list[TrialStatus], with_state: bool = False) -> Table:
    shown = Table(box=None, pad_edge=False, show_header=False)
    for column in ("trial", *(["state"] if with_state else []), "note", "where"):
        shown.add_column(column, no_wrap=column in ("trial", "state"), overflow="fold")
    for trial in trials:
        progress = ""
        if trial.state == "running":
            left = f", {duration(trial.seconds_left)} left" if trial.seconds_left is not None else ""
            progress = f"step {trial.step}/{trial.steps}{left}"
        state = [Text(trial.state, style=COLORS.get(trial.state, ""))] if with_state else []
        note = " ".join(filter(None, (progress, trial.note)))
        shown.add_row(Text(trial.trial_id), *state, Text(note), Text(trial.where))
    return shown
