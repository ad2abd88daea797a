"""Who is training a family: claims that survive killed workers, without file locks.

A family's folder holds `claim.000001.json`, `claim.000002.json`, …; the highest number is the current claim. Taking
one over means creating the next number, which only one process can do (an exclusive hard link, atomic on network file
systems where flock is not). The holder renews `heartbeat.json`; when a higher number appears, it has lost the claim.
A claim is stale only if its process is gone. Where that cannot be told (another host), it is stale if its Slurm job is
gone or was restarted, and its heartbeat is silent: a process can outlive its job on a node that lost its controller.
Whoever asks hands in a way to ask about jobs (`job_is_gone`); where there is no answer, the claim stays until a person
releases it.
"""

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import psutil

from sweep.common import artefacts
from sweep.common.errors import UserError
from sweep.common.files import create_json, write_json

HEARTBEAT_SECONDS = 2.0
SILENT_SECONDS = 30.0  # without a heartbeat, after which a claim whose Slurm job is gone may be taken over
STALE_SECONDS = 120.0  # without a heartbeat, after which a person is told how to release a claim


@dataclass(frozen=True)
class Job:
    """The Slurm job, or array element, that a process belongs to. `restart` counts its requeues."""

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


@dataclass(frozen=True)
class Holder:
    """A process, described so that it can be told from any other, also from one that is given its pid later."""

    host: str
    boot_id: str
    pid_namespace: str
    pid: int
    started: float  # seconds since the epoch, of the process
    nonce: str
    job: Job | None = None

    @classmethod
    def here(cls) -> "Holder":
        """This process."""
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
        """The holder that a claim's file names; UserError where it is damaged."""
        return artefacts.read(cls, path, mend="delete it")

    @property
    def place(self) -> tuple[str, str, str]:
        """Where the process's pid is unique: host, boot, and pid namespace."""
        return self.host, self.boot_id, self.pid_namespace

    def is_gone(self) -> bool | None:
        """True or False where this host can tell, None where it cannot."""
        here = Holder.here()
        if self.host != here.host:
            return None
        if self.boot_id != here.boot_id:
            return True  # the same host has been rebooted
        if self.pid_namespace != here.pid_namespace:
            return None
        try:
            process = psutil.Process(self.pid)
            return abs(process.create_time() - self.started) > 1.0 or process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True


@dataclass(frozen=True)
class Heartbeat:
    """The holder's sign of life, and how far it is. Everything is at its default before the first one."""

    generation: int = 0  # of the claim
    nonce: str = ""  # the holder's
    time: float = 0.0  # seconds since the epoch
    trial_id: str | None = None  # what is trained now
    step: int = 0
    steps: int = 0
    loss_nats: float | None = None
    tokens_per_second: float | None = None

    @property
    def age_seconds(self) -> float:
        return time.time() - self.time


PROGRESS = {field.name for field in fields(Heartbeat)} - {"generation", "nonce", "time"}


@dataclass(frozen=True)
class Held:
    """A claim that counts: its holder is alive, or nobody here can tell that it is not."""

    holder: Holder
    heartbeat: Heartbeat
    is_alive: bool | None  # None: its process is on another host, where it cannot be looked for

    @property
    def is_silent(self) -> bool:
        """Whether the holder has given no sign of life for long."""
        return self.heartbeat.age_seconds > STALE_SECONDS

    def __str__(self) -> str:
        job = f", job {self.holder.job.id}" if self.holder.job else ""
        beat = f"last heartbeat {self.heartbeat.age_seconds:.0f} s ago"
        said = f"host {self.holder.host}{job}, process {self.holder.pid}, {beat}"
        if self.is_alive is None and self.is_silent:
            return f"{said}; if that process is gone, release its claim with `python -m sweep clean --claims`"
        return said


class Claim:
    """The exclusive right to train one family, renewed from a thread of its own until `release`."""

    def __init__(self, folder: Path, generation: int, holder: Holder):
        self.folder = folder
        self.generation = generation
        self.holder = holder
        self.heartbeat = Heartbeat(generation, holder.nonce)
        self._stop = threading.Event()
        self._lost = threading.Event()
        self._beat()
        self._thread = threading.Thread(target=self._keep_beating, name="heartbeat", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> bool:
        """Whether somebody else has taken the claim over, or a person has released it."""
        return self._lost.is_set()

    def report(self, news: Mapping[str, object]) -> None:
        """Progress for the next heartbeat to carry; of the news, what a heartbeat has a field for."""
        self.heartbeat = replace(self.heartbeat, **{key: news[key] for key in PROGRESS & news.keys()})  # type: ignore[arg-type]

    def release(self) -> None:
        """Let the next process claim the family at once."""
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
        try:
            write_json(self.folder / "heartbeat.json", asdict(replace(self.heartbeat, time=time.time())))
        except (OSError, UserError):
            # A full disk must not end the training thread's own, louder handling of it; a late beat is only late.
            return


def acquire(folder: Path, job_is_gone: JobIsGone = unknown) -> Claim | None:
    """Claim the family whose folder this is; None while somebody else holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    generation, _ = _current(folder)
    if held_by(folder, job_is_gone) is not None:
        return None
    holder = Holder.here()
    if not create_json(_path(folder, generation + 1), asdict(holder)):
        return None  # somebody else was faster
    return Claim(folder, generation + 1, holder)


def held_by(folder: Path, job_is_gone: JobIsGone = unknown) -> Held | None:
    """The claim that counts now, or None where the last one was released or is stale. Reads only.

    UserError where the claim or its heartbeat is damaged.
    """
    holder = current_holder(folder)
    if holder is None or (gone := holder.is_gone()):
        return None
    heartbeat, job = _heartbeat(folder), holder.job
    is_silent = gone is None and heartbeat.age_seconds > SILENT_SECONDS
    if is_silent and job is not None and (job.is_earlier_than(Job.here()) or job_is_gone(job)):
        return None
    return Held(holder, heartbeat, is_alive=None if gone is None else True)


def current_holder(folder: Path) -> Holder | None:
    """Whose claim is the last one and not released; it may be stale."""
    generation, released = _current(folder)
    return None if released else Holder.read(_path(folder, generation))


def is_of_our_job_before(folder: Path) -> bool:
    """Whether the claim is held by a process of this very job from before its requeue: it will end, or fall silent."""
    holder = current_holder(folder)
    return holder is not None and holder.job is not None and holder.job.is_earlier_than(Job.here())


def is_silent(folder: Path) -> bool:
    """Whether a claim counts, but has not been renewed for long."""
    held = held_by(folder)
    return held is not None and held.is_silent


def last_beat(folder: Path) -> float | None:
    """When whoever held the family last gave a sign of life, in seconds since the epoch; None where nobody ever did."""
    return _heartbeat(folder).time or None


def holder_of(folder: Path) -> str:
    """Who holds the family, in words."""
    return str(held_by(folder) or "nobody")


def force_release(folder: Path) -> bool:
    """End the current claim because a person says that its process is gone; whether there was one."""
    generation, released = _current(folder)
    if not released:
        _release(folder, generation)
    return not released


def _heartbeat(folder: Path) -> Heartbeat:
    path = folder / "heartbeat.json"
    try:
        return artefacts.decode(Heartbeat, path.read_bytes(), path, mend="delete it")
    except FileNotFoundError:
        return Heartbeat()


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
