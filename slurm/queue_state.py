"""What Slurm says of a sweep's submissions: one question to the queue, and one to accounting if anything is unclear."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from slurm import commands
from slurm.alive import is_gone
from slurm.submission import Submission, folder_of
from sweep.common.errors import UserError
from sweep.runs.claim import Job
from sweep.runs.sweepdir import SweepDir


@dataclass
class Asked:
    """The submissions of a sweep, newest first, and the queue as it is now."""

    submissions: list[Submission] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)  # a line each: Slurm does not answer, a submission is damaged
    answers: bool = True
    in_queue: dict[str, commands.Job] = field(default_factory=dict)  # by "<array>_<index>", or "<job>"
    elements_of: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # by family, newest first
    families_of: dict[str, list[str]] = field(default_factory=dict)  # by element
    submission_of: dict[str, Submission] = field(default_factory=dict)  # by element: the one that it is part of
    _ended: dict[str, commands.Ended] | None = None

    def job_is_gone(self, job: Job) -> bool | None:
        """For claims; None for a job that is of no submission of this sweep, or where Slurm does not answer."""
        names = (name for submission in self.submissions for name in submission.names())
        if not self.answers or job.name not in names:
            return None
        return is_gone(job, self.in_queue.values())

    def element_now(self, family_id: str) -> commands.Job | None:
        """The newest element that holds a family and is in the queue."""
        return next((self.in_queue[one] for one in self.elements_of[family_id] if one in self.in_queue), None)

    def ended(self, element: str) -> commands.Ended | None:
        """How an element ended, by accounting; None where there is none, or it does not know."""
        if self._ended is None:
            ids = [job.job_id for submission in self.submissions for job in submission.jobs() if job.job_id is not None]
            oldest = min((submission.time for submission in self.submissions), default=0.0)
            known = commands.ended(ids, since=oldest - 3600) if ids else None
            self._ended = {
                str(job_id) if index is None else f"{job_id}_{index}": how
                for (job_id, index), how in (known or {}).items()
            }
        return self._ended.get(element)

    def log(self, element: str) -> Path:
        """The file that an element's output goes to."""
        return self.submission_of[element].folder / "logs" / f"{element}.log"

    def beside(self) -> Iterator[tuple[str, str]]:
        """(what, how it stands) of the newest submission's jobs that prepare data and collect, as far as is known."""
        for submission in self.submissions[:1]:
            for what, job in (("prepare", submission.prepare), ("collector", submission.collector)):
                entry, how = (self.in_queue.get(str(job.job_id)), self.ended(str(job.job_id))) if job else (None, None)
                if entry is not None:
                    yield what, f"{entry.state}{f' ({entry.reason})' if entry.state == 'PENDING' else ''}"
                elif how is not None:
                    yield what, how.state


def ask(sweep: SweepDir, the_queue: bool = True) -> Asked:
    """Read a sweep's submissions, and ask the queue for their jobs if there are any and it is wanted."""
    asked = Asked()
    for folder in sorted(folder_of(sweep).glob("[0-9]*"), reverse=True):
        if (folder / "submission.json").exists():
            try:
                asked.submissions.append(Submission.read(folder))
            except UserError as error:
                asked.problems.append(str(error))
    if asked.submissions and the_queue:
        _ask_queue(asked)
    for submission in asked.submissions:
        try:
            _map_families(asked, submission)
        except UserError as error:
            asked.problems.append(str(error))
    return asked


def _ask_queue(asked: Asked) -> None:
    names = [name for submission in asked.submissions for name in submission.names()]
    try:
        if not commands.available():
            raise UserError("Slurm's programs are not on PATH here")
        asked.in_queue = {entry.element: entry for entry in commands.queued(names, patience_seconds=0)}
    except UserError as error:
        asked.answers = False
        asked.problems.append(f"{error}; what follows is from the run folders alone")


def _map_families(asked: Asked, submission: Submission) -> None:
    """Which families each element holds. A job whose id was never written down is known by its name in the queue."""
    ids = {entry.name: entry.job_id for entry in asked.in_queue.values()}
    for task in submission.tasks():
        chunk = submission.chunk_of(task.task)
        job_id = chunk.job_id if chunk.job_id is not None else ids.get(chunk.name)
        if job_id is None:
            continue
        element = f"{job_id}_{chunk.index(task.task)}"
        asked.families_of[element], asked.submission_of[element] = task.families, submission
        for family_id in task.families:
            asked.elements_of[family_id].append(element)
