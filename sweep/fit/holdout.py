"""Extrapolation, the headline: fit the cheaper runs, predict the dearer ones, as the cut in compute moves."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sweep.fit.bootstrap import prediction_interval, refusal, resample
from sweep.fit.frontier import SAME_BUDGET
from sweep.fit.laws import Law
from sweep.fit.minimise import Objective
from sweep.fit.solve import Solution, solve
from sweep.fit.table import FitError, Rows

MOST_CUTS = 6
REPLICATES = 200
MOST_LISTED = 2000  # rows of a cut that are listed, evenly spaced


def holdout(
    law: Law,
    rows: Rows,
    objective: Objective,
    *,
    intervals: bool = True,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """One entry per cut, cheapest first; a cut whose cheaper rows cannot be fitted is left out.

    `error` is predicted / observed - 1; `mean_error` the mean of its absolute value, `mean_signed_error` of
    itself. `coverage`: the fraction of the predicted rows inside their 90% prediction interval.
    """
    found, x = [], rows.variables()
    for cut in cuts(rows.C):
        inside_n = cut >= rows.C
        cheaper = {name: v[inside_n] for name, v in x.items()}
        dearer = {name: v[~inside_n] for name, v in x.items()}
        try:
            fitted = solve(law, cheaper, rows.loss[inside_n], objective, rows.weight[inside_n])
        except FitError:
            continue
        limits = _limits(fitted, rows.loss[inside_n], rows.family[inside_n], dearer, seed) if intervals else None
        found.append(
            {
                "cut_flops": cut,
                "n_fit": int(inside_n.sum()),
                "max_flops_ratio": float(rows.C.max() / rows.C[inside_n].max()),
                "params": fitted.params,
            }
            | _score(fitted, dearer, rows.row[~inside_n], rows.C[~inside_n], rows.loss[~inside_n], limits)
        )
    return found


def _limits(
    fitted: Solution, loss_n: np.ndarray, family_n: np.ndarray, dearer: Mapping[str, np.ndarray], seed: int
) -> np.ndarray | None:
    """90% prediction limits of new runs, (2, rows); None where a bootstrap is refused."""
    if refusal(len(loss_n), len(np.unique(family_n.astype(str)))):
        return None
    replicates = resample(fitted, loss_n, family_n, REPLICATES, seed)
    return prediction_interval(fitted, replicates, dearer, seed)


def _score(
    fitted: Solution,
    x: Mapping[str, np.ndarray],
    row_m: np.ndarray,
    C_m: np.ndarray,
    loss_m: np.ndarray,
    limits_2m: np.ndarray | None,
) -> dict[str, Any]:
    """How predictions of m runs compare with what was seen."""
    predicted_m = fitted.law.loss(fitted.params, x)
    error_m = predicted_m / loss_m - 1
    columns = {"row": row_m, "N": x["N"], "D": x["D"], "C": C_m, "loss_nats": loss_m, "predicted_nats": predicted_m}
    columns["error"] = error_m
    inside_m = None
    if limits_2m is not None:
        columns |= {"low_nats": limits_2m[0], "high_nats": limits_2m[1]}
        inside_m = (limits_2m[0] <= loss_m) & (loss_m <= limits_2m[1])
    listed = range(0, len(loss_m), -(-len(loss_m) // MOST_LISTED))
    return {
        "n_predicted": len(loss_m),
        "mean_error": float(np.mean(np.abs(error_m))),
        "mean_signed_error": float(np.mean(error_m)),
        "coverage": None if inside_m is None else float(np.mean(inside_m)),
        "rows": [{name: values[m].item() for name, values in columns.items()} for m in listed],
    }


def cuts(C_n: np.ndarray) -> list[float]:
    """Compute values to cut at: between budgets where the rows form a few, else quantiles of the rows."""
    log_C = np.sort(np.log(C_n))
    gaps = np.flatnonzero(np.diff(log_C) > SAME_BUDGET)
    if not 1 <= len(gaps) <= 2 * MOST_CUTS:
        gaps = np.unique(np.linspace(0.3 * len(log_C), 0.9 * len(log_C), MOST_CUTS).astype(int)) - 1
    return [float(np.exp(log_C[i])) * (1 + 1e-12) for i in gaps if 0 <= i < len(log_C) - 1]
