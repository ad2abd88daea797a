"""Who is training a family: claims that survive killed workers, without file locks.

A family's folder holds `claim.000001.json`, `claim.000002.json`, …; the highest number is the current claim. Taking
one over is creating the next number, which only one process can do (an exclusive hard link, atomic on network file
systems where flock is not). The holder renews `heartbeat.json`; when a higher number appears it has lost the claim.
A claim is stale only if its process is gone. Where that cannot be told (another host), it is stale if its Slurm job is
gone or was started anew, and its heartbeat silent: a process can outlive its job on a node that lost its controller.
Whoever acquires brings the question after jobs along (`job_is_gone`); where there is no answer, the claim stays until a
person says so.
"""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from sweep.common.errors import UserError
from sweep.common.files import create_json, read_json, write_json

HEARTBEAT_SECONDS = 2.0
SILENT_SECONDS = 30.0  # without a heartbeat, after which a claim whose Slurm job is gone may be taken over
STALE_SECONDS = 120.0  # without a heartbeat, after which a person is told how to release a claim


@dataclass(frozen=True)
class Job:
    """The Slurm job, or the array's element, that a process belongs to. `restart` counts its requeues."""

    id: str  # <job>, or <array job>_<index>
    name: str
    restart: int
    cluster: str
    node: str

    @classmethod
    def here(cls) -> "Job | None":
        """The job that this process runs in."""
        environ = os.environ
        if "SLURM_JOB_ID" not in environ:
            return None
        array = environ.get("SLURM_ARRAY_JOB_ID")
        return cls(
            id=f"{array}_{environ['SLURM_ARRAY_TASK_ID']}" if array else environ["SLURM_JOB_ID"],
            name=environ.get("SLURM_JOB_NAME", ""),
            restart=int(environ.get("SLURM_RESTART_COUNT", "0")),
            cluster=environ.get("SLURM_CLUSTER_NAME", ""),
            node=environ.get("SLURMD_NODENAME", ""),
        )

    def is_earlier_than(self, other: "Job | None") -> bool:
        """Whether this is the same job before a requeue."""
        if other is None or (self.id, self.cluster) != (other.id, other.cluster):
            return False
        return self.restart < other.restart


JobIsGone = Callable[[Job], bool | None]  # None: nobody answers, so nothing is known


def unknown(job: Job) -> bool | None:
    """The answer where nobody can ask Slurm."""
    return None


@dataclass
class Holder:
    """A process that can be told from any other, also one that got its pid later."""

    host: str
    boot_id: str
    pid_namespace: str
    pid: int
    started: float  # seconds since the epoch, of the process
    nonce: str
    job: Job | None = None

    @classmethod
    def here(cls) -> "Holder":
        return cls(
            host=socket.gethostname(),
            boot_id=_read("/proc/sys/kernel/random/boot_id"),
            pid_namespace=_readlink("/proc/self/ns/pid"),
            pid=os.getpid(),
            started=psutil.Process().create_time(),
            nonce=uuid.uuid4().hex,
            job=Job.here(),
        )

    @classmethod
    def read(cls, path: Path) -> "Holder":
        value = read_json(path)
        try:
            return cls(**{**value, "job": Job(**value["job"]) if value.get("job") else None})
        except (TypeError, AttributeError) as error:
            raise UserError(f"{path}: not a claim of this version ({error}); delete it") from error

    @property
    def place(self) -> tuple[str, str, str]:
        """Within which a process's number is its own."""
        return self.host, self.boot_id, self.pid_namespace

    def is_gone(self) -> bool | None:
        """True or False where this host can tell, None where it cannot."""
        here = Holder.here()
        if self.host != here.host:
            return None
        if self.boot_id != here.boot_id:
            return True  # the same host has been started anew
        if self.pid_namespace != here.pid_namespace:
            return None
        try:
            process = psutil.Process(self.pid)
            return abs(process.create_time() - self.started) > 1.0 or process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True


