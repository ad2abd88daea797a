"""Train the families of a sweep that nobody else trains. Launchers start this.

  python -m sweep work SWEEP                             in this process, one of several that a local launch starts
  python -m sweep work SWEEP --submission NNN --task I   an element of a Slurm array: starts its workers and waits

Exit status: 0 done, 1 some failed, 75 stopped by a signal with everything saved. Families that somebody else is
training are left to them and are no failure; the log says who.
"""

import argparse
import os
import sys
from pathlib import Path

from slurm.element import Supervisor
from slurm.queue_state import job_is_gone
from slurm.submission import ArrayTask, submissions
from sweep.common.errors import UserError
from sweep.common.exits import EXIT_AGAIN, say
from sweep.config.schema import SlurmSection
from sweep.runs import launches
from sweep.runs.claim import Job
from sweep.runs.progress import Progress
from sweep.runs.state import States, has_record
from sweep.runs.sweepdir import SweepDir
from sweep.workers.process import LOG
from sweep.workers.worker import StopSignal

SECONDS_TO_STOP = 10.0  # for what comes after training, when Slurm wants the element to end


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sweep", help="the sweep's folder")
    parser.add_argument("--families", metavar="FAMILY,…", help="only these")
    parser.add_argument("--submission", metavar="NNN", help="of which submission (with --task)")
    parser.add_argument("--task", type=int, metavar="I", help="the line of its tasks.jsonl, from 0")
    parser.add_argument("--worker", action="store_true", help="train the task's families here: one of its workers")


def run(args: argparse.Namespace) -> int:
    if args.submission is not None and not args.worker:
        return _supervise(args)
    sweep, stop = SweepDir(Path(args.sweep)), StopSignal()
    stop.listen()
    if args.submission is None:
        named = set(args.families.split(",")) if args.families else None
        max_attempts = sweep.settings().cluster.slurm.max_attempts_without_progress
        with launches.announced(sweep.path, named, lambda: stop.asked):
            return _train(sweep, named, max_attempts, stop)
    task, slurm = _task(sweep, args.submission, args.task)
    return _train(sweep, set(task.families), slurm.max_attempts_without_progress, stop)


def _train(sweep: SweepDir, families: set[str] | None, max_attempts: int, stop: StopSignal) -> int:
    """Train in this process: all families of the sweep, or those named."""
    from sweep.plan.plan import by_family
    from sweep.plan.storage import planned_trials
    from sweep.workers.families import train_families
    from sweep.workers.worker import Worker

    settings = sweep.settings()
    paths, options = settings.paths, settings.run
    worker = Worker(
        Path(paths.runs),
        Path(paths.tokens),
        options,
        settings.device,
        max_attempts=max_attempts,
        job_is_gone=job_is_gone,
        hear=_Log(),
        stop=stop,
    )
    trials = planned_trials(sweep)
    if families is not None:
        trials = [trial for trial in trials if trial.family_id in families]
    return train_families(worker, by_family(trials))


def _supervise(args: argparse.Namespace) -> int:
    """Start the element's workers, and what mirrors them to W&B, and wait. It listens to signals before all else."""
    command = [sys.executable, "-m", "sweep", "work", args.sweep, "--submission", args.submission]
    supervisor = Supervisor([*command, "--task", str(args.task), "--worker"])
    supervisor.listen()

    from sweep.tracking.follow import Task  # takes long; it listens first
    from sweep.tracking.mirror_process import Sidecar

    sweep = SweepDir(Path(args.sweep))
    task, _ = _task(sweep, args.submission, args.task)
    families, workers = task.families, task.workers
    logs = sweep.path.resolve() / "slurm" / args.submission / "logs"
    job = Job.here()
    if job is not None:
        os.environ[LOG] = str(logs / f"{job.id}.log")
    say(f"task {args.task} of submission {args.submission}: families {' '.join(families)}; workers: {workers}")
    sidecar = Sidecar(Task.of_sweep(sweep, families), log=logs / f"wandb-{job.id if job else args.task}.log")

    def tell_news() -> None:
        for line in sidecar.news():
            say(line)

    status = supervisor.run(workers, sweep.settings().run.threads, meanwhile=tell_news)
    for line in sidecar.close(SECONDS_TO_STOP if supervisor.told_to_stop else None):
        say(line)
    return _leave_to_others(sweep, families, status)


def _leave_to_others(sweep: SweepDir, families: list[str], status: int) -> int:
    """Leave families to whoever else is training them now. If others leave out budgets that this sweep needs, the
    element has to come back for those: the exit status is then EXIT_AGAIN, else as it was."""
    from sweep.plan.plan import by_family  # takes long; the supervisor listens first
    from sweep.plan.storage import planned_trials

    states = States(Path(sweep.settings().paths.runs))
    for trials in by_family([trial for trial in planned_trials(sweep) if trial.family_id in families]):
        family = states.family(trials[0].family_id)
        if family.damage:
            raise UserError(family.damage)
        if family.held is None or all(has_record(states.runs, trial.trial_id) for trial in trials):
            continue
        is_left_out = any(states.trial(trial.trial_id, trial.family_id).kind == "missing" for trial in trials)
        if is_left_out and not family.held.is_silent:
            say(f"{family.family_id}: {family.held}: trains other budgets of it; this element comes back later")
            status = status or EXIT_AGAIN
        else:
            say(f"{family.family_id}: {family.held}: left to who is training it")
    return status


def _task(sweep: SweepDir, submission: str, number: int | None) -> tuple[ArrayTask, SlurmSection]:
    """The array element, and the `cluster.slurm` section that it was submitted with."""
    found = [one for one in submissions(sweep) if one.folder.name == submission]
    if not found:
        raise UserError(f"--submission={submission}: no such submission in {sweep.path / 'slurm'}")
    tasks = found[0].tasks()
    if number is None or not 0 <= number < len(tasks):
        raise UserError(f"--task={number}: {found[0].folder / 'tasks.jsonl'} has tasks 0 to {len(tasks) - 1}")
    return tasks[number], found[0].slurm


class _Log:
    """What a worker's log says of its training: each trial that begins, and each validation."""

    def __init__(self) -> None:
        self.begun: set[str] = set()

    def __call__(self, progress: Progress) -> None:
        trial_id, row = progress.trial_id, progress.row
        if trial_id not in self.begun:
            self.begun.add(trial_id)
            say(f"{trial_id}: begins (process {os.getpid()})")
        if row is not None and row.val_loss_nats is not None:
            at = f"step {row.step}, {row.phase}, validation {row.val_loss_nats:.4f} nats"
            say(f"{trial_id}: {at}, {progress.tokens_per_second:,.0f} tokens/s")
