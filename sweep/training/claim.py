"""Who is training a family: claims that survive killed workers, without file locks.

A family's folder holds `claim.000001.json`, `claim.000002.json`, …; the highest number is the current claim. Taking
one over is creating the next number, which only one process can do (an exclusive hard link, atomic on network file
systems where flock is not). The holder renews `heartbeat.json`; when a higher number appears it has lost the claim.
A claim is stale only if its process is gone. Where that cannot be told (another host), it stays until a person says so.
"""

import json
import os
import socket
import threading
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from sweep.errors import UserError
from sweep.files import create_json, write_json

HEARTBEAT_SECONDS = 2.0
STALE_SECONDS = 120.0


@dataclass
class Holder:
    """A process that can be told from any other, also one that got its pid later."""

    host: str
    boot_id: str
    pid_namespace: str
    pid: int
    started: float  # seconds since the epoch, of the process
    nonce: str

    @classmethod
    def here(cls) -> "Holder":
        return cls(
            host=socket.gethostname(),
            boot_id=_read("/proc/sys/kernel/random/boot_id"),
            pid_namespace=_readlink("/proc/self/ns/pid"),
            pid=os.getpid(),
            started=psutil.Process().create_time(),
            nonce=uuid.uuid4().hex,
        )

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


def acquire(folder: Path) -> Claim | None:
    """Claim the family whose folder this is, or None while somebody else holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    generation, released = _current(folder)
    if not released and _held(folder, generation):
        return None
    holder = Holder.here()
    if not create_json(_path(folder, generation + 1), asdict(holder)):
        return None  # somebody else was faster
    return Claim(folder, generation + 1, holder)


def living(folder: Path) -> dict[str, Any] | None:
    """The heartbeat of whoever holds the family now, or None. Reads only."""
    generation, released = _current(folder)
    if released or _held(folder, generation) is None:
        return None
    return _heartbeat(folder)


def is_silent(folder: Path) -> bool:
    """Whether a claim counts, but has not been renewed for long: its process cannot be asked after from here."""
    generation, released = _current(folder)
    if released or _held(folder, generation) is None:
        return False
    return time.time() - _heartbeat(folder).get("time", 0.0) > STALE_SECONDS


def holder_of(folder: Path) -> str:
    """Who holds the family, in words."""
    return _held(folder, _current(folder)[0]) or "nobody"


def force_release(folder: Path) -> bool:
    """End the current claim on a person's word that its process is gone."""
    generation, released = _current(folder)
    if not released:
        _release(folder, generation)
    return not released


def _held(folder: Path, generation: int) -> str | None:
    """Why the claim of this generation still counts, or None if it is stale."""
    try:
        holder = Holder(**json.loads(_path(folder, generation).read_text()))
    except FileNotFoundError:
        return "it changed hands at this moment"
    gone = holder.is_gone()
    if gone:
        return None
    age = time.time() - _heartbeat(folder).get("time", 0.0)
    since = f"host {holder.host}, process {holder.pid}, last heartbeat {age:.0f} s ago"
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
