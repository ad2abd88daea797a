"""Predictions that count: written down with date and data hash before the run is trained, scored when it is.

A prediction is one file, `predictions/<date>-<hash of what it predicts>.json` beside the fit. It is never
overwritten, and none is made for a run whose loss the table already has.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import AliasChoices, Field

from sweep.common import artefacts, files
from sweep.common.errors import UserError
from sweep.fit.bootstrap import Interval
from sweep.fit.fit_file import Fit
from sweep.fit.laws import law_named
from sweep.fit.rows import Convention, Rows

SAME_RUN = 0.01  # N, and D or C, within this (relative) of what was predicted: a run takes whole steps and layers


@dataclass(frozen=True)
class Allocation:
    """A run: N parameters, D tokens, C FLOPs."""

    N: float
    D: float
    C: float


@dataclass(frozen=True)
class Prediction:
    """The loss in nats per token that a fit predicts for one run, with its 90% interval, and all that makes it
    possible to score it: when it was made (UTC), from which data, law and conventions. `asked`: what the user gave."""

    made: str
    data_sha256: str
    N: float
    D: float
    C: float
    loss_nats: float
    interval: Interval | None
    times_largest_run: Annotated[float, Field(validation_alias=AliasChoices("times_largest_run", "times_dearest_run"))]
    form: str
    params: dict[str, float]
    columns: dict[str, str]
    convention: Convention
    fit_command: str
    command: str
    asked: dict[str, str | None] = field(default_factory=dict)

    @property
    def run(self) -> Allocation:
        return Allocation(self.N, self.D, self.C)


@dataclass(frozen=True)
class Score:
    """A trained run (`row`: its position in the table) beside its prediction. `error` is predicted / observed - 1;
    `inside` says whether the loss is in the 90% interval, None without one."""

    row: int
    N: float
    D: float
    loss_nats: float
    error: float
    inside: bool | None


@dataclass(frozen=True)
class KnownRun:
    """A run of the table that has a loss in nats per token."""

    row: int
    N: float
    D: float
    C: float
    loss: float


def allocation(fit: Fit, N: float | None, D: float | None, C: float | None) -> Allocation:
    """The run given by any two of N, D and C, or the compute-optimal one by C alone."""
    flops = fit.law.flops
    match N, D, C:
        case None, None, float():
            best = fit.law.optimal(C)
            return Allocation(best.N, best.D, best.C)
        case float(), float(), None:
            return Allocation(N, D, float(flops.flops(N, D)))
        case float(), None, float():
            return Allocation(N, float(flops.tokens(C, N)), C)
        case None, float(), float():
            return Allocation(float((C / (flops.k * D)) ** (1 / flops.gamma)), D, C)
    raise UserError("give --flops for the compute-optimal run, or two of --params, --tokens, --flops")


def make(
    fit: Fit, rows: Rows, wanted: Allocation, command: str, asked: dict[str, str | None] | None = None
) -> Prediction:
    """The prediction of one run. UserError where the fit is of other data than `rows`, or the run is in it."""
    if fit.data_sha256 != rows.data_sha256:
        raise UserError("the fit was made from other data than the table holds now: fit again, then predict")
    if seen := matching(rows, wanted):
        raise UserError(f"row {seen[0].row} of the table is this run, with loss {seen[0].loss:.4f}: nothing to predict")
    return Prediction(
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        data_sha256=fit.data_sha256,
        N=wanted.N,
        D=wanted.D,
        C=wanted.C,
        loss_nats=float(fit.law.loss(wanted.N, wanted.D)),
        interval=fit.law.loss_interval(wanted.N, wanted.D),
        times_largest_run=wanted.C / float(rows.C.max()),
        form=fit.form,
        params=fit.params,
        columns=fit.columns,
        convention=fit.convention,
        fit_command=fit.command,
        command=command,
        asked=asked or {},
    )


def save(prediction: Prediction, folder: Path) -> Path:
    """Write the prediction to its own file in `folder`; UserError if it is there already."""
    what = json.dumps([prediction.N, prediction.D, prediction.data_sha256, prediction.params], sort_keys=True)
    path = folder / f"{prediction.made[:10]}-{hashlib.sha256(what.encode()).hexdigest()[:8]}.json"
    if not files.create_json(path, asdict(prediction)):
        raise UserError(f"{path}: this prediction is made already; a prediction is never overwritten")
    return path


def load(folder: Path) -> list[tuple[Path, Prediction]]:
    """The predictions in `folder`, oldest first. UserError names a damaged one, or says that there are none."""
    found = [
        (path, artefacts.read(Prediction, path, "restore it, or delete it")) for path in sorted(folder.glob("*.json"))
    ]
    if not found:
        raise UserError(f"{folder}: no prediction yet; make one with --flops or --params and --tokens")
    return found


def score(prediction: Prediction, rows: Rows) -> list[Score]:
    """One score for each run of the table that the prediction was about, by the law at the N and D that were trained.
    Empty while none is trained."""
    law = law_named(prediction.form)
    scores = []
    for run in matching(rows, prediction.run):
        x = {"N": run.N, "D": run.D, "U": run.D, "C": run.C, "M": run.D / run.N}
        predicted = float(law.loss(prediction.params, x))
        moved, ends = predicted / prediction.loss_nats, prediction.interval
        inside = bool(moved * ends.low <= run.loss <= moved * ends.high) if ends else None
        scores.append(Score(run.row, run.N, run.D, run.loss, predicted / run.loss - 1, inside))
    return scores


def matching(rows: Rows, wanted: Allocation) -> list[KnownRun]:
    """The runs of this N, and this D or C, that have a loss, whether the fit uses them or not."""
    parts = {"row": rows.row, "N": rows.N, "D": rows.D, "C": rows.C, "loss": rows.loss}
    whole = {name: np.append(values, rows.unused[name]) for name, values in parts.items()}
    near_N, near_D, near_C = (
        np.abs(whole[name] / value - 1) <= SAME_RUN
        for name, value in (("N", wanted.N), ("D", wanted.D), ("C", wanted.C))
    )
    places = np.flatnonzero(near_N & (near_D | near_C))
    return [
        KnownRun(int(whole["row"][i]), *(float(whole[name][i]) for name in ("N", "D", "C", "loss"))) for i in places
    ]
