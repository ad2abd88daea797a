"""What the fit says about budgets and prices: the optimum for some FLOPs, and what a loss costs.

The answers are those of `sweep.fit.fitted_law`; this file turns them into the report's rows.
"""

import math
from typing import Any

import numpy as np

from sweep.common.errors import UserError
from sweep.fit.fitted_law import Fitted
from sweep.report.format import power, significant
from sweep.report.results import Results

NEXT_NATS = 0.1
RUNS_PER_PARAMETER = 2
FEW_INSIDE = 0.7  # of the runs that a check predicted, inside their 90% intervals
FARTHEST = 1000  # answers reach this many times the dearest run's compute


def fitted(results: Results) -> Fitted | str:
    """The fit, if it gives a loss for every N and D, and an optimum for every C; else why there is none to draw."""
    if not results.fit:
        return results.refused
    if results.finished.empty:
        return "no trial has finished"
    fit = Fitted.of(results.fit)
    try:
        fit.loss(1e6, 1e8)
        for ratio in (1, FARTHEST):
            fit.optimal(ratio * results.finished["C"].max())
    except UserError as refusal:
        return str(refusal)
    return fit


def band(fit: Fitted, C: np.ndarray, name: str) -> tuple[list[float], list[float], list[float]]:
    """(C, low, high) of the 90% interval of the optimum's N, D or loss_nats, at those C that have one."""
    ends = [(float(c), fit.optimal(c).get(f"{name}_interval")) for c in C]
    known = [(c, *interval) for c, interval in ends if interval]
    return tuple(map(list, zip(*known, strict=True))) if known else ([], [], [])  # type: ignore[return-value]


def flops_per_device_hour(results: Results) -> float | None:
    """FLOPs that one device does in an hour, validation and samples included: measured on the finished trials of the
    largest size (a trial is one device). None when unknown."""
    rows = results.finished
    rows = rows[rows["wall_seconds"] > 0]
    if rows.empty:
        return None
    largest = rows[rows["N"] == rows["N"].max()]
    return float(3600 * largest["flops"].sum() / largest["wall_seconds"].sum())


def training_seconds(results: Results) -> float:
    """Of all finished trials, with each family's shared trunk counted once."""
    rows = results.finished
    trunk = (rows["wall_seconds"] - rows["device_seconds"]).groupby(rows["family_id"]).max()
    return float(rows["device_seconds"].sum() + trunk.sum())


def price(results: Results, flops: float | None) -> dict[str, float | None]:
    """FLOPs in device-hours and dollars, None where the rate is not known."""
    per_hour, dollars = flops_per_device_hour(results), results.meta.get("dollars_per_device_hour")
    hours = flops / per_hour if per_hour and flops is not None else None
    paid = hours * dollars if hours is not None and dollars is not None else None
    return {"flops": flops, "device_hours": hours, "dollars": paid}


def budgets(results: Results) -> list[dict[str, Any]]:
    """N, D and the loss to expect for the compute of the dearest run, and for 10, 100 and 1000 times it.
    `outside` names those of N and D that no finished trial reaches."""
    fit = fitted(results)
    if isinstance(fit, str):
        return []
    largest = float(results.finished["C"].max())
    spans = {name: (results.finished[name].min(), results.finished[name].max()) for name in ("N", "D")}
    bytes_per_token = results.meta.get("bytes_per_token")
    rows = []
    for ratio in (1, 10, 100, FARTHEST):
        best = fit.optimal(largest * ratio)
        best |= price(results, best.pop("C")) | {
            "times_largest": ratio,
            "outside": [name for name in ("N", "D") if not spans[name][0] <= best[name] <= spans[name][1]],
            "tokens_per_param": best["D"] / best["N"],
            "bits_per_byte": best["loss_nats"] / math.log(2) / bytes_per_token if bytes_per_token else None,
            "error_nats": _seen_error(results, ratio, best["loss_nats"]),
        }
        rows.append({f"{name}_interval": None for name in ("N", "D", "loss_nats")} | best)
    return rows


