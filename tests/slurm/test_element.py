"""An element of a Slurm array: real worker processes, told what it is told; the worst of their statuses, and cores."""

import json
import os
import signal
import subprocess
import sys

import pytest

from slurm.element import Supervisor, cores_of, visible_devices
from sweep.common.checkout import ROOT

pytestmark = pytest.mark.usefixtures("end_processes")

TELL = """
import json, os  # one write each, or the lines of several workers mix
told = [os.environ.get("CUDA_VISIBLE_DEVICES"), sorted(os.sched_getaffinity(0))]
os.write(1, json.dumps(told).encode() + b"\\n")
"""
ELEMENT = """
import sys
from slurm.element import Supervisor
element = Supervisor([sys.executable, "-c", sys.argv[1]])
element.listen()
sys.exit(element.run(workers=int(sys.argv[2]), threads=1))
"""


def start(code, workers, **environment):
    """An element in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", ELEMENT, code, str(workers)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(code, workers, **environment):
    process = start(code, workers, **environment)
    said, errors = process.communicate(timeout=30)
    return process.returncode, said, errors


def by_turns(folder, *endings):
    """Code of workers that end differently: each takes the next free number."""
    return (
        "import os, signal, sys\n"
        "for turn in range(9):\n"
        "    try:\n"
        f"        os.mkdir({str(folder)!r} + f'/{{turn}}')\n"
        "        break\n"
        "    except FileExistsError: pass\n"
        f"exec({list(endings)!r}[turn])"
    )


@pytest.mark.parametrize(
    ("endings", "status"),
    [
        (["sys.exit(0)", "sys.exit(0)"], 0),
        (["sys.exit(0)", "sys.exit(1)"], 1),
        (["sys.exit(2)", "sys.exit(0)"], 1),
        (["sys.exit(1)", "sys.exit(75)"], 75),
        (["sys.exit(0)", "os.kill(os.getpid(), 9)"], 1),
        (["sys.exit(0)", "os.kill(os.getpid(), 15)"], 75),
    ],
)
def test_the_exit_status_is_again_if_any_says_so_else_failed_if_any_did(tmp_path, endings, status):
    got, _, errors = run(by_turns(tmp_path, *endings), 2)
    assert got == status, errors
    assert ("was killed by SIGKILL" in errors) == (", 9)" in endings[1])


WAITS = """
import os, signal, sys, time
def told(number, frame):
    os.write(1, signal.Signals(number).name.encode() + b"\\n")
    if number != signal.SIGCONT: sys.exit(75)
for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGCONT): signal.signal(number, told)
os.write(1, b"ready\\n")
time.sleep(30)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_signals_reach_every_worker(number):
    """As Slurm preempts: SIGCONT, then SIGTERM, to the task's process."""
    element = start(WAITS, 2)
    assert [element.stdout.readline() for _ in range(2)] == ["ready\n"] * 2
    element.send_signal(signal.SIGCONT)
    assert [element.stdout.readline() for _ in range(2)] == ["SIGCONT\n"] * 2
    element.send_signal(number)
    said, errors = element.communicate(timeout=30)
    assert said.splitlines() == [number.name] * 2
    assert element.returncode == 75, errors


def test_told_to_stop_before_its_workers_it_starts_none(tmp_path):
    element = Supervisor([sys.executable, "-c", f"open({str(tmp_path / 'started')!r}, 'w')"])
    element._forward(signal.SIGTERM)
    assert element.run(workers=2, threads=1) == 75
    assert list(tmp_path.iterdir()) == []


def test_a_worker_that_does_not_listen_yet_ends_by_the_signal_and_is_run_again():
    element = start("print('ready', flush=True); import time; time.sleep(30)", 1)
    assert element.stdout.readline() == "ready\n"
    element.terminate()
    element.communicate(timeout=30)
    assert element.returncode == 75


# ---- devices and cores ----


def test_workers_share_out_the_devices_and_the_cores():
    cores = sorted(os.sched_getaffinity(0))
    status, said, errors = run(TELL, 4, CUDA_VISIBLE_DEVICES="3,GPU-7", PATH="/nowhere")
    assert status == 0, errors
    told = sorted((json.loads(line) for line in said.splitlines()), key=lambda one: one[0])
    assert [device for device, _ in told] == ["3", "3", "GPU-7", "GPU-7"]
    if len(cores) < 4:
        assert all(mine == cores for _, mine in told)
    status, said, _ = run(TELL, len(cores), CUDA_VISIBLE_DEVICES="")
    told = [json.loads(line) for line in said.splitlines()]
    assert sorted(core for _, mine in told for core in mine) == cores  # each worker its own
    assert {device for device, _ in told} == {""}
    assert sorted(os.sched_getaffinity(0)) == cores


def test_cores_are_shared_out_evenly_where_the_job_has_its_own(monkeypatch):
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "8")
    cores = [2, 3, 4, 5, 10, 11, 12]
    assert [cores_of(number, 3, cores) for number in range(3)] == [[2, 3], [4, 5], [10, 11, 12]]
    assert [cores_of(number, 8, cores) for number in range(8)] == [cores] * 8
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "4")  # the site shows the whole node to a job of four
    assert cores_of(0, 2, cores) == cores


def test_devices_are_what_slurm_says(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_devices() == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert visible_devices() == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert visible_devices() == ["5", "7"]
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", "/tmp/mps")  # of a daemon that numbers the two from 0
    assert visible_devices() == ["0", "1"]
