"""How long a trial takes: from measured speeds where there are any, else a guess that says it is one.

`runs/speeds.jsonl` holds one row per finished trial and per calibration: tokens per second of a shape on a device
with the options that matter, validation included.
"""

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweep.files import append_json, read_json_lines
from sweep.config import ClusterSection, RunOptions
from sweep.trial import Trial


@dataclass
class Estimate:
    """Seconds of one device for the whole trial, and where the number comes from: calibration, records or guess."""

    seconds: float
    source: str


@dataclass
class Speeds:
    """Tokens per second by (device model, shape); calibrations win over records."""

    by_source: dict[str, dict[str, list[float]]]

    @classmethod
    def read(cls, runs: Path) -> "Speeds":
        found: dict[str, dict[str, list[float]]] = {"calibration": {}, "records": {}}
        for row in read_json_lines(runs / "speeds.jsonl"):
            found[row["source"]].setdefault(row["key"], []).append(row["tokens_per_second"])
        return cls(found)

    def estimate(
        self, trial: Trial, options: RunOptions, device_model: str, cluster: ClusterSection
    ) -> Estimate:
        """Seconds for `trial` on a device of this model."""
        key = speed_key(trial, options, device_model)
        for source in ("calibration", "records"):
            if speeds := self.by_source[source].get(key):
                return Estimate(trial.tokens / statistics.median(speeds[-5:]), source)
        arithmetic = trial.flops / (cluster.peak_tflops * 1e12 * cluster.mfu)
        return Estimate(arithmetic + trial.config.steps * cluster.seconds_per_step, "guess")


def speed_key(trial: Trial, options: RunOptions, device_model: str) -> str:
    """What a speed depends on: the device, the shape of a step, how it is executed."""
    model = trial.config.model
    shape = [
        model.depth,
        model.width,
        model.heads,
        model.kv_heads,
        model.mlp_width,
        model.mlp,
        model.vocab_size,
    ]
    step = [
        model.seq_len,
        trial.config.batch_sequences,
        options.micro_batch_sequences,
        trial.config.precision,
    ]
    how = [options.threads, options.backend, options.compile]
    return json.dumps([device_model, shape, step, how])


def record_speed(
    runs: Path,
    trial: Trial,
    options: RunOptions,
    env: dict[str, Any],
    tokens_per_second: float,
    source: str = "records",
) -> None:
    """Remember a measured speed for the next plan."""
    key = speed_key(trial, options, env["class"]["device_model"])
    append_json(
        runs / "speeds.jsonl",
        {"source": source, "key": key, "tokens_per_second": round(tokens_per_second, 1)},
    )
