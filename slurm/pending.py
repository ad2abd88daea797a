"""What a launch still has to train: families that lack records, but for those that somebody is about to train."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from slurm import commands
from slurm.alive import job_is_gone
from slurm.commands import Job
from slurm.submission import ArrayTask, Submission
from sweep.plan.plan import Plan
from sweep.plan.trial import Trial
from sweep.runs import attempt_log, claim
from sweep.runs.rundir import RunDir

ENDING_SECONDS = 40.0  # that a job may take to end: Slurm kills it after KillWait, 30 s unless a site says else


@dataclass
class Missing:
    """Families by what is to be done about them."""

    families: list[list[Trial]] = field(default_factory=list)  # to train: their trials without a record
    queued: dict[str, str] = field(default_factory=dict)  # in the queue: their array element
    held: dict[str, str] = field(default_factory=dict)  # being trained otherwise: by whom
    given_up: list[str] = field(default_factory=list)  # after attempts without progress, until a person says `retry`


def missing(plan: Plan, earlier: list[Submission]) -> Missing:
    """The families that the launch is about, those that are done left out."""
    found = Missing()
    done = plan.done()
    queued = families_in_queue(earlier)
    for family in plan.families():
        left = [trial for trial in family if trial.trial_id not in done]
        name = family[0].family_id
        if not left or (plan.only and name not in plan.only):
            continue
        if name in queued:
            found.queued[name] = queued[name]
        elif (holder := _holder(plan, name)) is not None:
            found.held[name] = holder
        elif attempt_log.is_given_up(RunDir.of_trunk(plan.runs, name)):
            found.given_up.append(name)
        else:
            found.families.append(left)
    return found


def families_in_queue(earlier: list[Submission]) -> dict[str, str]:
    """The families of elements that are pending or running, each with its element."""
    chunks = {chunk.name: (submission, chunk) for submission in earlier for chunk in submission.chunks}
    tasks: dict[str, list[ArrayTask]] = {}
    found = {}
    for job in _settled(chunks):
        submission, chunk = chunks[job.name]
        if submission.tag not in tasks:
            tasks[submission.tag] = submission.tasks()
        for family in tasks[submission.tag][chunk.task(job.index or 0)].families:
            found[family] = f"{job.element} ({job.state})"
    return found


def _settled(names: Iterable[str]) -> list[Job]:
    """What the queue holds of these jobs once none of them is ending: one that was is gone then, or waits again."""
    names, end = list(names), time.monotonic() + ENDING_SECONDS
    while True:
        jobs = commands.queued(names)
        if all(job.state != "COMPLETING" for job in jobs) or time.monotonic() > end:
            return jobs
        time.sleep(1.0)


def adopt(earlier: list[Submission]) -> list[str]:
    """Write down the ids of jobs whose submitter was killed before it could; what was found, in words."""
    said = []
    for submission in earlier:
        for job in submission.jobs():
            if job.job_id is None and (found := commands.find(job.name, since=submission.time - 60)) is not None:
                job.job_id = found
                submission.write()
                said.append(f"found job {found}, {job.name}: its launch ended before it could note the id")
    return said


def _holder(plan: Plan, family_id: str) -> str | None:
    held = claim.held_by(RunDir.of_trunk(plan.runs, family_id).path, job_is_gone)
    return None if held is None else str(held)
