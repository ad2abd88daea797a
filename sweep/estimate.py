"""How long a trial takes: from measured speeds where there are any, else a guess that says it is one.

`runs/speeds.jsonl` holds one row per finished trial and per calibration: how fast a shape trains on a device with the
options that matter.
"""

import json
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweep.config import ClusterSection, RunOptions
from sweep.files import append_json, read_json_lines
from sweep.trial import Trial


@dataclass
class Estimate:
    """Seconds of one device for the whole trial, and where the number comes from: calibration, records or guess."""

    seconds: float
    source: str


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

    def estimate(self, trial: Trial, options: RunOptions, device_model: str, cluster: ClusterSection) -> Estimate:
        """Seconds for `trial` on a device of this model."""
        key = speed_key(trial, options, device_model)
        for source in ("calibration", "records"):
            if rows := self.by_source[source].get(key, [])[-5:]:
                tokens_per_second = statistics.median(row["tokens_per_second"] for row in rows)
                validations = statistics.median(row["validation_seconds"] for row in rows) * _validations(trial)
                return Estimate(trial.tokens / tokens_per_second + validations, source)
        arithmetic = trial.flops / (cluster.peak_tflops * 1e12 * cluster.mfu)
        return Estimate(arithmetic + trial.config.steps * cluster.seconds_per_step, "guess")


def speed_key(trial: Trial, options: RunOptions, device_model: str) -> str:
    """What a speed depends on: the device, the shape of a step, how it is executed."""
    model = trial.config.model
    shape = [model.depth, model.width, model.heads, model.kv_heads, model.mlp_width, model.mlp, model.vocab_size]
    step = [model.seq_len, trial.config.batch_sequences, options.micro_batch_sequences, trial.config.precision]
    how = [options.threads, options.backend, options.compile]
    return json.dumps([device_model, shape, step, how])


def record_speed(
    runs: Path,
    trial: Trial,
    options: RunOptions,
    device_model: str,
    tokens_per_second: float,
    validation_seconds: float = 0.0,
    source: str = "records",
) -> None:
    """Remember a measured speed for the next plan. A record's tokens per second include its validations."""
    row = {
        "source": source,
        "key": speed_key(trial, options, device_model),
        "tokens_per_second": round(tokens_per_second, 1),
        "validation_seconds": round(validation_seconds, 4),
    }
    append_json(runs / "speeds.jsonl", row)


def _validations(trial: Trial) -> float:
    """About how often the trial validates: log-spaced, at the end, and once on the training split."""
    evaluation = trial.config.eval
    return evaluation.points_per_doubling * math.log2(max(1.0, trial.config.steps / evaluation.first_step)) + 3
