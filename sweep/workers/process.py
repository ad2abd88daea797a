"""Worker processes, as whoever starts several sees them: what each is told in its environment, and how they ended."""

import os
import signal
from collections.abc import Iterable
from subprocess import Popen

from sweep.common.devices import DEVICE_SHARE
from sweep.common.exits import EXIT_AGAIN, EXIT_DONE, EXIT_FAILED

LOG = "SWEEP_LOG"  # in a worker's environment: the file that its output goes to
PEERS = "SWEEP_PEERS"  # in a worker's environment: how many workers share the families
STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)  # a worker saves and exits with EXIT_AGAIN
STOPPED = (EXIT_AGAIN, *(-number for number in STOP))  # negative: told to stop before it had begun to listen


def worker_environment(number: int, workers: int, threads: int, devices: list[str]) -> dict[str, str]:
    """The environment of one of several workers, which get the devices in turn."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), PEERS: str(workers)}
    if devices:
        environment["CUDA_VISIBLE_DEVICES"] = devices[number % len(devices)]
        environment[DEVICE_SHARE] = str(min(1.0, len(devices) / workers))
    return environment


def kills(workers: Iterable[Popen[bytes]]) -> list[str]:
    """A line on each worker that was ended by a signal which did not ask it to stop. Those that run are left out."""
    return [
        f"worker {worker.pid} was killed by {signal.Signals(-worker.returncode).name}"
        for worker in workers
        if worker.returncode is not None and worker.returncode < 0 and worker.returncode not in STOPPED
    ]


def running(workers: Iterable[Popen[bytes]]) -> bool:
    """Whether any worker has not ended yet."""
    return any(worker.poll() is None for worker in workers)


def exit_status(workers: Iterable[Popen[bytes]], if_both: int) -> int:
    """One exit status for all: `if_both` where some were stopped and others failed.

    That is EXIT_AGAIN on Slurm, which puts an element back into the queue for no other status: what was stopped must
    go on, and a failure is written down all the same. On one machine it is EXIT_FAILED: launching again goes on with
    the rest either way, and who reads the status should know of the failure.
    """
    found = {EXIT_AGAIN if worker.returncode in STOPPED else EXIT_FAILED for worker in workers if worker.returncode}
    return if_both if len(found) > 1 else next(iter(found), EXIT_DONE)
