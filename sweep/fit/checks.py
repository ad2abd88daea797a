"""Where a fit can be checked against itself: the floor estimated twice, and Kaplan's crossing of two budget laws."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from sweep.common.artefacts import Number
from sweep.common.errors import UserError
from sweep.fit.bootstrap import Interval, interval
from sweep.fit.fitted_law import FittedLaw
from sweep.fit.frontier import OVERFLOWS, Approach
from sweep.fit.laws import law_named
from sweep.fit.minimise import Objective, minimise
from sweep.fit.solve import solve

MOST_LOG_C = 250.0  # ln of FLOPs


@dataclass(frozen=True)
class Floors:
    """The floor in nats per token, twice: E of the form, and E of a power law through the compute frontier; each with
    its 90% interval, None where there is no estimate. `agree` says whether the intervals overlap."""

    form: float | None = None
    form_interval: Interval | None = None
    frontier: float | None = None
    frontier_interval: Interval | None = None
    agree: bool | None = None
    note: str = ""


@dataclass(frozen=True)
class Crossing:
    """Where (C0/C)^alpha_C, the compute frontier read as a power law without a floor, meets (D0/D)^alpha_D, the least
    loss that D tokens allow: at C FLOPs, D tokens and a loss in nats per token. `refused` says why they do not."""

    C: Number | None = None
    D: Number | None = None
    loss_nats: Number | None = None
    alpha_C: float | None = None
    C0: Number | None = None
    alpha_D: float | None = None
    D0: Number | None = None
    refused: str = ""


def floors(
    params: Mapping[str, float],
    E_interval: Interval | None,
    isoflop: Approach,
    drawn_loss_Bg: np.ndarray | None,
    widen: float,
    objective: Objective,
) -> Floors:
    """The check of Henighan et al. 2020 (arXiv 2010.14701, section 3.4): E of the form, where N and D go to infinity,
    beside E of L(C) = E + (C0/C)^alpha through the least losses of the isoFLOP budgets.

    `drawn_loss_Bg`: these losses drawn again, for the interval of the second estimate.
    """
    if "E" not in params:
        return Floors(note="this form has no floor")
    found = Floors(params["E"], E_interval)
    optima = isoflop.optima
    if isoflop.refused or len(optima) < 4:
        return replace(found, note=f"{len(optima)} isoFLOP minima; a second estimate needs 4")
    C, loss = np.array([o.C for o in optima]), np.array([o.loss_nats for o in optima])
    try:
        second = solve(law_named("power_C"), {"C": C}, loss, objective)
    except UserError as refusal:
        return replace(found, note=str(refusal))
    found = replace(found, frontier=second.params["E"], note=f"from {len(optima)} isoFLOP minima")
    if drawn_loss_Bg is None or not np.isfinite(drawn_loss_Bg).all():
        return found
    theta_BP = np.repeat(second.theta_P[None], len(drawn_loss_Bg), axis=0)
    drawn = minimise(second.bound, np.log(drawn_loss_Bg), np.ones(len(C)), objective, theta_BP, 1e-6, 100)
    E_B = second.bound.to_params(drawn.theta_BP)["E"]
    ends = interval(second.params["E"], E_B, widen, positive=True)
    overlap = None
    if ends is not None and E_interval is not None:
        overlap = bool(E_interval.low <= ends.high and ends.low <= E_interval.high)
    return replace(found, frontier_interval=ends, agree=overlap)


def kaplan_crossing(alpha_C: float, C0: float, alpha_D: float, D0: float, d0: float, b: float) -> Crossing | None:
    """Where (C0/C)^alpha_C meets (D0/D)^alpha_D, with D = d0 C^b along the frontier (Kaplan et al. 2020, arXiv
    2001.08361, section 6.3). None where they never do."""
    if alpha_C <= alpha_D * b:
        return None
    log_C = (alpha_C * np.log(C0) - alpha_D * np.log(D0 / d0)) / (alpha_C - alpha_D * b)
    if not abs(log_C) < MOST_LOG_C:
        return None  # nearly parallel: they meet beyond any compute there is
    C, D = float(np.exp(log_C)), float(d0 * np.exp(b * log_C))
    return Crossing(C, D, float(np.exp(alpha_C * (np.log(C0) - log_C))), alpha_C, C0, alpha_D, D0)


@OVERFLOWS
def crossing(fitted: FittedLaw, C_n: np.ndarray, D_n: np.ndarray) -> Crossing:
    """The crossing of the two budget laws read off this fit in the range of its data, both as power laws without
    a floor, as Kaplan et al. have them. A form with a floor never crosses itself: past its crossing these two
    readings contradict each other, so a straight line on either plot is not to be trusted beyond it."""
    if fitted.law.name != "additive":
        return Crossing(refused="read off the additive form only")
    params, C = fitted.params, np.geomspace(C_n.min(), C_n.max(), 20)
    try:
        _, D, frontier_loss = fitted.optimum(C)
    except UserError as refusal:
        return Crossing(refused=str(refusal))
    if not (np.isfinite(frontier_loss) & np.isfinite(D) & (D > 0)).all():
        return Crossing(refused="the compute-optimal D of this law is not finite")
    minus_alpha_C, log_C = np.polyfit(np.log(C), np.log(frontier_loss), 1)
    D_range = np.geomspace(D_n.min(), D_n.max(), 20)
    unlimited = params["E"] + params["B"] * D_range ** -params["beta"]
    minus_alpha_D, log_D = np.polyfit(np.log(D_range), np.log(unlimited), 1)
    b, log_d0 = np.polyfit(np.log(C), np.log(D), 1)
    alpha_C, alpha_D = float(-minus_alpha_C), float(-minus_alpha_D)
    C0, D0 = float(np.exp(log_C / alpha_C)), float(np.exp(log_D / alpha_D))
    if not np.isfinite([alpha_C, C0, alpha_D, D0]).all():
        return Crossing(refused="a straight line through these losses is flat")
    met = kaplan_crossing(alpha_C, C0, alpha_D, D0, d0=float(np.exp(log_d0)), b=float(b))
    if met is None:
        why = "L(D) falls as fast as the frontier: the two never cross"
        return Crossing(alpha_C=alpha_C, C0=C0, alpha_D=alpha_D, D0=D0, refused=why)
    return met
