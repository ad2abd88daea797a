"""A test that fails leaves no process behind."""

import subprocess
import sys

import psutil
import pytest

from tests.helpers.processes import ending_processes

STARTS = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
print(child.pid, flush=True)
"""


def start_and_fail(pids):
    """A process, another that it starts, and one more whose parent has ended."""
    with ending_processes():
        parent = subprocess.Popen(
            [sys.executable, "-c", f"{STARTS}import time; time.sleep(60)"], stdout=subprocess.PIPE
        )
        orphan = subprocess.run([sys.executable, "-c", STARTS], stdout=subprocess.PIPE, check=True)
        pids += [parent.pid, int(parent.stdout.readline()), int(orphan.stdout)]
        assert all(map(psutil.pid_exists, pids))
        raise ZeroDivisionError


def test_what_a_failing_test_started_ends_with_it():
    """Also a process in a session of its own whose parent has ended, as the worker of a launch that was killed."""
    pids = []
    with pytest.raises(ZeroDivisionError):
        start_and_fail(pids)
    assert len(pids) == 3
    assert not [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]
