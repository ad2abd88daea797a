"""Whether the Slurm job that claimed a family is gone: what `sweep.runs.claim` cannot know by itself."""

import os
from collections.abc import Iterable

from slurm import commands
from sweep.runs.claim import Job

WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT")  # none of its processes is left


def job_is_gone(job: Job) -> bool | None:
    """True where Slurm has no such job any more, or has it waiting to be started anew; None where it does not answer.

    A job of another cluster is not known here.
    """
    if not commands.available():
        return None
    try:
        entries = commands.queued([job.name], patience_seconds=0)
        cluster = os.environ.get("SLURM_CLUSTER_NAME") or commands.limits(patience_seconds=0)["ClusterName"]
    except commands.NotAnswering:
        return None
    return is_gone(job, entries) if job.cluster == cluster else None


def is_gone(job: Job, entries: Iterable[commands.Job]) -> bool:
    """The same from what the queue holds of the jobs with its name."""
    states = [entry.state for entry in entries if entry.element == job.id]
    return not states or states[0] in WAITING
