"""Anybody's table of runs in the columns of a sweep's own table, and what W&B exports as a table of runs."""

from typing import Any

import numpy as np
import pandas as pd

from sweep.fit.rows import Rows

TEXT_COLUMNS = [
    "trial_id",
    "family_id",
    "status",
    "reason",
    "schedule",
    "precision",
    "device",
    "execution_class",
    "code_hash",
    "data_fingerprint",
]
NUMBER_COLUMNS = [
    "seed",
    "params_non_embedding",
    "params_total",
    "tokens",
    "flops",
    "flops_per_token",
    "tokens_per_param",
    "unique_tokens",
    "epochs",
    "loss_nats",
    "best_loss_nats",
    "best_tokens",
    "train_loss_nats",
    "bits_per_byte",
    "lr",
    "lr_multiplier",
    "depth",
    "width",
    "heads",
    "seq_len",
    "batch_tokens",
    "steps",
    "vocab_size",
    "wall_seconds",
    "device_seconds",
]


WANDB_EXPORT = {"Name", "State"}  # what W&B's CSV of a project has in any case
OWN_STATUSES = ("finished", "diverged", "failed", "stopped")
OWN_NAMES = {"N": "params_non_embedding", "D": "tokens", "C": "flops"}


def from_wandb(table: pd.DataFrame) -> pd.DataFrame:
    """An export of a W&B project with a status and a run for each row; any other table as it is.

    A run that a sweep of ours logged says itself how its trial ended, whatever W&B saw of the process (State). Rows of
    one trial are one run: by trial_id in our exports, else by the whole config where it is known, else by W&B's ID.
    """
    if not WANDB_EXPORT.issubset(table.columns):
        return table
    made = table.copy()
    made.attrs = dict(table.attrs)
    state = table["State"].astype(str).str.lower()
    said = table["status"].astype(str).str.lower() if "status" in table else state
    made["status"] = said.where(said.isin(OWN_STATUSES), state)
    identity = next((name for name in ("trial_id", "config_sha256", "ID") if name in table), None)
    if identity is not None:
        fallback = table["ID"] if "ID" in table else pd.Series([f"row {i}" for i in range(len(table))], table.index)
        made["trial_id"] = table[identity].where(table[identity].notna(), fallback)
    if {"trial_id", *OWN_NAMES} <= set(table.columns):
        for letter, column in OWN_NAMES.items():
            made[column] = table[letter]
    return made


def as_sweep(table: pd.DataFrame, rows: Rows) -> pd.DataFrame:
    """Anybody's table in the columns of a sweep's own, for the report: what it lacks is missing, and a row that has no
    N, D, C and loss is "missing" with the reason it was dropped for."""
    own: dict[str, Any] = {name: pd.Series([None] * len(table), dtype=object) for name in TEXT_COLUMNS}
    own |= {name: np.full(len(table), np.nan) for name in NUMBER_COLUMNS}
    own |= {name: table[name].to_numpy() for name in NUMBER_COLUMNS if name in table and _is_number(table[name])}
    known = {"params_non_embedding": "N", "tokens": "D", "flops": "C", "loss_nats": "loss"}
    for column, letter in known.items():
        own[column] = np.full(len(table), np.nan)
        own[column][rows.unused["row"]], own[column][rows.row] = rows.unused[letter], getattr(rows, letter)
    finished_n = np.isfinite(own["loss_nats"])
    reason_of = {d.row: d.detail for d in rows.dropped}
    labels = {role: table[rows.columns[role]].astype(str) for role in ("run", "family") if role in rows.columns}
    numbered = pd.Series([f"row {i}" for i in range(len(table))])
    own["trial_id"] = labels.get("run", numbered).to_numpy()
    own["family_id"] = labels.get("family", labels.get("run", numbered)).to_numpy()
    own["status"] = np.where(finished_n, "finished", "missing")
    own["reason"] = [None if done else reason_of.get(i) for i, done in enumerate(finished_n)]
    own["tokens_per_param"] = own["tokens"] / own["params_non_embedding"]
    own["flops_per_token"] = own["flops"] / own["tokens"]
    return pd.DataFrame(own)


def _is_number(column: pd.Series) -> bool:
    return bool(pd.api.types.is_numeric_dtype(column))
