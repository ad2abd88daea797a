"""Processes that tests start end with the test, however it ends, and so does everything that they started in turn."""

import contextlib
import os
import uuid
from collections.abc import Iterator

import psutil
import pytest

MARK = "SWEEP_TEST_PROCESSES"  # inherited by every process that is started meanwhile, in whatever session it lives
TRIES = 3


@pytest.fixture
def end_processes() -> Iterator[None]:
    """Kills what a test started and left behind; modules ask for it with `pytest.mark.usefixtures("end_processes")`.

    It is not for tests that restart a daemon of the Slurm cluster, which must outlive them.
    """
    with ending_processes():
        yield


@contextlib.contextmanager
def ending_processes() -> Iterator[None]:
    """At the end, kill every process that was started inside and still lives.

    A mark in their environment tells them, as workers and measurements have sessions, hence process groups, of their
    own, and lose their parent when that is killed first.
    """
    before, mark = os.environ.get(MARK), uuid.uuid4().hex
    os.environ[MARK] = mark
    try:
        yield
    finally:
        os.environ.pop(MARK)
        if before is not None:
            os.environ[MARK] = before
        for _ in range(TRIES):  # one of them may just be starting another
            left = marked(mark)
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(left, timeout=10)


def marked(mark: str) -> list[psutil.Process]:
    """The living processes with this mark in their environment."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # it has ended meanwhile, is a zombie, or is another user's
            if process.environ().get(MARK) == mark and process.pid != os.getpid():
                found.append(process)
    return found
