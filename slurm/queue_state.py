"""What Slurm says of a sweep's submissions: one question to the queue, and one to accounting if anything is unclear.

`QueueState` is the view of the queue that `sweep.runs.state` takes.
"""

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from slurm import commands
from slurm.submission import PREPARED, Submission, folder_of
from sweep.common.errors import UserError
from sweep.runs.claim import Job
from sweep.runs.state import Kind, NotTrained, QueuedJob, SubmittedJob
from sweep.runs.sweepdir import SweepDir

NO_PROCESS = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT")  # none of the job's is left
FAILED = ("FAILED", "OUT_OF_MEMORY")  # Slurm's words for what starting the job again would not mend


@dataclass
class QueueState:
    """The submissions of a sweep, newest first, and what the queue holds of them now."""

    submissions: list[Submission] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)  # a line each: Slurm does not answer, a submission is damaged
    answers: bool = True
    in_queue: dict[str, commands.Job] = field(default_factory=dict)  # by "<array>_<index>", or "<job>"
    elements_of: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # by family, newest first
    families: dict[str, list[str]] = field(default_factory=dict)  # by element
    submission_of: dict[str, Submission] = field(default_factory=dict)  # by element: the one that it is part of
    _ended: dict[str, commands.Ended] | None = None

    # ---- the view that sweep.runs.state takes ----

    def job_is_gone(self, job: Job) -> bool | None:
        """For claims; None where Slurm does not answer. It is asked again about a job of another sweep."""
        if not self.answers:
            return None
        if job.name not in (name for submission in self.submissions for name in submission.names()):
            return job_is_gone(job)
        return _is_gone(job, self.in_queue.values())

    def job_in_queue(self, family_id: str) -> QueuedJob | None:
        """The newest element in the queue that holds a family."""
        entry = next((self.in_queue[one] for one in self.elements_of[family_id] if one in self.in_queue), None)
        if entry is None:
            return None
        reason = entry.reason if entry.state == "PENDING" else entry.state
        return QueuedJob(entry.element, entry.state, reason, entry.node, entry.run_seconds)

    def last_job(self, family_id: str) -> SubmittedJob | None:
        """The newest element that was ever submitted with a family."""
        element = next(iter(self.elements_of[family_id]), None)
        return None if element is None else SubmittedJob(element, self.submission_of[element].time)

    def families_of(self, job_id: str) -> list[str]:
        """All families that an element holds."""
        return self.families.get(job_id, [])

    def not_trained(self, job_id: str) -> NotTrained:
        """Why an element that has left the queue trained nothing: by its data's job, accounting, and its log."""
        if not self.answers:
            return NotTrained("queued", "submitted; Slurm does not answer")
        if (failed := self._preparing_failed(job_id)) is not None:
            return NotTrained("failed", failed)
        how, log = self.ended(job_id), self.log(job_id)
        if how is not None and how.state == "CANCELLED":
            return NotTrained("missing", "its job was cancelled")
        status = f", exit status {how.exit_code}" if how is not None and how.exit_code else ""
        ended = f" ({how.state}{status})" if how is not None else ""
        said = _last_line(log) if log.exists() else "it left no log"
        kind: Kind = "failed" if how is not None and how.state in FAILED else "lost"
        return NotTrained(kind, f"its job ended{ended} before training began: {said}")

    def how_ended(self, job_id: str) -> str | None:
        """Slurm's word for how an element ended."""
        how = self.ended(job_id)
        return None if how is None else f"{how.state} by Slurm"

    # ---- for those who know that it is Slurm ----

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

    def _preparing_failed(self, element: str) -> str | None:
        """Why an element's data was not prepared, if its submission has a job for that which ended without doing it."""
        submission = self.submission_of[element]
        job = submission.prepare
        if job is None or str(job.job_id) in self.in_queue or (submission.folder / PREPARED).exists():
            return None
        log = submission.folder / "logs" / f"prepare-{job.job_id}.log"
        return f"its data was not prepared: {_last_line(log) if log.exists() else 'the job left no log'}"


def ask(sweep: SweepDir, the_queue: bool = True) -> QueueState:
    """Read a sweep's submissions, and ask the queue for their jobs if there are any and it is wanted."""
    found = QueueState()
    for folder in sorted(folder_of(sweep).glob("[0-9]*"), reverse=True):
        if (folder / "submission.json").exists():
            try:
                found.submissions.append(Submission.read(folder))
            except UserError as error:
                found.problems.append(str(error))
    if found.submissions and the_queue:
        _ask_queue(found)
    _map_families(found)
    return found


def of_submissions(submissions: list[Submission], jobs: Iterable[commands.Job]) -> QueueState:
    """The same of submissions (oldest first) and queued jobs that are known already."""
    found = QueueState(submissions[::-1], in_queue={entry.element: entry for entry in jobs})
    _map_families(found)
    return found


def job_is_gone(job: Job) -> bool | None:
    """True where Slurm has no such job any more, or has it waiting to be restarted; None where it does not answer.

    A job of another cluster is not known here.
    """
    if not commands.available():
        return None
    try:
        entries = commands.queued([job.name], patience_seconds=0)
        cluster = os.environ.get("SLURM_CLUSTER_NAME") or commands.limits(patience_seconds=0)["ClusterName"]
    except commands.NotAnswering:
        return None
    return _is_gone(job, entries) if job.cluster == cluster else None


def _is_gone(job: Job, entries: Iterable[commands.Job]) -> bool:
    """The same from what the queue holds of the jobs with its name."""
    states = [entry.state for entry in entries if entry.element == job.id]
    return not states or states[0] in NO_PROCESS


def _ask_queue(found: QueueState) -> None:
    names = [name for submission in found.submissions for name in submission.names()]
    try:
        if not commands.available():
            raise UserError("Slurm's programs are not on PATH here")
        found.in_queue = {entry.element: entry for entry in commands.queued(names, patience_seconds=0)}
    except UserError as error:
        found.answers = False
        found.problems.append(f"{error}; what follows is from the run folders alone")


def _map_families(found: QueueState) -> None:
    """Which families each element holds. A job whose id was never written down is known by its name in the queue."""
    ids = {entry.name: entry.job_id for entry in found.in_queue.values()}
    for submission in found.submissions:
        try:
            tasks = submission.tasks()
        except UserError as error:
            found.problems.append(str(error))
            continue
        for task in tasks:
            chunk = submission.chunk_of(task.task)
            job_id = chunk.job_id if chunk.job_id is not None else ids.get(chunk.name)
            if job_id is None:
                continue
            element = f"{job_id}_{chunk.index(task.task)}"
            found.families[element], found.submission_of[element] = task.families, submission
            for family_id in task.families:
                found.elements_of[family_id].append(element)


def _last_line(path: Path) -> str:
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 4096))
        lines = file.read().decode(errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "its log is empty")
