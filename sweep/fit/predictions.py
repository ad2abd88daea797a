"""Predictions that count: written down with date and data hash before the run is trained, scored when it is.

A prediction is one file, `predictions/<date>-<hash of what it predicts>.json` beside the fit. It is never
overwritten, and none is made for a run whose loss the table already has.
"""

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from sweep.common import files
from sweep.common.errors import UserError
from sweep.fit.fitted_law import Fitted
from sweep.fit.laws import law_named
from sweep.fit.table import Rows

SAME_RUN = 0.01  # N, and D or C, within this (relative) of what was predicted: a run takes whole steps and layers


def allocation(fit: Mapping[str, Any], N: float | None, D: float | None, C: float | None) -> dict[str, float]:
    """{"N", "D", "C"} from any two of them, or from C alone: the fit's best buy."""
    fitted = Fitted.of(fit)
    flops = fitted.flops
    match N, D, C:
        case None, None, float():
            best = fitted.optimal(C)
            return {name: best[name] for name in ("N", "D", "C")}
        case float(), float(), None:
            return {"N": N, "D": D, "C": float(flops.flops(N, D))}
        case float(), None, float():
            return {"N": N, "D": float(flops.tokens(C, N)), "C": C}
        case None, float(), float():
            return {"N": float((C / (flops.k * D)) ** (1 / flops.gamma)), "D": D, "C": C}
    raise UserError("say --flops for the best buy, or two of --params, --tokens, --flops")


def make(fit: Mapping[str, Any], rows: Rows, wanted: Mapping[str, float], command: str) -> dict[str, Any]:
    """The prediction of one run. UserError where the fit is of other data than `rows`, or the run is in it."""
    if fit["data_sha256"] != rows.data_sha256:
        raise UserError("the fit was made from other data than the table holds now: fit again, then predict")
    if len(seen := matching(rows, wanted)):
        row, loss = int(seen[0]["row"]), seen[0]["loss"]
        raise UserError(f"row {row} of the table is this run, with loss {loss:.4f}: nothing to predict")
    fitted = Fitted.of(fit)
    return {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "data_sha256": fit["data_sha256"],
        **wanted,
        "loss_nats": float(fitted.loss(wanted["N"], wanted["D"])),
        "interval": fitted.loss_interval(wanted["N"], wanted["D"]),
        "times_dearest_run": wanted["C"] / float(rows.C.max()),
        "form": fit["form"],
        "params": fit["params"],
        "columns": fit["columns"],
        "convention": fit["convention"],
        "fit_command": fit["command"],
        "command": command,
    }


def save(prediction: Mapping[str, Any], folder: Path) -> Path:
    """Write the prediction to its own file in `folder`; UserError if it is there already."""
    what = json.dumps([prediction[name] for name in ("N", "D", "data_sha256", "params")], sort_keys=True)
    name = f"{prediction['made'][:10]}-{hashlib.sha256(what.encode()).hexdigest()[:8]}.json"
    path = folder / name
    if not files.create_json(path, prediction):
        raise UserError(f"{path}: this prediction is made already; a prediction is never overwritten")
    return path


def load(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The predictions in `folder`, oldest first. UserError names a damaged one, or says that there are none."""
    found = [(path, files.read_json(path)) for path in sorted(folder.glob("*.json"))]
    if not found:
        raise UserError(f"{folder}: no prediction yet; make one with --flops or --params and --tokens")
    return found


def score(prediction: Mapping[str, Any], rows: Rows) -> list[dict[str, Any]]:
    """One entry for each run of the table that the prediction was about: {"row", "N", "D", "loss_nats", "error",
    "inside"}; `error` is predicted / observed - 1, of the law at the N and D that were trained. Empty while it is not
    trained."""
    law = law_named(prediction["form"])
    entries = []
    for run in matching(rows, prediction):
        N, D, loss = run["N"], run["D"], run["loss"]
        predicted = float(law.loss(prediction["params"], {"N": N, "D": D, "U": D, "C": run["C"], "M": D / N}))
        moved = predicted / prediction["loss_nats"]
        ends = prediction.get("interval")
        inside = bool(moved * ends[0] <= loss <= moved * ends[1]) if ends else None
        entry = {"row": int(run["row"]), "N": N, "D": D, "loss_nats": loss, "error": predicted / loss - 1}
        entries.append(entry | {"inside": inside})
    return entries


def matching(rows: Rows, wanted: Mapping[str, float]) -> list[dict[str, float]]:
    """The runs of this N, and this D or C, that have a loss, whether the fit uses them or not."""
    parts = {"row": rows.row, "N": rows.N, "D": rows.D, "C": rows.C, "loss": rows.loss}
    whole = {name: np.append(values, rows.unused[name]) for name, values in parts.items()}
    near = {name: np.abs(whole[name] / wanted[name] - 1) <= SAME_RUN for name in ("N", "D", "C")}
    same_n = near["N"] & (near["D"] | near["C"])
    return [{name: float(values[i]) for name, values in whole.items()} for i in np.flatnonzero(same_n)]
