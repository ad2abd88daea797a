"""One element of a Slurm array: starts its workers, tells them what Slurm tells it, waits for them.

Each worker gets a device of the element's (several share one where there are more workers), and cores of its own where
the job has cores of its own. Workers pull families by claiming them, so all get the same list.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FrameType

from sweep.exits import EXIT_AGAIN, EXIT_FAILED, say

LOG = "SWEEP_LOG"  # in a worker's environment: the file that its output goes to;
PEERS = "SWEEP_PEERS"  # how many workers share the families;
DEVICE_SHARE = "SWEEP_DEVICE_SHARE"  # how much of a device each of them has
STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
FORWARDED = (*STOP, signal.SIGCONT)
POLL_SECONDS = 0.5
AGAIN = (EXIT_AGAIN, *(-number for number in STOP))  # the latter: told to stop before it had begun to listen


@dataclass
class Supervisor:
    """Workers of one command, and the signals that they are told."""

    command: list[str]
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    told_to_stop: bool = False

    def listen(self) -> None:
        """From now on signals are forwarded; SIGTERM before there are workers means that none is started."""
        for number in FORWARDED:
            signal.signal(number, self._forward)

    def run(self, workers: int, threads: int, meanwhile: Callable[[], None] = lambda: None) -> int:
        """Start the workers and wait: 75 where one was stopped by a signal, else 1 where one failed, else 0."""
        devices = visible_devices()
        for number in range(workers):
            if not self.told_to_stop:
                self._start(number, workers, threads, devices)
        if self.told_to_stop:  # perhaps while one was being started
            self._forward(signal.SIGTERM)
        while any(process.poll() is None for process in self.processes):
            meanwhile()
            time.sleep(POLL_SECONDS)
        statuses = [process.wait() for process in self.processes]
        for process, status in zip(self.processes, statuses, strict=True):
            if status < 0 and status not in AGAIN:
                say(f"worker {process.pid} was killed by {signal.Signals(-status).name}")
        if len(statuses) < workers or set(statuses) & set(AGAIN):
            return EXIT_AGAIN
        return EXIT_FAILED if any(statuses) else 0

    def _start(self, number: int, workers: int, threads: int, devices: list[str]) -> None:
        """One worker, on its cores: it inherits them, so they are taken before and given back after."""
        device = {}
        if devices:
            share = min(1.0, len(devices) / workers)
            device = {"CUDA_VISIBLE_DEVICES": devices[number % len(devices)], DEVICE_SHARE: str(share)}
        cores = os.sched_getaffinity(0)
        os.sched_setaffinity(0, cores_of(number, workers, sorted(cores)))
        try:
            process = subprocess.Popen(
                self.command,
                env={**os.environ, "OMP_NUM_THREADS": str(threads), PEERS: str(workers), **device},
                stdin=subprocess.DEVNULL,
            )
        finally:
            os.sched_setaffinity(0, cores)
        self.processes.append(process)

    def _forward(self, number: int, frame: FrameType | None = None) -> None:
        self.told_to_stop |= number in STOP
        for process in self.processes:
            process.send_signal(number)


def visible_devices() -> list[str]:
    """The GPUs that Slurm gave the element, as CUDA's programs are to name them; none where it said nothing.

    Where the job has an MPS daemon, that sees only the job's devices and numbers them from 0.
    https://docs.nvidia.com/deploy/mps
    """
    names = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return [str(index) for index in range(len(names))] if "CUDA_MPS_PIPE_DIRECTORY" in os.environ else names


def cores_of(number: int, workers: int, cores: list[int]) -> list[int]:
    """The cores of one of several workers: an equal share, or all of them where the job has none of its own.

    A site that does not bind jobs to cores shows each the whole node; pinning there would crowd jobs on the same cores.
    """
    granted = int(os.environ.get("SLURM_CPUS_ON_NODE", len(cores)))
    if len(cores) > granted or len(cores) < workers:
        return cores
    return cores[number * len(cores) // workers : (number + 1) * len(cores) // workers]
