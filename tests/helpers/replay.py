"""A trained family's files, given out again piece by piece as training writes them, and what W&B has of them.

The test's process stands for the worker: it holds the training claim, so that a sidecar that it starts follows it.
"""

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sweep.config.schema import WandbSection
from sweep.plan.trial import Trial
from sweep.runs import claim
from sweep.runs.rundir import RunDir
from sweep.tracking import wandb_files
from sweep.tracking.follow import Task
from sweep.tracking.mirror_process import Sidecar

PROJECT = "scaling-sweeps"


class Replay:
    """One trial, trained before in `source`, appearing again in `runs`."""

    def __init__(self, source: Path, trial: Trial, runs: Path, tokens: Path):
        self.trial, self.runs, self.tokens = trial, runs, tokens
        self.source = RunDir.of_trial(source, trial.trial_id)
        self.run = RunDir.of_trial(runs, trial.trial_id)
        self.trunk = RunDir.of_trunk(runs, trial.family_id)
        self.lines = self.source.metrics.read_bytes().splitlines(keepends=True)

    @property
    def steps(self) -> list[int]:
        return [json.loads(line)["step"] for line in self.lines]

    @contextmanager
    def training(self) -> Iterator[None]:
        """While the family is claimed."""
        held = claim.acquire(self.trunk.path)
        assert held is not None
        self.run.path.mkdir(parents=True, exist_ok=True)
        for name in ("trial.json", "env.json"):
            shutil.copy(self.source.path / name, self.run.path / name)
        try:
            yield
        finally:
            held.release()

    def write(self, rows: int, into: Path | None = None) -> None:
        """As many rows: appended, or cut back to, as a resume does."""
        path = into or self.run.metrics
        there = path.read_bytes().count(b"\n") if path.exists() else 0
        if rows < there:
            path.write_bytes(b"".join(self.lines[:rows]))
            return
        with open(path, "ab") as file:
            for line in self.lines[there:rows]:
                file.write(line)
                file.flush()

    def end(self) -> None:
        """The rest, and the record."""
        self.write(len(self.lines))
        shutil.copy(self.source.samples, self.run.samples)
        shutil.copy(self.source.record, self.run.record)

    def task(self, mode: str = "offline", **wandb: Any) -> Task:
        section = WandbSection(**{"mode": mode, "every_seconds": 0.1, "patience_seconds": 3.0, **wandb})
        folders = {"runs": str(self.runs), "tokens": str(self.tokens), "sweeps": str(self.runs.parent / "sweeps")}
        return Task(None, [self.trial.facts], None, **folders, wandb=section)

    def sidecar(self, mode: str = "offline", **wandb: Any) -> Sidecar:
        return Sidecar(self.task(mode, **wandb), self.runs.parent / "wandb.log")

    def log(self) -> str:
        return (self.runs.parent / "wandb.log").read_text()

    def has_begun(self, count: int = 1) -> bool:
        """Whether a run's file is there for the count-th time."""
        return len(wandb_files.of_run(self.runs, self.trial.trial_id)) >= count

    def has_row(self) -> bool:
        """Whether the newest file durably holds a row."""
        files = wandb_files.of_run(self.runs, self.trial.trial_id)
        return bool(files) and wandb_files.content(files[-1]).last_step >= 0


def wait_for(what, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)


class Merged:
    """All that wandb's files hold of a run, oldest attempt first."""

    def __init__(self, runs: Path, run_id: str):
        self.files = wandb_files.of_run(runs, run_id)
        self.attempts = [list(wandb_files.read(file)) for file in self.files]
        self.records = [record for attempt in self.attempts for record in attempt]
        self.rows = [record["history"]["item"] for record in self.records if record["type"] == "history"]
        self.config: dict[str, Any] = {}
        self.summary: dict[str, Any] = {}
        for record in self.records:
            if record["type"] == "run":
                self.config |= record["run"]["config"]["update"]
            if record["type"] == "summary":
                self.summary |= record["summary"]["update"]

    @property
    def steps(self) -> list[int]:
        return [row["_step"] for row in self.rows]

    @property
    def exit_codes(self) -> list[int | None]:
        """Of each attempt; None where it was killed."""
        ends = [[record["exit"] for record in attempt if record["type"] == "exit"] for attempt in self.attempts]
        return [end[0].get("exit_code", 0) if end else None for end in ends]

    @property
    def preempted(self) -> list[bool]:
        return [any(record["type"] == "preempting" for record in attempt) for attempt in self.attempts]
