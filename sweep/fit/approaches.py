"""Approaches 1, 2 and 3 of Hoffmann et al. 2022 (arXiv 2203.15556) to the compute-optimal frontier side by side, each
with its 90% intervals, and the alarm where they disagree.

1. `envelope`: the lower envelope of the training curves;
2. `isoflop_parabola`, `isoflop_akima`: at each budget the minimum over N;
3. `parametric`: the fitted form minimised along C = k N^gamma D (k = 6 and gamma = 1 where C = 6ND).
An approach that the data cannot carry is refused with its reason, never filled in.
"""

import itertools
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pandas as pd

from sweep.common.errors import UserError
from sweep.fit import envelope as approach_1
from sweep.fit import frontier
from sweep.fit import isoflop as approach_2
from sweep.fit.bootstrap import Interval, Replicates, draw_deviations, interval
from sweep.fit.frontier import Approach, ExponentIntervals, FlopsModel, Optimum
from sweep.fit.identifiability import refuse_without_effect
from sweep.fit.rows import Rows
from sweep.fit.solve import Solution

DRAWS = 400
LOUD_WITHOUT_INTERVALS = 0.1

Draws = dict[str, np.ndarray]  # "a", "b": (B,), and of each optimum "N", "D", "loss_nats": (B, optima)


def all_approaches(
    rows: Rows,
    curves: pd.DataFrame | None,
    solution: Solution,
    flops: FlopsModel,
    replicates: Replicates | None,
    seed: int = 0,
) -> tuple[dict[str, Approach], dict[str, Draws]]:
    """The approaches by name, and what each becomes on losses drawn again (empty without replicates)."""
    groups = approach_2.budgets(rows.N, rows.D, rows.C)
    centres = [g.C for g in groups] or list(np.geomspace(rows.C.min(), rows.C.max(), 5))
    found = {"envelope": _envelope(rows, curves, replicates, seed)}
    for method in approach_2.METHODS:
        found[method] = _isoflop(method, groups, rows, replicates, seed)
    found["parametric"] = _parametric(solution, flops, replicates, centres)
    if replicates is not None:
        found = {
            name: (_with_intervals(approach, drawn, replicates.widening) if drawn else approach, drawn)
            for name, (approach, drawn) in found.items()
        }
    return {name: approach for name, (approach, _) in found.items()}, {
        name: drawn for name, (_, drawn) in found.items()
    }


def _envelope(
    rows: Rows, curves: pd.DataFrame | None, replicates: Replicates | None, seed: int
) -> tuple[Approach, Draws]:
    """Draws: each family's whole curve without its mean residual, moved by a deviation drawn again."""
    try:
        stable = approach_1.stable_curves(curves, dict(zip(rows.family, rows.N, strict=True)))
    except UserError as refusal:
        return Approach(refused=str(refusal)), {}
    approach = approach_1.envelope(stable)
    if replicates is None or approach.refused:
        return approach, {}
    labels = np.unique(rows.family.astype(str)).tolist()
    own_F = np.array([labels.index(str(family)) for family in stable.family_F])
    counts = np.bincount(replicates.family_n)
    residual_F = (np.bincount(replicates.family_n, replicates.residual_n) / counts)[own_F]
    _, shared_BF = draw_deviations(replicates, DRAWS, seed)
    smooth_FG = stable.log_loss_FG - residual_F[:, None]
    drawn = approach_1.envelope_draws(stable, smooth_FG + shared_BF[:, own_F, None])
    return approach, _recentred(approach, drawn, approach_1.envelope_draws(stable, smooth_FG[None]))


def _isoflop(
    method: str, groups: list[approach_2.Budget], rows: Rows, replicates: Replicates | None, seed: int
) -> tuple[Approach, Draws]:
    """Draws: the law's losses plus deviations drawn again. How the approach on a draw differs from the approach on the
    law's own losses is how the approach on what was seen may differ from the truth."""
    log_loss_n = np.log(rows.loss)
    approach = approach_2.isoflop(method, groups, log_loss_n)
    if replicates is None or approach.refused:
        return approach, {}
    accepted = {optimum.C for optimum in approach.optima}
    groups = [group for group in groups if group.C in accepted]
    smooth_n = log_loss_n - replicates.residual_n
    deviation_Bn, _ = draw_deviations(replicates, DRAWS, seed)
    drawn = approach_2.isoflop_draws(method, groups, smooth_n + deviation_Bn)
    return approach, _recentred(approach, drawn, approach_2.isoflop_draws(method, groups, smooth_n[None]))


