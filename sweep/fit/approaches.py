"""The three roads to the frontier side by side, each with its intervals, and the alarm where they disagree."""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from sweep.common.errors import UserError
from sweep.fit import frontier
from sweep.fit.bootstrap import Replicates, draw_deviations, interval
from sweep.fit.frontier import FlopsModel
from sweep.fit.identifiability import refuse_best_buy
from sweep.fit.solve import Solution, pinned
from sweep.fit.table import Rows

DRAWS = 400
LOUD_WITHOUT_INTERVALS = 0.1

Road = dict[str, Any]
Draws = dict[str, np.ndarray]


def all_roads(
    rows: Rows,
    curves: pd.DataFrame | None,
    solution: Solution,
    flops: FlopsModel,
    replicates: Replicates | None,
    seed: int = 0,
) -> tuple[dict[str, Road], dict[str, Draws]]:
    """Roads by name, and what they become on losses drawn again (nothing without replicates). Names: envelope,
    isoflop_parabola, isoflop_akima, parametric; a road is {"a", "b", "intervals", "optima", "refused", "note"}, or
    {"refused": reason}."""
    groups = frontier.budgets(rows.N, rows.D, rows.C)
    centres = [g.C for g in groups] or list(np.geomspace(rows.C.min(), rows.C.max(), 5))
    found = {"envelope": _envelope(rows, curves, replicates, seed)}
    for method in frontier.ISOFLOP_METHODS:
        found[method] = _isoflop(method, groups, rows, replicates, seed)
    found["parametric"] = _parametric(solution, flops, replicates, centres)
    for road, drawn in found.values():
        if replicates is not None and drawn:
            _add_intervals(road, drawn, replicates.widening)
    return {name: road for name, (road, _) in found.items()}, {name: drawn for name, (_, drawn) in found.items()}


def _parametric(
    solution: Solution, flops: FlopsModel, replicates: Replicates | None, centres: list[float]
) -> tuple[Road, Draws]:
    law, C_m = solution.law, np.array(centres)
    try:
        refuse_best_buy(solution.certificate.get("without_effect", []))
        N_m, D_m, loss_m = frontier.optimum(law, solution.params, flops, C_m)
        a, b = frontier.exponents(law, solution.params, flops)
    except UserError as refusal:
        return {"refused": str(refusal)}, {}
    optima = [
        {"C": float(C), "N": float(N), "D": float(D), "loss_nats": float(L)}
        for C, N, D, L in zip(C_m, N_m, D_m, loss_m, strict=True)
    ]
    note = f"the fitted form along C = {flops.k:.4g} N^{flops.gamma:.4g} D"
    road = {"a": float(a), "b": float(b), "intervals": None, "optima": optima, "refused": [], "note": note}
    if replicates is None:
        return road, {}
    if at_bound := pinned(solution.certificate):
        return road | {"note": f"{note}; no intervals: {', '.join(at_bound)} at a bound of what is searched"}, {}
    params = {name: values_B[:, None] for name, values_B in replicates.params.items()}
    try:
        drawn = dict(zip(("N", "D", "loss_nats"), frontier.optimum(law, params, flops, C_m), strict=True))
        return road, drawn | dict(zip("ab", frontier.exponents(law, replicates.params, flops), strict=True))
    except UserError:  # some replicate has no optimum: no interval would be honest
        return road | {"note": f"{note}; some replicates have no optimum, hence no intervals"}, {}


def _isoflop(
    method: str, groups: list[frontier.Budget], rows: Rows, replicates: Replicates | None, seed: int
) -> tuple[Road, Draws]:
    """Draws: the law's losses plus deviations drawn again. How the road on a draw differs from the road on the law's
    own losses is how the road on what was seen may differ from the truth."""
    log_loss_n = np.log(rows.loss)
    road = frontier.isoflop_road(method, groups, log_loss_n)
    if replicates is None or "a" not in road:
        return road, {}
    accepted = {o["C"] for o in road["optima"]}
    groups = [group for group in groups if group.C in accepted]
    smooth_n = log_loss_n - replicates.residual_n
    deviation_Bn, _ = draw_deviations(replicates, DRAWS, seed)
    drawn = frontier.isoflop_draws(method, groups, smooth_n + deviation_Bn)
    return road, _recentred(road, drawn, frontier.isoflop_draws(method, groups, smooth_n[None]))


