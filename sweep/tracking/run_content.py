"""What a trial's run in W&B holds: a config to filter by, a history to plot, and the record as its summary.

All of it is made from the files of the run directory. Keys of the history are grouped by what W&B draws together:

  tokens flops seconds decay                              to plot against; decay is 1 while the learning rate decays
  loss/train_nats loss/val_nats loss/val_bits_per_byte
  optim/lr optim/grad_norm
  speed/tokens_per_second speed/flops_per_second speed/mfu
  reference/<line>_nats                                   constants, in rows with a validation
"""

import json
from dataclasses import asdict
from pathlib import Path

from sweep.common import artefacts
from sweep.common.errors import UserError
from sweep.common.units import short
from sweep.plan.trial import Trial
from sweep.runs.metrics import MetricsRow, Scale
from sweep.runs.record import Record
from sweep.runs.sweepdir import SweepDir
from sweep.tracking import client
from sweep.tracking.wandb_files import Fields

NATS_PER_BIT = 0.6931471805599453
HISTORY = {  # key in W&B → field of the row
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
RENAMED = ("params_non_embedding", "tokens", "flops")  # facts that are N, D and C in W&B


def scale_of(trial: Trial, tokens: Path) -> Scale:
    """The scale of a trial's data."""
    path = tokens / trial.config.data.fingerprint / "meta.json"
    return artefacts.read(Scale, path) if path.exists() else Scale()


def config(trial: Trial, scale: Scale, env: Fields) -> Fields:
    """What people filter and group runs by, flat. `trial` is the text of trial.json, enough to train it again. `env` is
    the content of env.json."""
    resolved = trial.config
    return {
        **{name: value for name, value in asdict(trial.facts).items() if name not in RENAMED},
        "N": trial.params_non_embedding,
        "D": trial.tokens,
        "C": trial.flops,
        "size": short(trial.params_non_embedding),
        "model": trial.written.model.name,
        "data": trial.written.data.source,
        "batch_sequences": resolved.batch_sequences,
        "warmup_steps": resolved.schedule.warmup_steps,
        "decay_fraction": resolved.schedule.decay_fraction,
        **{name: value for name, value in asdict(resolved.optim).items() if name != "lr"},
        "bytes_per_token": scale.bytes_per_token,
        "reference_nats": scale.reference_lines or None,
        "device": (env.get("class") or {}).get("device_model"),
        "execution_class": env.get("execution_class"),
        "run": env.get("options"),
        "trial": json.dumps(trial.to_json()),
    }


def history(row: MetricsRow, flops_per_token: float, scale: Scale) -> Fields:
    """One row of metrics.jsonl. A key without a number is left out."""
    fields = asdict(row)
    values = {name: fields[key] for name, key in HISTORY.items()}
    values["decay"] = int(row.phase == "decay")
    if row.tokens_per_second is not None:
        values["speed/flops_per_second"] = row.tokens_per_second * flops_per_token
    if row.val_loss_nats is not None:
        if scale.bytes_per_token:
            values["loss/val_bits_per_byte"] = row.val_loss_nats / NATS_PER_BIT / scale.bytes_per_token
        values |= {f"reference/{name}_nats": nats for name, nats in scale.reference_lines.items()}
    return {name: value for name, value in values.items() if value is not None}


def summary(record: Record) -> Fields:
    """The record, without what the config and the last row of the history say."""
    return {
        name: value
        for name, value in asdict(record).items()
        if name not in ("trial_id", "family_id", "tokens", "flops")
    }


def tags(sweeps: Path, trial_ids: set[str]) -> dict[str, list[str]]:
    """The sweeps that each of these trials belongs to."""
    found: dict[str, list[str]] = {trial_id: [] for trial_id in trial_ids}
    for path in sorted(sweeps.glob("*/plan.jsonl")):
        try:
            planned = SweepDir(path.parent).planned()
        except UserError:
            continue  # another sweep's damage is told where that sweep is read
        for line in planned:
            if line.trial_id in found:
                found[line.trial_id].append(client.tag(path.parent.name))
    return found
