"""Which launches are alive on a machine: their trials wait for their turn, where others would have been forgotten.

A launch and each of its workers keep a file `sweeps/<name>/launches/<nonce>.json` while they live, rewritten every few
seconds. One that was killed leaves its file, which counts for nothing: its process is known to be gone, or, on another
host, its file is silent. The next launch on the same host removes it.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from sweep.common import artefacts
from sweep.common.errors import UserError
from sweep.common.files import write_json
from sweep.runs.claim import STALE_SECONDS, Holder

RENEW_SECONDS = 10.0
LOOK_SECONDS = 0.2  # between two looks whether it is stopping


@dataclass(frozen=True)
class Launch:
    """A process that goes through the families of a sweep: a launch, or one of its workers."""

    process: Holder
    began: float  # seconds since the epoch
    families: list[str] | None = None  # the ones that it is about; None: all of the sweep
    stopping: bool = False  # it was told to stop, and begins no family any more
    renewed: float = field(default_factory=time.time)  # seconds since the epoch

    def is_alive(self) -> bool:
        """Whether its process is there; on another host, whether it has renewed its file lately."""
        gone = self.process.is_gone()
        return time.time() - self.renewed < STALE_SECONDS if gone is None else not gone

    def includes(self, family_id: str) -> bool:
        return self.families is None or family_id in self.families

    def __str__(self) -> str:
        return f"host {self.process.host}, process {self.process.pid}"


@contextlib.contextmanager
def announced(
    sweep: Path, families: Collection[str] | None = None, is_stopping: Callable[[], bool] = lambda: False
) -> Iterator[None]:
    """This process goes through families of the sweep in this folder, all or those named, within the context.

    `is_stopping` is asked again and again: whether the process was told to stop.
    """
    process = Holder.here()
    launch = Launch(process, time.time(), None if families is None else sorted(families))
    path = _folder(sweep) / f"{process.nonce}.json"
    over = threading.Event()

    def write() -> None:
        with contextlib.suppress(OSError, UserError):  # a full disk: training has its own, louder handling of it
            write_json(path, asdict(replace(launch, renewed=time.time(), stopping=is_stopping())))

    def keep_writing() -> None:
        said, last = False, time.monotonic()
        while not over.wait(min(LOOK_SECONDS, RENEW_SECONDS)):
            if is_stopping() != said or time.monotonic() - last >= RENEW_SECONDS:
                said, last = is_stopping(), time.monotonic()
                write()

    _remove_gone(sweep)
    write()
    thread = threading.Thread(target=keep_writing, name="launch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # others still have files there
            _folder(sweep).rmdir()


def alive(sweep: Path) -> list[Launch]:
    """The living launches and workers of the sweep in this folder. Reads only."""
    found = []
    for path in sorted(_folder(sweep).glob("*.json")):
        with contextlib.suppress(OSError, UserError):  # it has just ended; a damaged file is only a hint less
            launch = artefacts.read(Launch, path)
            found += [launch] if launch.is_alive() else []
    return found


def _remove_gone(sweep: Path) -> None:
    """Remove what killed processes of this host left."""
    for path in _folder(sweep).glob("*.json"):
        with contextlib.suppress(OSError, UserError):
            if artefacts.read(Launch, path).process.is_gone():
                path.unlink()


def _folder(sweep: Path) -> Path:
    return sweep / "launches"