def _envelope(rows: Rows, curves: pd.DataFrame | None, replicates: Replicates | None, seed: int) -> tuple[Road, Draws]:
    """Draws: each family's whole curve without its mean residual, moved by a deviation drawn again."""
    try:
        stable = frontier.stable_curves(curves, dict(zip(rows.family, rows.N, strict=True)))
    except UserError as refusal:
        return {"refused": str(refusal)}, {}
    road = frontier.envelope_road(stable)
    if replicates is None or "a" not in road:
        return road, {}
    labels = np.unique(rows.family.astype(str)).tolist()
    own_F = np.array([labels.index(str(family)) for family in stable.family_F])
    counts = np.bincount(replicates.family_n)
    residual_F = (np.bincount(replicates.family_n, replicates.residual_n) / counts)[own_F]
    _, shared_BF = draw_deviations(replicates, DRAWS, seed)
    smooth_FG = stable.log_loss_FG - residual_F[:, None]
    drawn = frontier.envelope_draws(stable, smooth_FG + shared_BF[:, own_F, None])
    return road, _recentred(road, drawn, frontier.envelope_draws(stable, smooth_FG[None]))


def _recentred(road: Road, drawn: Mapping[str, np.ndarray], smooth: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The draws moved from around the law's own road to around the road that was seen."""
    moved = {}
    for name, values in drawn.items():
        if name in "ab":
            moved[name] = road[name] + values - smooth[name]
        else:
            seen_g = np.array([o[name] for o in road["optima"]])
            moved[name] = seen_g * values / smooth[name]
    return moved


def _add_intervals(road: Road, drawn: Mapping[str, np.ndarray], widen: float) -> None:
    """Put 90% intervals into `road`, for a and b and for each optimum's N, D and loss."""
    ends = {name: interval(road[name], drawn[name], widen) for name in "ab"}
    road["intervals"] = ends if all(ends.values()) else None
    if road["intervals"] is None:
        lost = 100 * np.mean(~np.isfinite(drawn["a"]))
        road["note"] += f"; no intervals: {lost:.0f}% of the draws have no minimum at some budget"
    for name in ("N", "D", "loss_nats"):
        if name in drawn:
            for g, optimum in enumerate(road["optima"]):
                optimum[f"{name}_interval"] = interval(optimum[name], drawn[name][:, g], widen, positive=True)


def disagreements(roads: Mapping[str, Road]) -> list[str]:
    """Pairs of roads whose exponents differ beyond their intervals (by more than 0.1 without any)."""
    named = [(name, road) for name, road in roads.items() if "a" in road]
    return [
        f"N_opt ~ C^a: {_exponent(name, road)}, {_exponent(other_name, other)}"
        for (name, road), (other_name, other) in itertools.combinations(named, 2)
        if _apart(road, other)
    ]


def _apart(road: Road, other: Road) -> bool:
    (low, high), (other_low, other_high) = (
        (r.get("intervals") or {}).get("a") or (r["a"], r["a"]) for r in (road, other)
    )
    if low == high and other_low == other_high:
        return bool(abs(road["a"] - other["a"]) > LOUD_WITHOUT_INTERVALS)
    return bool(high < other_low or other_high < low)


def _exponent(name: str, road: Road) -> str:
    ends = (road.get("intervals") or {}).get("a")
    return f"{name} gives a = {road['a']:.3f}" + (f" [{ends[0]:.3f}, {ends[1]:.3f}]" if ends else "")
