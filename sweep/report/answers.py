"""What the fit says about budgets and prices: the compute-optimal N and D for some FLOPs, and what a loss costs.

The answers are those of `sweep.fit.fitted_law`; this file turns them into the report's rows.
"""

import math
from dataclasses import dataclass

import numpy as np

from sweep.common.errors import UserError
from sweep.fit.bootstrap import Interval
from sweep.fit.fitted_law import FittedLaw
from sweep.fit.frontier import Optimum
from sweep.fit.holdout import Cut
from sweep.report.format import power, significant
from sweep.report.results import Results

NEXT_NATS = 0.1
RUNS_PER_PARAMETER = 2
FEW_INSIDE = 0.7  # of the runs that a check predicted, inside their 90% intervals
FARTHEST = 1000  # answers reach this many times the largest run's compute


@dataclass(frozen=True)
class Price:
    """FLOPs, and what they take in device-hours and dollars; None where the rate is not known."""

    flops: float | None
    device_hours: float | None
    dollars: float | None


@dataclass(frozen=True)
class BudgetAnswer:
    """The compute-optimal model at `times_largest` the compute of the largest run, with its price. `outside`
    names those of N and D that no finished trial reaches; `error_nats` is the mean error of predictions that far."""

    times_largest: int
    flops: float
    device_hours: float | None
    dollars: float | None
    N: float
    N_interval: Interval | None
    D: float
    D_interval: Interval | None
    tokens_per_param: float
    loss_nats: float
    loss_nats_interval: Interval | None
    error_nats: float | None
    bits_per_byte: float | None
    outside: list[str]


@dataclass(frozen=True)
class Cost:
    """The least price of a loss, and of NEXT_NATS less than it (`next_`; None where that is below the floor)."""

    loss_nats: float
    flops: float
    device_hours: float | None
    dollars: float | None
    next_flops: float | None
    next_device_hours: float | None
    next_dollars: float | None


def fitted_law(results: Results) -> FittedLaw | str:
    """The fitted law, if it gives a loss for every N and D and an optimum for every C; else why it cannot be drawn."""
    if results.fit is None:
        return results.refused
    if results.finished.empty:
        return "no trial has finished"
    fit = results.fit.law
    try:
        fit.loss(1e6, 1e8)
        for ratio in (1, FARTHEST):
            fit.optimal(ratio * results.finished["C"].max())
    except UserError as refusal:
        return str(refusal)
    return fit


def band(fit: FittedLaw, C: np.ndarray, name: str) -> tuple[list[float], list[float], list[float]]:
    """(C, low, high) of the 90% interval of the optimum's N, D or loss_nats, at those C that have one."""
    ends = [(float(c), interval_of(fit.optimal(float(c)), name)) for c in C]
    known = [(c, interval) for c, interval in ends if interval]
    return [c for c, _ in known], [interval.low for _, interval in known], [interval.high for _, interval in known]


def interval_of(best: Optimum, name: str) -> Interval | None:
    """The interval of N, D or loss_nats."""
    return {"N": best.N_interval, "D": best.D_interval, "loss_nats": best.loss_nats_interval}[name]


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


def price(results: Results, flops: float | None) -> Price:
    """What FLOPs take on the devices that the sweep ran on."""
    per_hour, dollars = flops_per_device_hour(results), results.meta.dollars_per_device_hour
    hours = flops / per_hour if per_hour and flops is not None else None
    paid = hours * dollars if hours is not None and dollars is not None else None
    return Price(flops, hours, paid)


def budgets(results: Results) -> list[BudgetAnswer]:
    """The compute-optimal models for the compute of the largest run, and for 10, 100 and 1000 times it."""
    fit = fitted_law(results)
    if isinstance(fit, str):
        return []
    largest = float(results.finished["C"].max())
    return [_budget(results, fit, largest, times) for times in (1, 10, 100, FARTHEST)]