def _parametric(
    solution: Solution, flops: FlopsModel, replicates: Replicates | None, centres: list[float]
) -> tuple[Approach, Draws]:
    """Draws: the law of each bootstrap replicate."""
    law, C_m = solution.law, np.array(centres)
    try:
        refuse_without_effect(solution.certificate.without_effect)
        points_m4 = np.stack([C_m, *frontier.optimum(law, solution.params, flops, C_m)], axis=1).tolist()
        a, b = map(float, frontier.exponents(law, solution.params, flops))
    except UserError as refusal:
        return Approach(refused=str(refusal)), {}
    note = f"the fitted form along C = {flops.k:.4g} N^{flops.gamma:.4g} D"
    approach = Approach(a, b, optima=[Optimum(C, N, D, loss_nats) for C, N, D, loss_nats in points_m4], note=note)
    if replicates is None:
        return approach, {}
    if at_bound := solution.certificate.pinned:
        why = f"{', '.join(at_bound)} at a bound of the search"
        return replace(approach, note=f"{note}; no intervals: {why}"), {}
    params = {name: values_B[:, None] for name, values_B in replicates.params.items()}
    try:
        drawn = dict(zip(("N", "D", "loss_nats"), frontier.optimum(law, params, flops, C_m), strict=True))
        return approach, drawn | dict(zip("ab", frontier.exponents(law, replicates.params, flops), strict=True))
    except UserError:  # some replicate has no optimum: no interval would be honest
        return replace(approach, note=f"{note}; no intervals: some replicates have no optimum"), {}


def _recentred(approach: Approach, drawn: Draws, smooth: Draws) -> Draws:
    """The draws moved from around the approach on the law's own losses to around the approach on what was seen."""
    assert approach.a is not None
    assert approach.b is not None
    moved = {"a": approach.a + drawn["a"] - smooth["a"], "b": approach.b + drawn["b"] - smooth["b"]}
    if "N" in drawn:
        seen_3g = np.array([(o.N, o.D, o.loss_nats) for o in approach.optima]).T
        for name, seen_g in zip(("N", "D", "loss_nats"), seen_3g, strict=True):
            moved[name] = seen_g * drawn[name] / smooth[name]
    return moved


def _with_intervals(approach: Approach, drawn: Draws, widen: float) -> Approach:
    """The approach with 90% intervals of a and b and of each optimum's N, D and loss."""
    a, b = interval(approach.a, drawn["a"], widen), interval(approach.b, drawn["b"], widen)
    note = approach.note
    if a is None or b is None:
        lost = 100 * np.mean(~np.isfinite(drawn["a"]))
        note += f"; no intervals: {lost:.0f}% of the draws have no minimum at some budget"
    optima = approach.optima
    if "N" in drawn:
        optima = [_optimum_with_intervals(optimum, drawn, g, widen) for g, optimum in enumerate(optima)]
    return replace(approach, intervals=ExponentIntervals(a, b) if a and b else None, optima=optima, note=note)


def _optimum_with_intervals(optimum: Optimum, drawn: Draws, g: int, widen: float) -> Optimum:
    return replace(
        optimum,
        N_interval=interval(optimum.N, drawn["N"][:, g], widen, positive=True),
        D_interval=interval(optimum.D, drawn["D"][:, g], widen, positive=True),
        loss_nats_interval=interval(optimum.loss_nats, drawn["loss_nats"][:, g], widen, positive=True),
    )


def disagreements(approaches: Mapping[str, Approach]) -> list[str]:
    """One line for the exponent a, with that of every approach, where any two differ beyond their intervals (by more
    than 0.1 where neither has any); empty where none do."""
    found = {name: approach for name, approach in approaches.items() if approach.a is not None}
    if not any(_apart(one, other) for one, other in itertools.combinations(found.values(), 2)):
        return []
    listed = ", ".join(_exponent(name, approach) for name, approach in found.items())
    return [f"the approaches disagree on a, N_opt ~ C^a: {listed}"]


def _apart(one: Approach, other: Approach) -> bool:
    mine, theirs = _ends(one), _ends(other)
    if one.intervals is None and other.intervals is None:
        return abs(mine.low - theirs.low) > LOUD_WITHOUT_INTERVALS
    return mine.high < theirs.low or theirs.high < mine.low


def _ends(approach: Approach) -> Interval:
    """The interval of a, or a itself where it has none."""
    assert approach.a is not None
    return approach.intervals.a if approach.intervals else Interval(approach.a, approach.a)


def _exponent(name: str, approach: Approach) -> str:
    ends = approach.intervals
    return f"{name} {approach.a:.3f}" + (f" [{ends.a.low:.3f}, {ends.a.high:.3f}]" if ends else "")
