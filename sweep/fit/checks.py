"""Where a fit can be checked against itself: the floor estimated twice, and Kaplan's crossing of two laws."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sweep.common.errors import UserError
from sweep.fit.bootstrap import interval
from sweep.fit.fitted_law import Fitted
from sweep.fit.frontier import OVERFLOWS
from sweep.fit.laws import law_named
from sweep.fit.minimise import Objective, minimise
from sweep.fit.solve import solve

MOST_LOG_C = 250.0  # ln of FLOPs


def floors(
    params: Mapping[str, float],
    intervals: Mapping[str, Any] | None,
    road: Mapping[str, Any],
    drawn_loss_Bg: np.ndarray | None,
    widen: float,
    objective: Objective,
) -> dict[str, Any]:
    """The floor twice (the check of Henighan et al. 2020, arXiv 2010.14701, section 3.4): E of the form, where N
    and D go to infinity, and E of L(C) = E + (C0/C)^alpha through the best losses of an isoFLOP road.

    `drawn_loss_Bg`: the road's best losses drawn again, for the second estimate's interval.
    {"form", "form_interval", "frontier", "frontier_interval", "agree", "note"}; None for what there is not.
    """
    found: dict[str, Any] = dict.fromkeys(("form", "form_interval", "frontier", "frontier_interval", "agree"))
    if "E" not in params:
        return found | {"note": "this form has no floor"}
    found |= {"form": params["E"], "form_interval": (intervals or {}).get("E")}
    optima = road.get("optima", [])
    if "a" not in road or len(optima) < 4:
        return found | {"note": f"{len(optima)} isoFLOP minima; a second estimate needs 4"}
    C, loss = (np.array([o[name] for o in optima]) for name in ("C", "loss_nats"))
    try:
        second = solve(law_named("power_C"), {"C": C}, loss, objective)
    except UserError as refusal:
        return found | {"note": str(refusal)}
    found |= {"frontier": second.params["E"], "note": f"from {len(optima)} isoFLOP minima"}
    if drawn_loss_Bg is None or not np.isfinite(drawn_loss_Bg).all():
        return found
    theta_BP = np.repeat(second.theta_P[None], len(drawn_loss_Bg), axis=0)
    drawn = minimise(second.bound, np.log(drawn_loss_Bg), np.ones(len(C)), objective, theta_BP, 1e-6, 100)
    E_B = second.bound.to_params(drawn.theta_BP)["E"]
    ends = interval(second.params["E"], E_B, widen, positive=True)
    found["frontier_interval"] = ends
    if ends and found["form_interval"]:
        low, high = found["form_interval"]
        found["agree"] = bool(low <= ends[1] and ends[0] <= high)
    return found


def kaplan_crossing(
    alpha_C: float, C0: float, alpha_D: float, D0: float, d0: float, b: float
) -> dict[str, float] | None:
    """Where (C0/C)^alpha_C, the compute frontier without a floor, meets (D0/D)^alpha_D, the least loss that D
    tokens allow, with D = d0 C^b along the frontier (Kaplan et al. 2020, section 6.3). None if they never do."""
    if alpha_C <= alpha_D * b:
        return None
    log_C = (alpha_C * np.log(C0) - alpha_D * np.log(D0 / d0)) / (alpha_C - alpha_D * b)
    if not abs(log_C) < MOST_LOG_C:
        return None  # nearly parallel: beyond any compute there is
    return {
        "C": float(np.exp(log_C)),
        "D": float(d0 * np.exp(b * log_C)),
        "loss_nats": float(np.exp(alpha_C * (np.log(C0) - log_C))),
    }


@OVERFLOWS
def crossing(fitted: Fitted, C_n: np.ndarray, D_n: np.ndarray) -> dict[str, Any]:
    """The crossing of the two budget laws read off this fit in the range of its data, both as power laws without
    a floor, as Kaplan et al. have them. A form with a floor never crosses itself: past its crossing these two
    readings contradict each other, so no straight line on either plot is to be trusted beyond it."""
    if fitted.law.name != "additive":
        return {"refused": "read off the additive form only"}
    params, C = fitted.params, np.geomspace(C_n.min(), C_n.max(), 20)
    try:
        _, D, frontier_loss = fitted.optimum(C)
    except UserError as refusal:
        return {"refused": str(refusal)}
    if not (np.isfinite(frontier_loss) & np.isfinite(D) & (D > 0)).all():
        return {"refused": "the best buys of this law are not finite"}
    minus_alpha_C, log_C = np.polyfit(np.log(C), np.log(frontier_loss), 1)
    D_range = np.geomspace(D_n.min(), D_n.max(), 20)
    unlimited = params["E"] + params["B"] * D_range ** -params["beta"]
    minus_alpha_D, log_D = np.polyfit(np.log(D_range), np.log(unlimited), 1)
    b, log_d0 = np.polyfit(np.log(C), np.log(D), 1)
    alpha_C, alpha_D = -minus_alpha_C, -minus_alpha_D
    laws = {
        "alpha_C": float(alpha_C),
        "C0": float(np.exp(log_C / alpha_C)),
        "alpha_D": float(alpha_D),
        "D0": float(np.exp(log_D / alpha_D)),
    }
    if not np.isfinite(list(laws.values())).all():
        return {"refused": "a straight line through these losses is flat"}
    met = kaplan_crossing(**laws, d0=float(np.exp(log_d0)), b=float(b))
    if met is None:
        return {"refused": "L(D) falls as fast as the frontier: the two never cross"} | laws
    return met | laws
