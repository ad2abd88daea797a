"""Stop a sweep, or some of its runs. Everything trained is kept, and `launch` goes on from there.

  python -m sweep cancel SWEEP          its jobs on the cluster, and its workers on this machine
  python -m sweep cancel SWEEP RUN…     only what trains or would train these runs

Workers finish their step and save. On a cluster the smallest thing that can be cancelled is an array element; where it
holds other runs too, they are named.
"""

import argparse
import os
import signal
import sys
from pathlib import Path

HELP = "stop a sweep, or some of its runs; what is trained is kept"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sweep", metavar="SWEEP", help="the sweep's name or folder")
    parser.add_argument("runs", nargs="*", metavar="RUN", help="ids or unique prefixes (default: the whole sweep)")
    parser.add_argument("--sweeps", default="sweeps", help="the folder of sweeps (default: sweeps)")


def run(args: argparse.Namespace) -> int:
    from slurm.asked import ask
    from sweep.errors import UserError
    from sweep.sweepdir import SweepDir

    sweep = SweepDir.find(args.sweep, args.sweeps)
    families = list(dict.fromkeys(line["family_id"] for line in sweep.chosen(args.runs)))
    asked = ask(sweep)
    for problem in asked.problems:
        print(problem, file=sys.stderr)
    stopped = _stop_workers(Path(sweep.settings()["paths"]["runs"]), families)
    if not asked.answers:
        raise UserError("the jobs on the cluster were not cancelled: Slurm does not answer; try again later")
    cancelled = _cancel_elements(asked, families) if args.runs else _cancel_jobs(asked)
    if not stopped and not cancelled:
        print("nothing to cancel: no job of it is in the queue, and no worker of it is on this machine")
    return 0


def _cancel_jobs(asked) -> bool:
    """All jobs of all submissions that are in the queue: arrays, the one before and the one after."""
    from slurm import queue

    jobs = {str(entry.job_id): entry.name for entry in asked.in_queue.values()}
    queue.cancel(jobs)
    for job_id, name in jobs.items():
        print(f"cancelled job {job_id} ({name})")
    return bool(jobs)


def _cancel_elements(asked, families: list[str]) -> bool:
    """The elements in the queue that hold these families."""
    from slurm import queue

    elements = {one for family in families for one in asked.elements_of[family] if one in asked.in_queue}
    queue.cancel(sorted(elements))
    for element in sorted(elements):
        others = [family for family in asked.families_of[element] if family not in families]
        also = f"; it held these families too: {', '.join(others)}" if others else ""
        print(f"cancelled element {element}{also}")
    return bool(elements)


def _stop_workers(runs: Path, families: list[str]) -> bool:
    """Tell workers on this machine that are no jobs to save and stop; say of those elsewhere how it is done."""
    from sweep.rundir import RunDir
    from sweep.training import claim

    told = set()
    for family_id in families:
        trunk = RunDir.of_trunk(runs, family_id).path
        holder = claim.current_holder(trunk)
        if holder is None or holder.job is not None or (gone := holder.is_gone()):
            continue
        if gone is None:
            print(f"{family_id}: trained on host {holder.host}; there: kill -TERM {holder.pid}", file=sys.stderr)
        elif holder.pid not in told:
            os.kill(holder.pid, signal.SIGTERM)
            told.add(holder.pid)
            print(f"told worker {holder.pid}, which trains {family_id}, to save and stop")
    return bool(told)
