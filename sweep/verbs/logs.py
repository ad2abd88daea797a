"""Show what the workers of a run wrote: a line for each attempt, the log of the newest one, and the run's last error.

  python -m sweep logs RUN         RUN is a run's id, a unique prefix of it, or a family's id
  python -m sweep logs RUN --all   the earlier logs too, oldest first
  python -m sweep logs RUN -f      keep showing what is written, until Ctrl-C or the run has a record

A worker trains other runs too, and its log is shown whole. Earlier logs are only named. When each attempt began and how
it ended is kept in runs/trunks/<family>/attempts.jsonl.
"""

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from slurm.queue_state import ask
from sweep.common.errors import UserError
from sweep.common.units import duration
from sweep.runs import attempt_log
from sweep.runs.attempt_log import Attempt
from sweep.runs.lookup import add_sweeps, one_run
from sweep.runs.planned import read_trial_file
from sweep.runs.rundir import RunDir
from sweep.runs.sweepdir import SweepDir

FOLLOW_SECONDS = 0.5


@dataclass
class Log:
    """A file that was written by a worker which was to train the run; `note` says so where it never came to that."""

    path: Path
    time: float  # seconds since the epoch: when the last attempt in it began, or it was submitted
    note: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="RUN", help="a run's id or a unique prefix, or a family's id")
    parser.add_argument("-f", "--follow", action="store_true", help="keep showing what is written")
    parser.add_argument("--all", action="store_true", help="the earlier logs too")
    parser.add_argument("--runs", default="runs", help="the folder of runs (default: runs)")
    add_sweeps(parser)


def run(args: argparse.Namespace) -> int:
    runs = Path(args.runs)
    sweeps = sorted(Path(args.sweeps).glob("*/plan.jsonl"))
    trial_id, family_id = find(args.name, runs, sweeps)
    trunk = RunDir.of_trunk(runs, family_id)
    for number, attempt in enumerate(attempt_log.read(trunk), start=1):
        print(_told(number, attempt))
    record = RunDir.of_trial(runs, trial_id).record if trial_id else None
    finished = record.stat().st_mtime if record and record.exists() else None
    logs = logs_of(trial_id, family_id, trunk, sweeps, finished)
    shown: dict[Path, int] = {}  # of each file, the bytes that were shown
    if logs and logs[-1].note:
        print(logs[-1].note)
    for log in logs:
        if args.all or log is logs[-1]:
            _show(log.path, shown)
        else:
            print(f"earlier: {log.path}")
    while args.follow and not (record and record.exists()):
        time.sleep(FOLLOW_SECONDS)
        for log in logs_of(trial_id, family_id, trunk, sweeps)[-1:]:
            _show(log.path, shown)
    error = RunDir.of_trial(runs, trial_id).error if trial_id else None
    if error and error.exists():
        print(f"== {error}\n{error.read_text(errors='replace').rstrip()}")
    elif not shown:
        print(f"{args.name}: no log yet; `python -m sweep status SWEEP` says what it waits for", file=sys.stderr)
    return 0


def find(name: str, runs: Path, plans: list[Path]) -> tuple[str | None, str]:
    """(trial id, family id) of what a person calls a run, which may not have begun; (None, family id) of a family."""
    if (runs / "trunks" / name).is_dir():
        return None, name
    name = Path(name).name if (Path(name) / "trial.json").exists() else name
    if (runs / name / "trial.json").exists():
        return name, read_trial_file(runs / name / "trial.json").family_id
    family_of = {line.trial_id: line.family_id for plan in plans for line in SweepDir(plan.parent).planned()}
    family_of |= {path.parent.name: "" for path in runs.glob("*/trial.json") if path.parent.name not in family_of}
    if name in family_of.values():
        return None, name
    is_sweep = Path(name).name in (plan.parent.name for plan in plans)
    if is_sweep and not any(trial_id.startswith(name) for trial_id in family_of):
        raise UserError(f"{name} is a sweep: give a run of it, `python -m sweep status {name} --all` lists them")
    trial_id = one_run(name, family_of, f"{runs}/ or any sweep")
    return (trial_id, family_of[trial_id]) if family_of[trial_id] else find(trial_id, runs, [])


def logs_of(
    trial_id: str | None, family_id: str, trunk: RunDir, plans: list[Path], finished: float | None = None
) -> list[Log]:
    """Log files, oldest first: of a family's attempts, and of array elements that have not come to it.

    Of a trial that was `finished` (seconds since the epoch), only those from before, and of sweeps that plan it.
    """
    tried = attempt_log.read(trunk)
    found = {
        path: Log(path, one.started)
        for one in tried
        if one.start.log and (path := Path(one.start.log).resolve()).exists()
    }
    for plan in plans:
        if not (plan.parent / "slurm").is_dir() or (trial_id or family_id) not in plan.read_text():
            continue
        queue = ask(SweepDir(plan.parent), the_queue=False)
        for element in queue.elements_of[family_id]:
            path, submission = queue.log(element).resolve(), queue.submission_of[element]
            if path.exists() and path not in found:
                starts = [one.started for one in tried if one.job and one.job.id == element]
                of = f"job {element} (submission {submission.folder.name} of sweep {plan.parent.name})"
                note = "" if starts else f"{of}: ended before it came to this run, or has not come to it yet"
                found[path] = Log(path, max([submission.time, *starts]), note)
    logs = sorted(found.values(), key=lambda log: log.time)
    return [log for log in logs if finished is None or log.time <= finished] or logs


def _show(path: Path, shown: dict[Path, int]) -> None:
    """Print what a file has gained since it was last shown, under its name the first time."""
    with open(path, "rb") as file:
        file.seek(shown.get(path, 0))
        text = file.read()
    if path not in shown:
        print(f"== {path}")
    shown[path] = shown.get(path, 0) + len(text)
    sys.stdout.write(text.decode(errors="replace"))
    sys.stdout.flush()


def _told(number: int, attempt: Attempt) -> str:
    """An attempt in one line: when, where, how it ended."""
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(attempt.started))
    where = (attempt.job.node if attempt.job else "") or attempt.start.host
    job = f", job {attempt.job.id} (restart {attempt.job.restart})" if attempt.job else ""
    ended = (
        "no end" if attempt.ended is None else f"{attempt.outcome} after {duration(attempt.ended - attempt.started)}"
    )
    return f"attempt {number}: {when} on {where}{job}, {ended}{f': {attempt.error}' if attempt.error else ''}"
