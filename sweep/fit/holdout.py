"""Hold-out by compute, the test that matters for extrapolation: fit the runs up to a cut in FLOPs, predict the larger
runs, and see how the error changes as the cut moves.

Shape suffixes: n rows, m predicted runs.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sweep.common.artefacts import Number
from sweep.fit.bootstrap import prediction_interval, refusal, resample
from sweep.fit.isoflop import SAME_BUDGET
from sweep.fit.law import Law
from sweep.fit.minimise import Objective
from sweep.fit.rows import FitError, Rows
from sweep.fit.solve import Solution, solve

MOST_CUTS = 6
REPLICATES = 200
MOST_LISTED = 2000  # rows of a cut that are listed, evenly spaced


@dataclass(frozen=True)
class PredictedRow:
    """A run above the cut (`row`: its position in the table), the loss that was predicted for it, and the ends of the
    90% prediction interval, None without intervals. `error` is predicted / observed - 1."""

    row: int
    N: float
    D: float
    C: float
    loss_nats: float
    predicted_nats: Number
    error: Number
    low_nats: Number | None = None
    high_nats: Number | None = None


@dataclass(frozen=True)
class Cut:
    """What a fit of the `n_fit` runs up to `cut_flops` predicts of the `n_predicted` larger ones, which have up to
    `max_flops_ratio` times the compute. `mean_error` is the mean of |error|, `mean_signed_error` of error; `coverage`
    the fraction of the predicted runs inside their 90% prediction interval, None without intervals."""

    cut_flops: float
    n_fit: int
    max_flops_ratio: float
    params: dict[str, Number]
    n_predicted: int
    mean_error: Number
    mean_signed_error: Number
    coverage: float | None
    rows: list[PredictedRow]


def holdout(
    law: Law,
    rows: Rows,
    objective: Objective,
    *,
    intervals: bool = True,
    seed: int = 0,
) -> list[Cut]:
    """One entry per cut, the least compute first. A cut whose rows below it cannot be fitted is left out."""
    found, x = [], rows.variables()
    for cut in cuts(rows.C):
        inside_n = cut >= rows.C
        below = {name: v[inside_n] for name, v in x.items()}
        above = {name: v[~inside_n] for name, v in x.items()}
        try:
            fitted = solve(law, below, rows.loss[inside_n], objective, rows.weight[inside_n])
        except FitError:
            continue
        limits = _limits(fitted, rows.loss[inside_n], rows.family[inside_n], above, seed) if intervals else None
        predicted_m = fitted.law.loss(fitted.params, above)
        error_m = predicted_m / rows.loss[~inside_n] - 1
        found.append(
            Cut(
                cut_flops=cut,
                n_fit=int(inside_n.sum()),
                max_flops_ratio=float(rows.C.max() / rows.C[inside_n].max()),
                params=fitted.params,
                n_predicted=len(error_m),
                mean_error=float(np.mean(np.abs(error_m))),
                mean_signed_error=float(np.mean(error_m)),
                coverage=_coverage(rows.loss[~inside_n], limits),
                rows=_listed(rows, ~inside_n, predicted_m, limits),
            )
        )
    return found


def _limits(
    fitted: Solution, loss_n: np.ndarray, family_n: np.ndarray, above: Mapping[str, np.ndarray], seed: int
) -> np.ndarray | None:
    """90% prediction limits of new runs, (2, rows); None where a bootstrap is refused."""
    if refusal(len(loss_n), len(np.unique(family_n.astype(str)))):
        return None
    replicates = resample(fitted, loss_n, family_n, REPLICATES, seed)
    return prediction_interval(fitted, replicates, above, seed)


def _coverage(loss_m: np.ndarray, limits_2m: np.ndarray | None) -> float | None:
    if limits_2m is None:
        return None
    return float(np.mean((limits_2m[0] <= loss_m) & (loss_m <= limits_2m[1])))


def _listed(
    rows: Rows, above_n: np.ndarray, predicted_m: np.ndarray, limits_2m: np.ndarray | None
) -> list[PredictedRow]:
    """The predicted rows, at most MOST_LISTED of them."""
    row_m, N_m, D_m, C_m, loss_m = (v[above_n] for v in (rows.row, rows.N, rows.D, rows.C, rows.loss))
    error_m = predicted_m / loss_m - 1
    found = []
    for m in range(0, len(loss_m), -(-len(loss_m) // MOST_LISTED)):
        ends = (None, None) if limits_2m is None else (float(limits_2m[0, m]), float(limits_2m[1, m]))
        numbers = (float(v[m]) for v in (N_m, D_m, C_m, loss_m, predicted_m, error_m))
        found.append(PredictedRow(int(row_m[m]), *numbers, *ends))
    return found


def cuts(C_n: np.ndarray) -> list[float]:
    """Compute values to cut at: between budgets where the rows form a few, else quantiles of the rows."""
    log_C = np.sort(np.log(C_n))
    gaps = np.flatnonzero(np.diff(log_C) > SAME_BUDGET)
    if not 1 <= len(gaps) <= 2 * MOST_CUTS:
        gaps = np.unique(np.linspace(0.3 * len(log_C), 0.9 * len(log_C), MOST_CUTS).astype(int)) - 1
    return [float(np.exp(log_C[i])) * (1 + 1e-12) for i in gaps if 0 <= i < len(log_C) - 1]