def _seen_error(results: Results, ratio: float, loss_nats: float) -> float | None:
    """The mean error in nats to expect of a loss predicted at `ratio` times the compute that was fitted: that of the
    fit's own residuals at 1, beyond it of the nearest well-posed check that reached as far. None where none did."""
    if ratio <= 1:
        used = [row for row in results.fit["residuals"] if row["used"]]
        return float(np.mean([abs(row["loss_nats"] - row["predicted_nats"]) for row in used]))
    cuts = [cut for cut in well_posed(results.fit["holdout"]) if cut["max_flops_ratio"] >= 0.99 * ratio]
    return loss_nats * min(cuts, key=lambda cut: cut["max_flops_ratio"])["mean_error"] if cuts else None


def well_posed(holdout: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The checks that fitted RUNS_PER_PARAMETER runs for each parameter: with fewer, errors cancel by luck."""
    return [cut for cut in holdout if cut["n_fit"] >= RUNS_PER_PARAMETER * len(cut["params"])]


def farthest(holdout: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The well-posed check that reached farthest; None where there is none."""
    return max(well_posed(holdout), key=lambda cut: cut["max_flops_ratio"], default=None)


def extrapolation(holdout: list[dict[str, Any]]) -> list[str]:
    """The farthest check in a sentence, with its bias and coverage; nothing where there is none."""
    far = farthest(holdout)
    if far is None:
        return []
    bias = 100 * far["mean_signed_error"]
    fitted = f"{far['n_fit']} runs up to {power(far['cut_flops'])} FLOPs"
    predicted = f"{far['n_predicted']} up to {significant(far['max_flops_ratio'], 2)}× dearer"
    side = f"{significant(abs(bias), 2)}% too {'high' if bias > 0 else 'low'} on average"
    error = f"a mean error of {significant(100 * far['mean_error'], 2)}%, {side}"
    inside = "" if far["coverage"] is None else f"; {_percent(far['coverage'])} are inside their 90% interval"
    return [f"extrapolation: {fitted} predict {predicted} with {error}{inside}"]


def false_confidence(holdout: list[dict[str, Any]]) -> list[str]:
    """A warning where the farthest check found far fewer runs inside their 90% intervals than 90%."""
    far = farthest(holdout)
    if far is None or far["coverage"] is None or far["coverage"] >= FEW_INSIDE:
        return []
    where = (
        f"of {far['n_predicted']} runs predicted from cheaper ones (up to {significant(far['max_flops_ratio'], 2)}×)"
    )
    return [
        f"intervals beyond the runs are too narrow: {where} {_percent(far['coverage'])} are inside their 90% interval"
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%"


def reachable(results: Results) -> tuple[float, float] | None:
    """Losses in nats worth pricing: from the frontier at the cheapest run to FARTHEST times the dearest."""
    fit = fitted(results)
    if isinstance(fit, str):
        return None
    C = results.finished["C"]
    worst, best = (float(fit.optimum(at)[2]) for at in (C.min(), FARTHEST * C.max()))
    return (worst, best) if worst > best > fit.floor else None


def round_losses(results: Results, at_most: int = 12) -> list[float]:
    """The tenths of a nat that are reachable, in descending order, thinned where there are many."""
    span = reachable(results)
    if span is None:
        return []
    tenths = range(math.floor(span[0] * 10), math.ceil(span[1] * 10) - 1, -1)
    return [tenth / 10 for tenth in tenths][:: math.ceil(len(tenths) / at_most)]


def costs(results: Results, losses: list[float]) -> list[dict[str, Any]]:
    """The least cost of each loss, and of 0.1 nat less than it (keys with `next_`; None past the floor)."""
    fit = fitted(results)
    if isinstance(fit, str):
        return []
    rows = []
    for loss in losses:
        here, beyond = _least_compute(fit, loss), _least_compute(fit, loss - NEXT_NATS)
        if here is None:
            continue
        step = None if beyond is None else beyond - here
        following = {f"next_{unit}": value for unit, value in price(results, step).items()}
        rows.append({"loss_nats": loss} | price(results, here) | following)
    return rows


def _least_compute(fit: Fitted, loss_nats: float) -> float | None:
    """None where the law says that no compute reaches the loss."""
    try:
        return fit.compute_for_loss(loss_nats)
    except UserError:
        return None
