"""One element of a Slurm array: starts its workers, tells them what Slurm tells it, waits for them.

Each worker gets a device of the element's (several share one where there are more workers), and cores of its own where
the job has cores of its own. Workers pull families by claiming them, so all get the same list.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

EXIT_AGAIN, EXIT_FAILED = 75, 1  # as sweep.training.worker's, which imports torch
STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
FORWARDED = (*STOP, signal.SIGCONT)
AGAIN = (EXIT_AGAIN, *(-number for number in STOP))  # the latter: told to stop before it had begun to listen
MPS = "nvidia-cuda-mps-control"
MPS_SECONDS = 60  # to start or to stop


@dataclass
class Supervisor:
    """Workers of one command, and the signals that they are told."""

    command: list[str]
    workers: int
    threads: int
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    told_to_stop: bool = False

    def listen(self) -> None:
        """From now on signals are forwarded; SIGTERM before there are workers means that none is started."""
        for number in FORWARDED:
            signal.signal(number, self._forward)

    def run(self, mps: bool) -> int:
        """Start the workers and wait: 75 where one was stopped by a signal, else 1 where one failed, else 0."""
        devices = visible_devices()
        shared = mps and self.workers > len(devices) > 0 and shutil.which(MPS) is not None
        with mps_daemon() if shared else unshared() as environment:
            if environment:  # the daemon numbers the devices that it sees anew
                devices = [str(index) for index in range(len(devices))]
            for number in range(self.workers):
                if not self.told_to_stop:
                    self._start(number, devices, environment)
            if self.told_to_stop:  # perhaps while one was being started
                self._forward(signal.SIGTERM)
            statuses = [process.wait() for process in self.processes]
        for process, status in zip(self.processes, statuses, strict=True):
            if status < 0 and status not in AGAIN:
                say(f"worker {process.pid} was killed by {signal.Signals(-status).name}")
        if len(statuses) < self.workers or set(statuses) & set(AGAIN):
            return EXIT_AGAIN
        return EXIT_FAILED if any(statuses) else 0

    def _start(self, number: int, devices: list[str], environment: dict[str, str]) -> None:
        """One worker, on its cores: it inherits them, so they are taken before and given back after."""
        device = {"CUDA_VISIBLE_DEVICES": devices[number % len(devices)]} if devices else {}
        cores = os.sched_getaffinity(0)
        os.sched_setaffinity(0, cores_of(number, self.workers, sorted(cores)))
        try:
            process = subprocess.Popen(
                self.command,
                env={**os.environ, "OMP_NUM_THREADS": str(self.threads), **device, **environment},
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
    """The GPUs that Slurm gave the element, as it names them; none where it said nothing."""
    return [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]


def cores_of(number: int, workers: int, cores: list[int]) -> list[int]:
    """The cores of one of several workers: an equal share, or all of them where the job has none of its own.

    A site that does not bind jobs to cores shows each the whole node; pinning there would crowd jobs on the same cores.
    """
    granted = int(os.environ.get("SLURM_CPUS_ON_NODE", len(cores)))
    if len(cores) > granted or len(cores) < workers:
        return cores
    return cores[number * len(cores) // workers : (number + 1) * len(cores) // workers]


@contextmanager
def mps_daemon() -> Iterator[dict[str, str]]:
    """NVIDIA's MPS for this job alone, so that kernels of several workers run at once; what its clients need to know.

    https://docs.nvidia.com/deploy/mps. Where it does not start, workers take turns on the device: said, not fatal.
    """
    folder = tempfile.mkdtemp(prefix="mps-")
    environment = {"CUDA_MPS_PIPE_DIRECTORY": folder, "CUDA_MPS_LOG_DIRECTORY": folder}
    if not _mps_control(["-d"], environment):
        shutil.rmtree(folder, ignore_errors=True)
        yield {}
        return
    try:
        yield environment
    finally:
        _mps_control([], environment, said="quit\n")
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def unshared() -> Iterator[dict[str, str]]:
    yield {}


def _mps_control(arguments: list[str], environment: dict[str, str], said: str = "") -> bool:
    """Whether the daemon did as it was told."""
    answer = Path(environment["CUDA_MPS_LOG_DIRECTORY"]) / "answer.txt"  # a pipe would stay open as long as the daemon
    with open(answer, "w") as output:
        try:
            ended = subprocess.run(
                [MPS, *arguments], env={**os.environ, **environment}, input=said.encode(), stdout=output, stderr=output,
                timeout=MPS_SECONDS, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            say(f"{MPS} did not answer in {MPS_SECONDS} s")
            return False
    if ended.returncode:
        say(f"{MPS}: {answer.read_text().strip() or f'exit status {ended.returncode}'}")
    return ended.returncode == 0


def say(line: str) -> None:
    """One line in one write, so that those of several workers on one log do not mix."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
