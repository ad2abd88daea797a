"""Starts workers that are killed at chosen moments (`killed_worker.py`)."""

import json
import os
import subprocess
import sys

from sweep.common.checkout import ROOT
from tests.helpers.processes import ending_processes


def start(sweep, *arguments):
    """Lines that the driver printed, and what its workers said on stderr."""
    with ending_processes():
        ended = subprocess.run(
            [sys.executable, ROOT / "tests" / "helpers" / "killed_worker.py", str(sweep), *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert ended.returncode == 0, ended.stderr
    return [json.loads(line) for line in ended.stdout.splitlines()], ended.stderr
