"""Starting and ending the process that mirrors to W&B, from whoever launches training. Imports no wandb."""

import contextlib
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import IO

from sweep.common.checkout import ROOT
from sweep.common.files import Tail
from sweep.config.schema import PathsSection, WandbSection
from sweep.runs.planned import Facts
from sweep.tracking import client
from sweep.tracking.follow import NEWS, Task

GRACE_SECONDS = 30.0  # beyond what the section allows for uploads


class Sidecar:
    """A running mirror, or none where `wandb.mode` is off. Nothing it does or fails to do ends the training."""

    def __init__(self, task: Task, log: Path):
        self.task, self.log = task, log
        self.section = task.wandb
        self.process: subprocess.Popen[bytes] | None = None
        self.told = Tail(log)
        if client.asked_mode(self.section) != "off":
            self._start()

    def _start(self) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "sweep", "mirror"],
                env={**os.environ, "PYTHONPATH": path},  # of the checkout, wherever the launch was typed
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches our parent alone
            )
        with contextlib.suppress(BrokenPipeError):  # it ended at once; its log says why
            self._stdin.write(json.dumps(asdict(self.task)).encode() + b"\n")
            self._stdin.flush()

    @property
    def _stdin(self) -> IO[bytes]:
        assert self.process is not None
        assert self.process.stdin is not None
        return self.process.stdin

    def news(self) -> list[str]:
        """What it has to tell people since the last call, a line each."""
        return [line for line in self.told.lines() if line.startswith(NEWS)]

    def close(self, seconds: float | None = None) -> list[str]:
        """Have it bring everything to W&B and end; its last news. Training is over before this is called.

        `seconds` is how long it may take where less time is left than the section allows.
        """
        if self.process is None:
            return []
        with contextlib.suppress(BrokenPipeError):
            self._stdin.close()
        late = []
        try:
            self.process.wait(seconds if seconds is not None else self.section.patience_seconds + GRACE_SECONDS)
        except KeyboardInterrupt:
            late = [f"{NEWS}goes on by itself, process {self.process.pid}"]
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            late = [f"{NEWS}the upload takes too long, and was stopped; go on with it: {self.task.how_to_sync()}"]
        return [*self.news(), *late]


def of_one(facts: Facts, paths: PathsSection, wandb: WandbSection) -> Task:
    """The task of following a trial that is trained outside of a sweep."""
    return Task(None, [facts], None, paths.runs, paths.tokens, paths.sweeps, wandb)
