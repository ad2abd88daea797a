"""Stop a sweep, or some of its runs. Everything trained is kept, and `launch` goes on from there.

  python -m sweep cancel SWEEP          its jobs on the cluster, and its workers on this machine
  python -m sweep cancel SWEEP RUN…     only the jobs and workers that train these runs, or are to train them

Workers finish their step and save. On a cluster the smallest thing that can be cancelled is an array element; if it
holds other unfinished runs, they are named first. Runs that have a record are left alone, and so are workers of other
sweeps that train the same runs.
"""

import argparse
import sys
from pathlib import Path

import psutil

from slurm import commands
from slurm.queue_state import QueueState, ask
from sweep.common.errors import UserError
from sweep.runs.lookup import add_sweep
from sweep.runs.planned import Facts
from sweep.runs.state import States, has_record
from sweep.runs.sweepdir import SweepDir


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_sweep(parser)
    parser.add_argument(
        "runs", nargs="*", default=[], metavar="RUN", help="ids or unique prefixes (default: the whole sweep)"
    )


def run(args: argparse.Namespace) -> int:
    sweep = SweepDir.find(args.sweep, args.sweeps)
    chosen = {line.trial_id for line in sweep.chosen(args.runs)}
    missing = _without_record(sweep)
    asked_for = [line for line in missing if line.trial_id in chosen]
    if args.runs and not asked_for:
        print(f"nothing to cancel: {', '.join(args.runs)} {'have records' if args.runs[1:] else 'has its record'}")
        return 0
    queue = ask(sweep)
    for problem in queue.problems:
        print(problem, file=sys.stderr)
    families = list(dict.fromkeys(line.family_id for line in asked_for))
    stopped = _stop_workers(sweep, families, everything=not args.runs)
    if not queue.answers:
        raise UserError("the jobs on the cluster were not cancelled: Slurm does not answer; try again later")
    cancelled = _cancel_elements(queue, asked_for, missing) if args.runs else _cancel_jobs(queue)
    if not stopped and not cancelled:
        print("nothing to cancel: no job of it is in the queue, and no worker of it is on this machine")
    return 0


def _without_record(sweep: SweepDir) -> list[Facts]:
    """The plan's lines of trials that are not finished."""
    runs = Path(sweep.settings().paths.runs)
    return [line for line in sweep.planned() if not has_record(runs, line.trial_id)]


def _cancel_jobs(queue: QueueState) -> bool:
    """Cancel every job in the queue: arrays, and the jobs that prepare data and collect. Whether there was any."""
    jobs = {str(entry.job_id): entry.name for entry in queue.in_queue.values()}
    commands.cancel(jobs)
    for job_id, name in jobs.items():
        print(f"cancelled job {job_id} ({name})")
    return bool(jobs)


def _cancel_elements(queue: QueueState, chosen: list[Facts], missing: list[Facts]) -> bool:
    """Cancel the elements in the queue that hold the chosen trials, and name the unfinished trials that go with them.
    Whether there was any."""
    families = {line.family_id for line in chosen}
    elements = sorted({one for family in families for one in queue.elements_of[family] if one in queue.in_queue})
    trials = {line.trial_id for line in chosen}
    for element in elements:
        held = [line.trial_id for line in missing if line.family_id in queue.families_of(element)]
        if others := [trial_id for trial_id in held if trial_id not in trials]:
            print(f"element {element} holds these unfinished runs too: {', '.join(others)}", flush=True)
    commands.cancel(elements)
    for element in elements:
        print(f"cancelled element {element}")
    return bool(elements)


def _stop_workers(sweep: SweepDir, families: list[str], everything: bool) -> bool:
    """Tell this sweep's workers on this machine, those that train the families or all, to save and stop; whether there
    are any. For workers on other hosts, say how it is done."""
    if not families:
        return False
    workers = {process.pid: process for process in _workers(sweep)}
    trains = _trained_here(sweep, families, set(workers))
    if not everything and not trains and workers:
        print(
            f"{len(workers)} workers of sweep {sweep.name} are on this machine and train other runs, or nothing yet; "
            f"`cancel {sweep.name}` stops them all"
        )
        return True
    for pid in workers if everything else trains:
        try:
            workers[pid].terminate()
        except psutil.NoSuchProcess:
            continue
        doing = f"which trains {trains[pid]}" if pid in trains else "which trains nothing yet"
        print(f"told worker {pid}, {doing}, to save and stop")
    return bool(workers)


def _workers(sweep: SweepDir) -> list[psutil.Process]:
    """The processes of ours that a local launch of this sweep started: `… -m sweep work FOLDER`, of no Slurm job."""
    found, user, folder = [], psutil.Process().uids().real, sweep.path.resolve()
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
            if words[1:4] != ["-m", "sweep", "work"] or "--submission" in words or process.uids().real != user:
                continue
            if words[4:] and Path(process.cwd(), words[4]).resolve() == folder:
                found.append(process)
        except psutil.Error:  # it has ended, or is not ours to look at
            continue
    return found


def _trained_here(sweep: SweepDir, families: list[str], workers: set[int]) -> dict[int, str]:
    """Which of the families each of these processes trains. One that this sweep trains on another host is told of."""
    states, found = States(Path(sweep.settings().paths.runs)), {}
    for family_id in families:
        family = states.family(family_id)
        if family.damage:
            raise UserError(family.damage)
        if family.held is None or family.held.holder.job is not None:
            continue
        holder, log = family.held.holder, family.log
        if family.held.is_alive and holder.pid in workers:
            found[holder.pid] = family_id
        if not family.held.is_alive and log is not None and log.parent == sweep.logs.resolve():
            print(f"{family_id}: trained on host {holder.host}; there: kill -TERM {holder.pid}", file=sys.stderr)
    return found
