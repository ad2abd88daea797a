"""One element of a Slurm array. It starts its workers, forwards Slurm's signals to them, and waits for them.

Each worker gets one of the element's devices; several share a device where there are more workers than devices. Where
the job has cores of its own, each worker is pinned to a share of them. Workers take families by claiming them, so all
workers get the same list.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FrameType

from sweep.common.exits import EXIT_AGAIN, say
from sweep.workers.process import STOP, exit_status, kills, running, worker_environment

FORWARDED = (*STOP, signal.SIGCONT)
POLL_SECONDS = 0.5


@dataclass
class Supervisor:
    """Starts one command several times and forwards signals to these workers."""

    command: list[str]
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    told_to_stop: bool = False

    def listen(self) -> None:
        """Forward signals from now on. SIGTERM before there are workers means that none is started."""
        for number in FORWARDED:
            signal.signal(number, self._forward)

    def run(self, workers: int, threads: int, meanwhile: Callable[[], None] = lambda: None) -> int:
        """Start the workers and wait. Returns 75 where a signal stopped one of them, else 1 where one failed, else 0.

        `meanwhile` is called twice a second.
        """
        devices = visible_devices()
        for number in range(workers):
            if not self.told_to_stop:
                self._start(number, workers, threads, devices)
        if self.told_to_stop:  # the signal may have come while a worker was being started
            self._forward(signal.SIGTERM)
        while running(self.processes):
            meanwhile()
            time.sleep(POLL_SECONDS)
        for line in kills(self.processes):
            say(line)
        return EXIT_AGAIN if len(self.processes) < workers else exit_status(self.processes, if_both=EXIT_AGAIN)

    def _start(self, number: int, workers: int, threads: int, devices: list[str]) -> None:
        """Start one worker on its cores. A process inherits its cores, so we move to them and back."""
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
    """The GPUs that Slurm gave the element, in the names that CUDA takes; none where Slurm gave none.

    An MPS daemon of the job sees only the job's devices and numbers them from 0: https://docs.nvidia.com/deploy/mps
    """
    names = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return [str(index) for index in range(len(names))] if "CUDA_MPS_PIPE_DIRECTORY" in os.environ else names


def cores_of(number: int, workers: int, cores: list[int]) -> list[int]:
    """The cores of one of several workers: an equal share, or all of them where the job has no cores of its own.

    A site that does not bind jobs to cores shows the whole node to each job. Pinning workers there would crowd all
    jobs on the same cores.
    """
    granted = int(os.environ.get("SLURM_CPUS_ON_NODE", len(cores)))
    if len(cores) > granted or len(cores) < workers:
        return cores
    return cores[number * len(cores) // workers : (number + 1) * len(cores) // workers]
