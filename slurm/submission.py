"""The folder of one submission: what was handed to Slurm, enough to find every job again.

sweeps/<name>/slurm/<NNN>/
  submission.json   jobs with their names and ids, the frozen code, the cluster's section
  tasks.jsonl       one line per array element: its families, workers, estimated seconds
  *.sbatch          the scripts
  logs/             <array id>_<index>.log of elements, prepare-<id>.log, collector-<id>.log
  dirty.diff        how the code differed from its commit
  prepared.json     once the job that prepares the data has written the real ids to tasks.jsonl

A job's name is unique (it carries the submission's tag), so that one whose id was never written down is found by it.
"""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sweep.common.errors import UserError
from sweep.common.files import read_json, read_json_lines, write_json
from sweep.runs import claim
from sweep.runs.sweepdir import SweepDir

PREPARED = "prepared.json"


@dataclass
class JobRef:
    """A job: its unique name, its script, and its id once Slurm gave one."""

    name: str
    script: str
    job_id: int | None = None


@dataclass
class Chunk(JobRef):
    """One array: the elements `tasks[0]` to `tasks[1]` of tasks.jsonl, whose array indices start at 0."""

    group: str = ""
    tasks: tuple[int, int] = (0, 0)

    @classmethod
    def of(cls, value: dict[str, Any]) -> "Chunk":
        """From submission.json, which has an `offset` too where an earlier version wrote it: `tasks[0]` again."""
        return cls(value["name"], value["script"], value["job_id"], value["group"], tuple(value["tasks"]))

    def index(self, task: int) -> int:
        """The array index of an element."""
        return task - self.tasks[0]

    def task(self, index: int) -> int:
        """The element of an array index."""
        return self.tasks[0] + index


@dataclass
class Submission:
    folder: Path
    number: int
    tag: str
    time: float  # seconds since the epoch
    sweep: str
    command: list[str]
    overrides: list[str]
    code: str
    commit: str | None
    dirty: bool
    unprepared: bool  # ids are provisional until the job that prepares the data has written the real ones
    slurm: dict[str, Any]
    chunks: list[Chunk]
    prepare: JobRef | None
    collector: JobRef | None

    @classmethod
    def read(cls, folder: Path) -> "Submission":
        path = folder / "submission.json"
        value = read_json(path)
        try:
            chunks = [Chunk.of(chunk) for chunk in value.pop("chunks")]
            beside = {key: JobRef(**value[key]) if value[key] else None for key in ("prepare", "collector")}
            return cls(folder=folder, **{**value, **beside}, chunks=chunks)
        except (AttributeError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}: damaged, or of another version ({type(error).__name__}: {error}); restore it, or move its "
                "folder away: what it submitted is then not found again"
            ) from error

    def write(self) -> None:
        value = asdict(self)
        del value["folder"]
        write_json(self.folder / "submission.json", value)

    def tasks(self) -> list[dict[str, Any]]:
        """The array elements: task, group, families, workers, seconds."""
        return read_json_lines(self.folder / "tasks.jsonl")

    def jobs(self) -> list[JobRef]:
        """Every job, in the order of submission."""
        return [job for job in (self.prepare, *self.chunks, self.collector) if job is not None]

    def names(self) -> list[str]:
        return [job.name for job in self.jobs()]

    def chunk_of(self, task: int) -> Chunk:
        return next(chunk for chunk in self.chunks if chunk.tasks[0] <= task <= chunk.tasks[1])


def folder_of(sweep: SweepDir) -> Path:
    return sweep.path / "slurm"


def submissions(sweep: SweepDir) -> list[Submission]:
    """A sweep's submissions, oldest first."""
    folders = sorted(path for path in folder_of(sweep).glob("[0-9]*") if (path / "submission.json").exists())
    return [Submission.read(folder) for folder in folders]


@contextlib.contextmanager
def exclusive(sweep: SweepDir, patience_seconds: float = 0.0) -> Iterator[claim.Claim]:
    """The right to submit for a sweep, and to write its plan; UserError that says who has it.

    Submitting takes seconds, so a holder on another host that has been silent for minutes is gone; should it ever come
    back, `claim.lost` tells it so.
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
