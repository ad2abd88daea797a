"""How long a trial takes: from measured speeds where there are any, else a guess that says it is one.

`runs/speeds.jsonl` holds one row per finished trial and per calibration: how fast a shape trains on a device with the
options that matter.
"""

import json
import math
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sweep.common.files import append_json, read_json_lines
from sweep.config.compose import ClusterSection, RunOptions
from sweep.plan.trial import Trial


@dataclass
class Estimate:
    """Seconds of one device for the whole trial, and where the number comes from: calibration, records or guess."""

    seconds: float
    source: str


@dataclass(frozen=True)
class Way:
    """How a device is shared: by so many processes, each with a stack of so many slots (0: none)."""

    stack: int = 0
    processes: int = 1

    def __str__(self) -> str:
        if self.processes > 1:
            return f"{self.processes} processes on a device"
        return f"stack of {self.stack}" if self.stack else "alone"


ALONE = Way()


@dataclass
class Speeds:
    """Measured speeds by device model and shape; calibrations win over records."""

    by_source: dict[str, dict[str, list[dict[str, Any]]]]

    @classmethod
    def read(cls, runs: Path) -> "Speeds":
        found: dict[str, dict[str, list[dict[str, Any]]]] = {"calibration": {}, "records": {}}
        for row in read_json_lines(runs / "speeds.jsonl"):
            found[row["source"]].setdefault(row["key"], []).append(row)
        return cls(found)

    def calibrated(self, trial: Trial, options: RunOptions, device_model: str, way: Way) -> float | None:
        """Tokens per second of a device, all that share it together; 0 for a way that its memory does not allow, None
        where it was not calibrated."""
        rows = self.by_source["calibration"].get(speed_key(trial, options, device_model, way), [])[-5:]
        return statistics.median(row["tokens_per_second"] for row in rows) if rows else None

    def estimate(
        self,
        trial: Trial,
        options: RunOptions,
        device: str,
        device_model: str,
        cluster: ClusterSection,
        way: Way = ALONE,
    ) -> Estimate:
        """Seconds for `trial` of a device of this model: its share, where others are trained at the same time."""
        key = speed_key(trial, options, device_model, way)
        for source in ("calibration", "records"):
            if rows := [row for row in self.by_source[source].get(key, [])[-5:] if row["tokens_per_second"] > 0]:
                tokens_per_second = statistics.median(row["tokens_per_second"] for row in rows)
                validations = statistics.median(row["validation_seconds"] for row in rows) * _validations(trial)
                return Estimate(trial.tokens / tokens_per_second + validations, source)
        seconds = cluster.arithmetic_seconds(trial.flops, device) + cluster.overhead_seconds(trial.config.steps, device)
        return Estimate(seconds, "guess")


def shape_key(trial: Trial) -> str:
    """What a step computes: the whole shape of the model (with its sequence length), the batch, and the precision.

    It is the same for trials that differ in learning rate, schedule, seed, data and budget alone.
    """
    config = trial.config
    return json.dumps([asdict(config.model), config.batch_sequences, config.precision], sort_keys=True)


def speed_key(trial: Trial, options: RunOptions, device_model: str, way: Way = ALONE) -> str:
    """What a speed depends on: the device, what a step computes, and how it is executed.

    Rows from before 2026-12, whose keys left out some fields of the shape, are still read but match no key: their
    shapes count as not measured.
    """
    how = [options.threads, options.backend, options.compile, options.deterministic, options.micro_batch_sequences]
    how += ([] if way == ALONE else [str(way)]) + (["graph"] if way.stack and options.graph else [])
    return json.dumps([device_model, shape_key(trial), how])


def record_speed(
    runs: Path,
    trial: Trial,
    options: RunOptions,
    device_model: str,
    tokens_per_second: float,
    validation_seconds: float = 0.0,
    source: str = "records",
    way: Way = ALONE,
) -> None:
    """Remember a measured speed for the next plan: tokens per second of the device, all that share it together.

    A record's include its validations.
    """
    row = {
        "source": source,
        "key": speed_key(trial, options, device_model, way),
        "tokens_per_second": round(tokens_per_second, 1),
        "validation_seconds": round(validation_seconds, 4),
    }
    append_json(runs / "speeds.jsonl", row)


def _validations(trial: Trial) -> float:
    """About how often the trial validates: log-spaced, at the end, and once on the training split."""
    evaluation = trial.config.eval
    return evaluation.points_per_doubling * math.log2(max(1.0, trial.config.steps / evaluation.first_step)) + 3