class Claim:
    """The exclusive right to train one family, renewed from a thread of its own until `release`."""

    def __init__(self, folder: Path, generation: int, holder: Holder):
        self.folder = folder
        self.generation = generation
        self.holder = holder
        self.progress: dict[str, Any] = {}
        self._stop = threading.Event()
        self._lost = threading.Event()
        self._beat()
        self._thread = threading.Thread(target=self._keep_beating, name="heartbeat", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> bool:
        return self._lost.is_set()

    def release(self) -> None:
        """Let the next one claim the family at once."""
        self._stop.set()
        self._thread.join()
        _release(self.folder, self.generation)

    def _keep_beating(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            if _current(self.folder) != (self.generation, False):
                self._lost.set()
                return
            self._beat()

    def _beat(self) -> None:
        beat = {
            "generation": self.generation,
            "nonce": self.holder.nonce,
            "time": time.time(),
            **self.progress,
        }
        try:
            write_json(self.folder / "heartbeat.json", beat)
        except (OSError, UserError):
            # A full disk must not end the training thread's own, louder handling of it; a late beat is only late.
            return


def acquire(folder: Path, job_is_gone: JobIsGone = unknown) -> Claim | None:
    """Claim the family whose folder this is, or None while somebody else holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    generation, released = _current(folder)
    if not released and _held(folder, generation, job_is_gone):
        return None
    holder = Holder.here()
    if not create_json(_path(folder, generation + 1), asdict(holder)):
        return None  # somebody else was faster
    return Claim(folder, generation + 1, holder)


def living(folder: Path, job_is_gone: JobIsGone = unknown) -> dict[str, Any] | None:
    """The heartbeat of whoever holds the family now, or None. Reads only."""
    generation, released = _current(folder)
    if released or _held(folder, generation, job_is_gone) is None:
        return None
    return _heartbeat(folder)


def current_holder(folder: Path) -> Holder | None:
    """Whose claim is the last one and not released; it may be stale."""
    generation, released = _current(folder)
    return None if released else Holder.read(_path(folder, generation))


def is_of_our_job_before(folder: Path) -> bool:
    """Whether a process of this very job, from before its requeue, holds the family: it will end, or fall silent."""
    holder = current_holder(folder)
    return holder is not None and holder.job is not None and holder.job.is_earlier_than(Job.here())


def is_silent(folder: Path) -> bool:
    """Whether a claim counts, but has not been renewed for long: its process cannot be asked after from here."""
    generation, released = _current(folder)
    if released or _held(folder, generation) is None:
        return False
    return time.time() - _heartbeat(folder).get("time", 0.0) > STALE_SECONDS


def last_beat(folder: Path) -> float | None:
    """When whoever held the family last gave a sign of life, in seconds since the epoch."""
    return _heartbeat(folder).get("time")


def holder_of(folder: Path) -> str:
    """Who holds the family, in words."""
    return _held(folder, _current(folder)[0]) or "nobody"


def force_release(folder: Path) -> bool:
    """End the current claim on a person's word that its process is gone."""
    generation, released = _current(folder)
    if not released:
        _release(folder, generation)
    return not released


def _held(folder: Path, generation: int, job_is_gone: JobIsGone = unknown) -> str | None:
    """Why the claim of this generation still counts, or None if it is stale."""
    if not _path(folder, generation).exists():
        return "it changed hands at this moment"
    holder = Holder.read(_path(folder, generation))
    gone, job = holder.is_gone(), holder.job
    if gone:
        return None
    age = time.time() - _heartbeat(folder).get("time", 0.0)
    if gone is None and job and age > SILENT_SECONDS and (job.is_earlier_than(Job.here()) or job_is_gone(job)):
        return None
    where = f"host {holder.host}" + (f", job {job.id}" if job else "")
    since = f"{where}, process {holder.pid}, last heartbeat {age:.0f} s ago"
    if gone is None and age > STALE_SECONDS:
        return f"{since}; if that process is gone, release it with `python -m sweep clean --claims`"
    return since


def _heartbeat(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "heartbeat.json").read_text())
    except FileNotFoundError:
        return {}


def _current(folder: Path) -> tuple[int, bool]:
    """The highest claim's number and whether it was released; (0, True) where there never was one.

    Claims stay on disk: a number that was used can never be created again.
    """
    numbers = [int(path.name.split(".")[1]) for path in folder.glob("claim.*.json")]
    if not numbers:
        return 0, True
    return max(numbers), _path(folder, max(numbers), "released").exists()


def _release(folder: Path, generation: int) -> None:
    _path(folder, generation, "released").touch()


def _path(folder: Path, generation: int, ending: str = "json") -> Path:
    return folder / f"claim.{generation:06d}.{ending}"


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _readlink(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
