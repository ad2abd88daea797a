"""Approach 1 of Hoffmann et al. 2022 (arXiv 2203.15556, section 3.1): the lower envelope of the training curves, the
least loss of all runs at each C.

Only points at a constant learning rate count. Their losses are undecayed and lie above those of finished runs, so the
envelope is compared with the other approaches by its exponents, never by its losses.

Shape suffixes: F families (one curve each), G grid points of compute, B draws of the losses, g crossovers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from sweep.common.errors import UserError
from sweep.fit.frontier import Approach, Optimum, slopes

LEAST_CROSSOVERS = 3
NOTE = "undecayed losses: compare exponents, not losses; the intervals do not include the spacing of the sizes"


@dataclass(frozen=True)
class Curves:
    """The undecayed curves of F families on a common grid of compute: log loss, NaN outside the compute that a curve
    spans. `log_D_FG` is ln of the tokens likewise."""

    log_C_G: np.ndarray
    log_N_F: np.ndarray
    family_F: np.ndarray
    log_loss_FG: np.ndarray
    log_D_FG: np.ndarray


def stable_curves(curves: pd.DataFrame | None, size_of_family: Mapping[Any, float], points: int = 200) -> Curves:
    """From a table of curves: the validated points of the stable phase at the full learning rate. The curve that the
    budgets of a family share is taken once. UserError says why there is nothing to take."""
    if curves is None or not len(curves):
        raise UserError("no training curves")
    stable = curves[(curves["phase"] == "stable") & np.isfinite(curves["val_loss_nats"].astype(float))]
    stable = stable[(stable["val_loss_nats"] > 0) & (stable["flops"] > 0)]
    if not len(stable):
        raise UserError("no validated points at a constant learning rate (a cosine schedule has none)")
    full = stable.groupby("trial_id")["lr"].transform("max")
    stable = stable[stable["lr"] >= 0.999 * full]  # warm-up is no constant learning rate
    stable = stable[stable["family_id"].isin(list(size_of_family))]
    families, log_C, log_L, log_D = [], [], [], []
    for family, points_of in stable.sort_values("tokens").groupby("family_id"):
        points_of = points_of.drop_duplicates("tokens")
        if len(points_of) >= 2:
            families.append(family)
            log_C.append(np.log(points_of["flops"].to_numpy(float)))
            log_L.append(np.log(points_of["val_loss_nats"].to_numpy(float)))
            log_D.append(np.log(points_of["tokens"].to_numpy(float)))
    if len(families) < 3:
        raise UserError(f"{len(families)} families with two undecayed points; 3 are needed")
    grid_G = np.linspace(min(c[0] for c in log_C), max(c[-1] for c in log_C), points)
    on_grid = [
        np.stack([np.interp(grid_G, c, v, left=np.nan, right=np.nan) for c, v in zip(log_C, values, strict=True)])
        for values in (log_L, log_D)
    ]
    log_N_F = np.log([size_of_family[f] for f in families])
    return Curves(grid_G, log_N_F, np.array(families, dtype=object), *on_grid)


def envelope(curves: Curves) -> Approach:
    """The least undecayed loss at each C. Where the best curve changes from one size to another, both are equally
    good and the size between them (geometric mean) is N_opt; a and b are the slopes through these crossovers."""
    log_C, log_N, log_D, log_loss = crossovers(curves, curves.log_loss_FG)
    if len(log_C) < LEAST_CROSSOVERS:
        reason = f"the best curve changes its size {len(log_C)} times along the envelope; {LEAST_CROSSOVERS} are needed"
        return Approach(refused=reason)
    points_g4 = np.exp(np.stack([log_C, log_N, log_D, log_loss], axis=1)).tolist()
    return Approach(
        a=float(slopes(log_C, log_N[None])[0]),
        b=float(slopes(log_C, log_D[None])[0]),
        optima=[Optimum(C, N, D, loss_nats) for C, N, D, loss_nats in points_g4],
        note=NOTE,
    )


def crossovers(curves: Curves, log_loss_FG: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(ln C, ln N, ln D, log loss) where the best curve changes to another size while both curves are there: a change
    because a curve begins or ends tells nothing."""
    present_FG = np.isfinite(log_loss_FG)
    best_G = np.where(present_FG, log_loss_FG, np.inf).argmin(axis=0)
    here_g = np.flatnonzero(curves.log_N_F[best_G[:-1]] != curves.log_N_F[best_G[1:]])
    before, after = best_G[here_g], best_G[here_g + 1]
    both = present_FG[before, here_g + 1] & present_FG[after, here_g]
    here_g, before, after = here_g[both], before[both], after[both]

    def between(values_FG: np.ndarray) -> np.ndarray:
        corners = [values_FG[f, g] for f in (before, after) for g in (here_g, here_g + 1)]
        return np.mean(corners, axis=0)

    log_C = (curves.log_C_G[here_g] + curves.log_C_G[here_g + 1]) / 2
    log_N = (curves.log_N_F[before] + curves.log_N_F[after]) / 2
    return log_C, log_N, between(curves.log_D_FG), between(log_loss_FG)


def envelope_draws(curves: Curves, log_loss_BFG: np.ndarray) -> dict[str, np.ndarray]:
    """{"a", "b": (B,)} of curves drawn B times; NaN where the envelope has fewer than two crossovers."""
    found = []
    for log_loss_FG in log_loss_BFG:
        log_C, log_N, log_D, _ = crossovers(curves, log_loss_FG)
        enough = len(log_C) >= 2
        found.append(slopes(log_C, np.stack([log_N, log_D])) if enough else np.full(2, np.nan))
    return {"a": np.array(found)[:, 0], "b": np.array(found)[:, 1]}
