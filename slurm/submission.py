"""The folder of one submission: what was handed to Slurm, and enough to find every job again.

sweeps/<name>/slurm/<NNN>/
  submission.json   the jobs with their names and ids, the frozen code, the settings of cluster.slurm
  tasks.jsonl       one line per array element: its families, workers and estimated seconds
  *.sbatch          the scripts
  logs/             <array id>_<index>.log of the elements, prepare-<id>.log, collector-<id>.log
  dirty.diff        how the code differed from its commit
  prepared.json     is there once the job that prepares the data has written the real ids to tasks.jsonl

A job's name is unique, as it carries the submission's tag, so that a job whose id was never written down can be found.
"""

import contextlib
import dataclasses
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from sweep.common import artefacts
from sweep.common.errors import UserError
from sweep.common.files import write_json, write_json_lines
from sweep.config.schema import SlurmSection
from sweep.runs import claim
from sweep.runs.sweepdir import SweepDir

PREPARED = "prepared.json"
MEND = "restore it, or move its folder away: the jobs that it names are then not found any more"


@dataclass
class JobRef:
    """A job: its unique name, its script, and its id once Slurm gave one."""

    name: str
    script: str
    job_id: int | None = None


@dataclass
class Chunk(JobRef):
    """One Slurm array. It holds the elements `tasks[0]` to `tasks[1]` of tasks.jsonl; its array indices start at 0."""

    group: str = ""
    tasks: tuple[int, int] = (0, 0)

    def index(self, task: int) -> int:
        """The array index of an element."""
        return task - self.tasks[0]

    def task(self, index: int) -> int:
        """The element of an array index."""
        return self.tasks[0] + index


@dataclass(frozen=True)
class ArrayTask:
    """An array element: one line of tasks.jsonl."""

    task: int  # the number of the line, from 0
    group: str  # elements of one group ask Slurm for the same resources
    families: list[str]  # family ids, the longest first
    workers: int
    seconds: float  # the estimate of its wall time
    points: list[str] = field(default_factory=list)  # of the grid, while the ids of its families are provisional


@dataclass
class Submission:
    """What `submission.json` holds; `folder` is where it lies."""

    folder: Path = field(kw_only=True, default=Path())  # not in the file, so that a sweep's folder can be moved
    number: int
    tag: str
    time: float  # seconds since the epoch
    sweep: str
    command: list[str]
    overrides: list[str]
    code: str
    commit: str | None
    dirty: bool
    unprepared: bool  # the ids are provisional until the job that prepares the data has written the real ones
    slurm: SlurmSection
    chunks: list[Chunk]
    prepare: JobRef | None
    collector: JobRef | None

    @classmethod
    def read(cls, folder: Path) -> "Submission":
        """UserError where the file is missing or damaged."""
        return dataclasses.replace(artefacts.read(cls, folder / "submission.json", MEND), folder=folder)

    def write(self) -> None:
        """Replace the file, for instance when Slurm has given one more job its id."""
        value = asdict(self)
        del value["folder"]
        write_json(self.folder / "submission.json", value)

    def tasks(self) -> list[ArrayTask]:
        """The array elements, in the order of their numbers."""
        return artefacts.read_lines(ArrayTask, self.folder / "tasks.jsonl")

    def write_tasks(self, tasks: Iterable[ArrayTask]) -> None:
        write_json_lines(self.folder / "tasks.jsonl", map(asdict, tasks))

    def jobs(self) -> list[JobRef]:
        """Every job, in the order of submission."""
        return [job for job in (self.prepare, *self.chunks, self.collector) if job is not None]

    def names(self) -> list[str]:
        """The names of all jobs."""
        return [job.name for job in self.jobs()]

    def chunk_of(self, task: int) -> Chunk:
        """The array that holds an element."""
        return next(chunk for chunk in self.chunks if chunk.tasks[0] <= task <= chunk.tasks[1])


def folder_of(sweep: SweepDir) -> Path:
    return sweep.path / "slurm"


def submissions(sweep: SweepDir) -> list[Submission]:
    """A sweep's submissions, oldest first."""
    folders = sorted(path for path in folder_of(sweep).glob("[0-9]*") if (path / "submission.json").exists())
    return [Submission.read(folder) for folder in folders]


@contextlib.contextmanager
def exclusive(sweep: SweepDir, patience_seconds: float = 0.0) -> Iterator[claim.Claim]:
    """The right to submit for a sweep and to write its plan. UserError says who else has it.

    Submitting takes seconds, so a holder on another host that has been silent for minutes is gone. Should it come back
    after all, its `claim.lost` tells it.
    """
    folder = folder_of(sweep)
    end = time.monotonic() + patience_seconds
    while (held := claim.acquire(folder)) is None:
        if claim.is_silent(folder):
            claim.force_release(folder)
        elif time.monotonic() < end:
            time.sleep(1.0)
        else:
            raise UserError(
                f"{folder}: another launch is submitting this sweep ({claim.holder_of(folder)}); wait for it"
            )
    try:
        yield held
    finally:
        held.release()
