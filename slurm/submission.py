"""The folder of one submission: what was handed to Slurm, enough to find every job again.

sweeps/<name>/slurm/<NNN>/
  submission.json   jobs with their names and ids, the frozen code, the cluster's section
  tasks.jsonl       one line per array element: its families, workers, estimated seconds
  *.sbatch          the scripts
  logs/             <array id>_<index>.log of elements, prepare-<id>.log, collector-<id>.log
  dirty.diff        how the code differed from its commit

A job's name is unique (it carries the submission's tag), so that one whose id was never written down is found by it.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sweep.files import read_json, read_json_lines, write_json
from sweep.sweepdir import SweepDir


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
    offset: int = 0

    def index(self, task: int) -> int:
        """The array index of an element."""
        return task - self.offset


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
        value = read_json(folder / "submission.json")
        chunks = [Chunk(**{**chunk, "tasks": tuple(chunk["tasks"])}) for chunk in value.pop("chunks")]
        beside = {key: JobRef(**value[key]) if value[key] else None for key in ("prepare", "collector")}
        return cls(folder=folder, **{**value, **beside}, chunks=chunks)

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
