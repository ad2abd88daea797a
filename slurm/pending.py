"""What a launch still has to train: families that lack records, except those that somebody is about to train."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from slurm import commands
from slurm.queue_state import of_submissions
from slurm.submission import Submission
from sweep.common.errors import UserError
from sweep.plan.plan import Plan
from sweep.plan.trial import Trial
from sweep.runs import launches
from sweep.runs.state import States

ENDING_SECONDS = 40.0  # that a job may take to end: Slurm kills it after KillWait, 30 s unless a site says otherwise


@dataclass
class Missing:
    """Families by what is to be done about them."""

    families: list[list[Trial]] = field(default_factory=list)  # to train: their trials without a record
    queued: dict[str, str] = field(default_factory=dict)  # in the queue: their array element
    held: dict[str, str] = field(default_factory=dict)  # being trained otherwise: by whom
    given_up: list[str] = field(default_factory=list)  # after attempts without progress, until a person says `retry`


def missing(plan: Plan, earlier: list[Submission]) -> Missing:
    """The families that the launch is about, except those that are done."""
    found = Missing()
    queue = of_submissions(earlier, _settled(job.name for one in earlier for job in one.chunks))
    states = States(plan.runs, queue, launches.alive(plan.sweep.path))
    for left in plan.left():
        name = left[0].family_id
        if plan.only and name not in plan.only:
            continue
        family = states.family(name)
        if family.damage:
            raise UserError(family.damage)
        if family.queued is not None:
            found.queued[name] = f"{family.queued.job_id} ({family.queued.state})"
        elif family.held is not None:
            found.held[name] = str(family.held)
        elif family.launch is not None:
            found.held[name] = f"by a launch that has not come to it yet, {family.launch}"
        elif family.is_given_up:
            found.given_up.append(name)
        else:
            found.families.append(left)
    return found


def _settled(names: Iterable[str]) -> list[commands.Job]:
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
