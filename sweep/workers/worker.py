"""What one process trains with, whatever it trains: folders, options, the device, who is told, and when to stop."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from sweep.common.exits import say
from sweep.config.schema import RunOptions
from sweep.runs import claim
from sweep.runs.claim import JobIsGone
from sweep.runs.progress import Progress
from sweep.workers.process import PEERS, STOP


class StopSignal:
    """Set by SIGTERM, Ctrl-C or SIGUSR2 (Slurm's warning): finish the step, save, exit with EXIT_AGAIN."""

    def __init__(self) -> None:
        self.asked = False

    def listen(self) -> None:
        """Have the signals of this process set it."""
        for number in STOP:
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt  # asked twice: now
        self.asked = True


@dataclass
class Worker:
    """A process that trains families (`sweep.workers.families`), each of them an `Attempt`."""

    runs: Path
    tokens_root: Path
    options: RunOptions
    device: str
    max_attempts: int | None = None  # without progress, before a family is given up
    job_is_gone: JobIsGone = claim.unknown
    hear: Callable[[Progress], None] = lambda progress: None
    stop: StopSignal = field(default_factory=StopSignal)
    log: Callable[[str], None] = say
    since: float = field(default_factory=time.time)  # when this process began to use the device
    peers: int = field(default_factory=lambda: int(os.environ.get(PEERS, "1")))  # that share the families, us included