def _budget(results: Results, fit: FittedLaw, largest: float, times: int) -> BudgetAnswer:
    best, bytes_per_token, rows = fit.optimal(largest * times), results.meta.bytes_per_token, results.finished
    cost = price(results, best.C)
    return BudgetAnswer(
        times_largest=times,
        flops=best.C,
        device_hours=cost.device_hours,
        dollars=cost.dollars,
        N=best.N,
        N_interval=best.N_interval,
        D=best.D,
        D_interval=best.D_interval,
        tokens_per_param=best.D / best.N,
        loss_nats=best.loss_nats,
        loss_nats_interval=best.loss_nats_interval,
        error_nats=_seen_error(results, times, best.loss_nats),
        bits_per_byte=best.loss_nats / math.log(2) / bytes_per_token if bytes_per_token else None,
        outside=[
            name for name, value in (("N", best.N), ("D", best.D)) if not rows[name].min() <= value <= rows[name].max()
        ],
    )


def _seen_error(results: Results, times: float, loss_nats: float) -> float | None:
    """The mean error in nats to expect of a loss predicted at `times` the compute that was fitted: that of the fit's
    own residuals at 1, beyond it of the nearest well-posed hold-out that reached as far. None where none did."""
    if results.fit is None:
        return None
    if times <= 1:
        used = [row for row in results.fit.residuals if row.used]
        return float(np.mean([abs(row.loss_nats - row.predicted_nats) for row in used]))
    cuts = [cut for cut in well_posed(results.fit.holdout) if cut.max_flops_ratio >= 0.99 * times]
    return loss_nats * min(cuts, key=lambda cut: cut.max_flops_ratio).mean_error if cuts else None


def well_posed(holdout: list[Cut]) -> list[Cut]:
    """The cuts that fitted RUNS_PER_PARAMETER runs for each parameter: with fewer, errors cancel by luck."""
    return [cut for cut in holdout if cut.n_fit >= RUNS_PER_PARAMETER * len(cut.params)]


def farthest(holdout: list[Cut]) -> Cut | None:
    """The well-posed cut that predicts the largest runs; None where there is none."""
    return max(well_posed(holdout), key=lambda cut: cut.max_flops_ratio, default=None)


def extrapolation(holdout: list[Cut]) -> list[str]:
    """The farthest hold-out in a sentence, with its bias and coverage; nothing where there is none."""
    far = farthest(holdout)
    if far is None:
        return []
    bias = 100 * far.mean_signed_error
    fitted = f"{far.n_fit} runs up to {power(far.cut_flops)} FLOPs"
    predicted = f"{far.n_predicted} of up to {significant(far.max_flops_ratio, 2)}× the compute"
    side = f"{significant(abs(bias), 2)}% too {'high' if bias > 0 else 'low'} on average"
    error = f"a mean error of {significant(100 * far.mean_error, 2)}%, {side}"
    inside = "" if far.coverage is None else f"; {_percent(far.coverage)} are inside their 90% interval"
    return [f"extrapolation: {fitted} predict {predicted} with {error}{inside}"]


def false_confidence(holdout: list[Cut]) -> list[str]:
    """A warning where the farthest hold-out found far fewer runs inside their 90% intervals than 90%."""
    far = farthest(holdout)
    if far is None or far.coverage is None or far.coverage >= FEW_INSIDE:
        return []
    reach = significant(far.max_flops_ratio, 2)
    return [
        f"intervals beyond the runs are too narrow: of {far.n_predicted} runs predicted from smaller ones "
        f"(up to {reach}× the compute) {_percent(far.coverage)} are inside their 90% interval"
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%"


def reachable(results: Results) -> tuple[float, float] | None:
    """Losses in nats worth pricing: from the frontier at the smallest run's compute to FARTHEST times the largest's."""
    fit = fitted_law(results)
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


def costs(results: Results, losses: list[float]) -> list[Cost]:
    """The least price of each loss, and of NEXT_NATS less than it."""
    fit = fitted_law(results)
    if isinstance(fit, str):
        return []
    found = []
    for loss in losses:
        here, beyond = _least_compute(fit, loss), _least_compute(fit, loss - NEXT_NATS)
        if here is None:
            continue
        now, after = price(results, here), price(results, None if beyond is None else beyond - here)
        found.append(Cost(loss, here, now.device_hours, now.dollars, after.flops, after.device_hours, after.dollars))
    return found


def _least_compute(fit: FittedLaw, loss_nats: float) -> float | None:
    """None where the law says that no compute reaches the loss."""
    try:
        return fit.compute_for_loss(loss_nats)
    except UserError:
        return None
