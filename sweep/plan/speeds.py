"""How long a trial takes: from measured speeds where there are any, else a guess that says it is one.

`runs/speeds.jsonl` holds one row for each finished trial and each calibration: how fast a shape trains on a device with
the options that matter.
"""

import json
import math
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from sweep.common import artefacts
from sweep.common.files import append_json
from sweep.config.schema import ClusterSection, RunOptions
from sweep.plan.trial import Trial

Source = Literal["calibration", "records"]
SOURCES: tuple[Source, ...] = ("calibration", "records")  # what wins first


@dataclass(frozen=True)
class Measurement:
    """A line of `runs/speeds.jsonl`."""

    source: Source
    key: str  # of `speed_key`
    tokens_per_second: float  # of the device, summed over all that share it; 0 where its memory was too small
    validation_seconds: float  # of one validation


@dataclass
class Estimate:
    """Device seconds of the whole trial, and where the number comes from: calibration, records or guess."""

    seconds: float
    source: str


@dataclass(frozen=True)
class Packing:
    """How trials share a device: the number of processes on it, and the slots of the stack in each (0: no stack)."""

    stack: int = 0
    processes: int = 1

    def __str__(self) -> str:
        if self.processes > 1:
            return f"{self.processes} processes on a device"
        return f"stack of {self.stack}" if self.stack else "alone"


ALONE = Packing()


@dataclass
class Speeds:
    """Measured speeds by key; calibrations win over records."""

    by_source: dict[Source, dict[str, list[Measurement]]]

    @classmethod
    def read(cls, runs: Path) -> "Speeds":
        """All that a runs folder remembers; UserError names a damaged line."""
        found: dict[Source, dict[str, list[Measurement]]] = {"calibration": {}, "records": {}}
        for row in artefacts.iterate_lines(Measurement, runs / "speeds.jsonl"):
            found[row.source].setdefault(row.key, []).append(row)
        return cls(found)

    def calibrated(self, trial: Trial, options: RunOptions, device_model: str, packing: Packing) -> float | None:
        """Tokens per second of the device, summed over all that share it.

        0 where its memory does not allow the packing; None where that was not calibrated.
        """
        rows = self.by_source["calibration"].get(speed_key(trial, options, device_model, packing), [])[-5:]
        return statistics.median(row.tokens_per_second for row in rows) if rows else None

    def estimate(
        self,
        trial: Trial,
        options: RunOptions,
        device: str,
        device_model: str,
        cluster: ClusterSection,
        packing: Packing = ALONE,
    ) -> Estimate:
        """Device seconds of a trial: its share of them, where others are trained on the device at the same time."""
        key = speed_key(trial, options, device_model, packing)
        for source in SOURCES:
            if rows := [row for row in self.by_source[source].get(key, [])[-5:] if row.tokens_per_second > 0]:
                tokens_per_second = statistics.median(row.tokens_per_second for row in rows)
                validations = statistics.median(row.validation_seconds for row in rows) * _validations(trial)
                return Estimate(trial.tokens / tokens_per_second + validations, source)
        seconds = cluster.arithmetic_seconds(trial.flops, device) + cluster.overhead_seconds(trial.config.steps, device)
        return Estimate(seconds, "guess")


def shape_key(trial: Trial) -> str:
    """What a step computes: the whole shape of the model (with its sequence length), the batch, and the precision.

    It is the same for trials that differ in learning rate, schedule, seed, data and budget alone.
    """
    config = trial.config
    return json.dumps([asdict(config.model), config.batch_sequences, config.precision], sort_keys=True)


def speed_key(trial: Trial, options: RunOptions, device_model: str, packing: Packing = ALONE) -> str:
    """What a speed depends on: the device, what a step computes, and how it is executed.

    Rows from before 2026-12, whose keys left out some fields of the shape, are still read but match no key: their
    shapes count as not measured.
    """
    how = [options.threads, options.backend, options.compile, options.deterministic, options.micro_batch_sequences]
    how += ([] if packing == ALONE else [str(packing)]) + (["graph"] if packing.stack and options.graph else [])
    return json.dumps([device_model, shape_key(trial), how])


def record_speed(
    runs: Path,
    trial: Trial,
    options: RunOptions,
    device_model: str,
    tokens_per_second: float,
    validation_seconds: float = 0.0,
    source: Source = "records",
    packing: Packing = ALONE,
) -> None:
    """Remember a measured speed for the next plan: tokens per second of the device, summed over all that share it.

    The speed of a record has its validations in it; a calibration gives their seconds apart.
    """
    key = speed_key(trial, options, device_model, packing)
    row = Measurement(source, key, round(tokens_per_second, 1), round(validation_seconds, 4))
    append_json(runs / "speeds.jsonl", asdict(row))


def _validations(trial: Trial) -> float:
    """About how often the trial validates: log-spaced, at the end, and once on the training split."""
    evaluation = trial.config.eval
    return evaluation.points_per_doubling * math.log2(max(1.0, trial.config.steps / evaluation.first_step)) + 3
