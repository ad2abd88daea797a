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

from sweep.common.exits import EXIT_AGAIN, say
from sweep.workers.process import STOP, exit_status, kills, worker_environment

FORWARDED = (*STOP, signal.SIGCONT)
POLL_SECONDS = 0.5


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
        for line in kills(self.processes):
            say(line)
        return EXIT_AGAIN if len(self.processes) < workers else exit_status(self.processes, if_both=EXIT_AGAIN)

    def _start(self, number: int, workers: int, threads: int, devices: list[str]) -> None:
        """One worker, on its cores: it inherits them, so they are taken before and given back after."""
        cores = os.sched_getaffinity(0)
        os.sched_setaffinity(0, cores_of(number, workers, sorted(cores)))
        try:
            process = subprocess.Popen(
                self.command,
                env=worker_environment(number, workers, threads, devices),
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
