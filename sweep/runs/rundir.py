"""Folders of runs: what lies where under `runs/`.

runs/<trial_id>/            one trial, enough by itself to train it again
  trial.json                the trial: resolved config, how to prepare its data, labels
  metrics.jsonl             one row a logged step: step, tokens, flops, phase, lr, losses, grad_norm, seconds
  samples.jsonl             text that the model wrote along the way
  checkpoint.pt             where to go on from (gone after success)
  model.pt                  the final weights, with `run.keep_weights`
  env.json                  the machine, the versions, the execution class
  error.txt                 the traceback of the last attempt that failed
  record.json               how it ended for good; published once
  wandb/                    who mirrors it to W&B, and the mark that W&B has all of it
runs/trunks/<family_id>/    what the budgets of a family share
  metrics.jsonl             as a trial's, and samples.jsonl too: of the stable phase
  stable-<step>.pt          its checkpoints: the last one, and where trials without a record branch off
  attempts.jsonl            who trained the family, where, and how each attempt ended (`sweep.runs.attempt_log`)
  claim.<number>.json       who holds the family, and a file that ends in .released when it was let go (`claim.py`)
  heartbeat.json            the holder's sign of life, and how far it is
runs/wandb/                 what wandb writes, of all runs; `wandb leet runs/wandb` shows it
runs/speeds.jsonl           measured tokens per second by device and shape, for the next plan's estimate
runs/ceilings.jsonl         the fastest matrix product measured on each device, which MFU is a fraction of
"""

import os
from dataclasses import dataclass
from pathlib import Path

SCHEMA_VERSION = 1  # of trials and records; part of every trial's identity


@dataclass(frozen=True)
class Failure:
    """What a trial failed with, in one line, and when (seconds since the epoch)."""

    line: str
    time: float


@dataclass(frozen=True)
class RunDir:
    """A folder that holds a training curve: a trial's, or a family's trunk."""

    path: Path

    @classmethod
    def of_trial(cls, runs: Path, trial_id: str) -> "RunDir":
        return cls(runs / trial_id)

    @classmethod
    def of_trunk(cls, runs: Path, family_id: str) -> "RunDir":
        return cls(runs / "trunks" / family_id)

    @property
    def trial(self) -> Path:
        return self.path / "trial.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        return self.path / "samples.jsonl"

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint.pt"

    @property
    def weights(self) -> Path:
        return self.path / "model.pt"

    @property
    def attempts(self) -> Path:
        return self.path / "attempts.jsonl"

    @property
    def env(self) -> Path:
        return self.path / "env.json"

    @property
    def error(self) -> Path:
        return self.path / "error.txt"

    @property
    def record(self) -> Path:
        return self.path / "record.json"

    def failure(self, since: float = 0.0) -> Failure | None:
        """What `error.txt` says, if there is one and it is newer than a time (seconds since the epoch)."""
        try:
            with open(self.error, errors="replace") as file:
                lines = [line for line in file.read().splitlines() if line.strip()]
                written = os.fstat(file.fileno()).st_mtime
        except FileNotFoundError:
            return None
        return Failure(_what_went_wrong(lines), written) if written > since else None

    def stable(self, step: int) -> Path:
        """A trunk's checkpoint at a step of the stable phase."""
        return self.path / f"stable-{step:09d}.pt"

    def stable_steps(self) -> list[int]:
        """The steps of all checkpoints that a trunk holds, ascending."""
        return sorted(int(path.stem.split("-")[1]) for path in self.path.glob("stable-*.pt"))


def _what_went_wrong(lines: list[str]) -> str:
    """The line of a traceback that names the error, below its last frame; the first line of any other text."""
    if not lines:
        return "failed without a message"
    if not lines[0].startswith("Traceback"):
        return lines[0]
    last_frame = max((number for number, line in enumerate(lines) if line.startswith("  File ")), default=0)
    return next((line for line in lines[last_frame + 1 :] if not line.startswith("  ")), lines[-1])
