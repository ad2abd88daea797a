"""What a trial's run in W&B holds: config to filter by, history to plot, the record as its summary.

Made from the files of the run directory alone. History keys are grouped by what W&B draws together:

  tokens flops seconds decay                                                              what to plot against
  loss/train_nats loss/val_nats loss/val_bits_per_byte                                    decay: 0 stable, 1 decay
  optim/lr optim/grad_norm  speed/tokens_per_second speed/flops_per_second speed/mfu
  reference/<line>_nats                                                                   constants, beside validation
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweep.common.errors import UserError
from sweep.common.files import read_json
from sweep.common.units import short
from sweep.runs.sweepdir import SweepDir
from sweep.tracking import client

COLUMNS = {
    "loss/train_nats": "train_loss_nats",
    "loss/val_nats": "val_loss_nats",
    "optim/lr": "lr",
    "optim/grad_norm": "grad_norm",
    "speed/tokens_per_second": "tokens_per_second",
    "speed/mfu": "mfu",
    "tokens": "tokens",
    "flops": "flops",
    "seconds": "seconds",
}
NATS_PER_BIT = 0.6931471805599453
SAMPLE_COLUMNS = ("step", "tokens", "prompt", "text")


@dataclass
class Scale:
    """What a trial's numbers are held against; None or nothing where it is not known."""

    bytes_per_token: float | None = None
    reference_nats: dict[str, float] | None = None


def scale_of(trial: dict[str, Any], tokens: Path) -> Scale:
    """Of a trial's data."""
    meta_path = tokens / trial["facts"]["data_fingerprint"] / "meta.json"
    meta = read_json(meta_path) if meta_path.exists() else {}
    return Scale(bytes_per_token=meta.get("bytes_per_token"), reference_nats=meta.get("reference_lines"))


def config(trial: dict[str, Any], scale: Scale, env: dict[str, Any]) -> dict[str, Any]:
    """Flat: what people filter and group by. `trial` is the text of its trial.json, enough to train it again."""
    facts, resolved, written = trial["facts"], trial["config"], trial["written"]
    return {
        **{key: value for key, value in facts.items() if key not in ("params_non_embedding", "tokens", "flops")},
        "N": facts["params_non_embedding"],
        "D": facts["tokens"],
        "C": facts["flops"],
        "size": short(facts["params_non_embedding"]),
        "model": written["model"]["name"],
        "data": written["data"]["source"],
        "batch_sequences": resolved["batch_sequences"],
        "warmup_steps": resolved["schedule"]["warmup_steps"],
        "decay_fraction": resolved["schedule"]["decay_fraction"],
        **{key: value for key, value in resolved["optim"].items() if key != "lr"},
        "bytes_per_token": scale.bytes_per_token,
        "reference_nats": scale.reference_nats,
        "device": (env.get("class") or {}).get("device_model"),
        "execution_class": env.get("execution_class"),
        "run": env.get("options"),
        "trial": json.dumps(trial),
    }


def history(row: dict[str, Any], trial: dict[str, Any], scale: Scale) -> dict[str, Any]:
    """One line of metrics.jsonl; what it has no number for is left out."""
    flops_per_second = row["tokens_per_second"] * trial["facts"]["flops_per_token"]
    values = {name: row.get(key) for name, key in COLUMNS.items()}
    values |= {"decay": int(row["phase"] == "decay"), "speed/flops_per_second": flops_per_second}
    if row["val_loss_nats"] is not None:
        if scale.bytes_per_token:
            values["loss/val_bits_per_byte"] = row["val_loss_nats"] / NATS_PER_BIT / scale.bytes_per_token
        values |= {f"reference/{name}_nats": nats for name, nats in (scale.reference_nats or {}).items()}
    return {name: value for name, value in values.items() if value is not None}


def summary(record: dict[str, Any]) -> dict[str, Any]:
    """The record, but for what the config says and what the last row of the history says itself."""
    return {key: value for key, value in record.items() if key not in ("trial_id", "family_id", "tokens", "flops")}


def tags(sweeps: Path, trial_ids: set[str]) -> dict[str, list[str]]:
    """The sweeps that each of these trials belongs to."""
    found: dict[str, list[str]] = {trial_id: [] for trial_id in trial_ids}
    for path in sorted(sweeps.glob("*/plan.jsonl")):
        try:
            planned = SweepDir(path.parent).planned()
        except UserError:
            continue  # another sweep's damage is told where that sweep is read
        for line in planned:
            if line.get("trial_id") in found:
                found[line["trial_id"]].append(client.tag(path.parent.name))
    return found
