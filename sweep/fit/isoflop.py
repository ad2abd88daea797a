"""Approach 2 of Hoffmann et al. 2022 (arXiv 2203.15556, section 3.2), isoFLOP: at each compute budget the minimum of
the loss over N, by a parabola in ln N or by an Akima spline (Porian et al. 2024, arXiv 2406.19146), and a power law
through the minima. A budget that the data cannot give a minimum of is refused with its reason, never filled in.

Shape suffixes: n rows, m sizes of one budget, g budgets, G grid points, B draws of the losses.
"""

from dataclasses import dataclass

import numpy as np
from scipy.interpolate import Akima1DInterpolator
from scipy.sparse import csr_array

from sweep.fit.frontier import Approach, Optimum, RefusedBudget, slopes

SAME_BUDGET = 0.15  # rows whose FLOPs differ by less than this (ln) from the next belong to one budget
LEAST_SIZES = 4
LEAST_BUDGETS = 3
GRID = 600
CONCAVE = "the parabola opens downwards: no minimum over N"


@dataclass(frozen=True)
class Budget:
    """The rows of one compute budget, one point per distinct size: replicates are averaged in log loss."""

    C: float
    log_N_m: np.ndarray
    log_D_m: np.ndarray
    average_mn: csr_array  # (m, n), sparse: maps the log losses of all rows to one per size


def budgets(N_n: np.ndarray, D_n: np.ndarray, C_n: np.ndarray) -> list[Budget]:
    """Rows grouped by nearly equal FLOPs, smallest budget first; groups of a single size are left out."""
    order = np.argsort(C_n, kind="stable")
    starts = np.flatnonzero(np.diff(np.log(C_n[order]), prepend=-np.inf) > SAME_BUDGET)
    found = []
    for rows in np.split(order, starts[1:]):
        sizes, size_of, counts = np.unique(N_n[rows], return_inverse=True, return_counts=True)
        if len(sizes) < 2 or np.ptp(np.log(C_n[rows])) > 2 * SAME_BUDGET:
            continue  # a chain of neighbours that drifts is no budget
        average_mn = csr_array((1 / counts[size_of], (size_of, rows)), shape=(len(sizes), len(N_n)))
        log_C = float(np.mean(np.log(C_n[rows])))
        found.append(Budget(float(np.exp(log_C)), np.log(sizes), average_mn @ np.log(D_n), average_mn))
    return found


def parabola_minimum(log_N_m: np.ndarray, loss_Bm: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """(ln N_opt, loss there, reason for refusal or "") of a least-squares parabola per row of `loss_Bm`."""
    centre = log_N_m.mean()
    x_m = log_N_m - centre
    c_3B = np.linalg.lstsq(np.stack([x_m**2, x_m, np.ones_like(x_m)], axis=1), loss_Bm.T, rcond=None)[0]
    bend_B = np.where(np.abs(c_3B[0]) > 1e-300, c_3B[0], 1e-300)
    x_B = -c_3B[1] / (2 * bend_B)
    outside_B = (x_B <= x_m[0]) | (x_B >= x_m[-1])
    reasons = [_refusal(c, o) for c, o in zip(c_3B[0] <= 0, outside_B, strict=True)]
    return x_B + centre, c_3B[2] + c_3B[1] * x_B / 2, reasons


def akima_minimum(log_N_m: np.ndarray, loss_Bm: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """(ln N_opt, loss there, reason for refusal or "") of an Akima spline per row of `loss_Bm`."""
    grid_G = np.linspace(log_N_m[0], log_N_m[-1], GRID)
    loss_GB = Akima1DInterpolator(log_N_m, loss_Bm.T)(grid_G)
    best_B = loss_GB.argmin(axis=0)
    edge_B = (best_B == 0) | (best_B == GRID - 1)
    inner_B, column_B = np.clip(best_B, 1, GRID - 2), np.arange(loss_GB.shape[1])
    left, middle, right = (loss_GB[inner_B + i, column_B] for i in (-1, 0, 1))
    bend = np.maximum(left - 2 * middle + right, 1e-300)
    shift_B = np.where(edge_B, 0.0, np.clip((left - right) / (2 * bend), -1, 1))
    x_B = grid_G[best_B] + shift_B * (grid_G[1] - grid_G[0])
    return x_B, loss_GB[best_B, column_B], [_refusal(False, edge) for edge in edge_B]


METHODS = {"isoflop_parabola": parabola_minimum, "isoflop_akima": akima_minimum}
NOTES = {"isoflop_parabola": "parabola in ln N over all sizes", "isoflop_akima": "Akima spline in ln N"}


def _refusal(concave: bool, outside: bool) -> str:
    if concave:
        return CONCAVE
    return "the minimum is at the edge of the sizes tried: add sizes on that side" if outside else ""


def isoflop(method: str, groups: list[Budget], log_loss_n: np.ndarray) -> Approach:
    """The minima of all budgets by one of METHODS, and the slopes a and b through them; refused where fewer than
    LEAST_BUDGETS have a minimum."""
    found = [_minimum(method, group, log_loss_n) for group in groups]
    optima = [each for each in found if isinstance(each, Optimum)]
    refused = [each for each in found if isinstance(each, RefusedBudget)]
    if len(optima) < LEAST_BUDGETS:
        reason = f"{len(optima)} budgets with a minimum inside the sizes tried; {LEAST_BUDGETS} are needed"
        return Approach(refused=reason, optima=optima, budgets_refused=refused)
    log_C = np.log([o.C for o in optima])
    a = float(slopes(log_C, np.log([[o.N for o in optima]]))[0])
    b = float(slopes(log_C, np.log([[o.D for o in optima]]))[0])
    return Approach(a, b, optima=optima, budgets_refused=refused, note=NOTES[method])


def _minimum(method: str, group: Budget, log_loss_n: np.ndarray) -> Optimum | RefusedBudget:
    """The minimum over N of one budget, or why it has none."""
    if len(group.log_N_m) < LEAST_SIZES:
        return RefusedBudget(group.C, f"{len(group.log_N_m)} sizes; {LEAST_SIZES} are needed")
    loss_m = np.exp(group.average_mn @ log_loss_n)
    if loss_m.argmin() in (0, len(loss_m) - 1):
        return RefusedBudget(group.C, _refusal(False, True))
    x_B, loss_B, reasons = METHODS[method](group.log_N_m, loss_m[None])
    if reasons[0]:
        return RefusedBudget(group.C, reasons[0])
    D = float(np.exp(np.interp(x_B[0], group.log_N_m, group.log_D_m)))
    return Optimum(group.C, float(np.exp(x_B[0])), D, float(loss_B[0]))


def isoflop_draws(method: str, groups: list[Budget], log_loss_Bn: np.ndarray) -> dict[str, np.ndarray]:
    """{"a", "b": (B,), "N", "D", "loss_nats": (B, g)} of losses drawn B times, for the g budgets that `isoflop` has
    accepted. A draw without a minimum is NaN; one whose minimum lies beyond the sizes tried is put at their edge."""
    log_N, log_D, loss = [], [], []
    for group in groups:
        x_B, loss_B, reasons = METHODS[method](group.log_N_m, np.exp((group.average_mn @ log_loss_Bn.T).T))
        concave_B = np.array([reason == CONCAVE for reason in reasons])
        x_B = np.where(concave_B, np.nan, np.clip(x_B, group.log_N_m[0], group.log_N_m[-1]))
        log_N.append(x_B)
        log_D.append(np.interp(x_B, group.log_N_m, group.log_D_m))
        loss.append(loss_B)
    log_C = np.log([group.C for group in groups])
    log_N_Bg, log_D_Bg = np.stack(log_N, axis=1), np.stack(log_D, axis=1)
    return {
        "a": slopes(log_C, log_N_Bg),
        "b": slopes(log_C, log_D_Bg),
        "N": np.exp(log_N_Bg),
        "D": np.exp(log_D_Bg),
        "loss_nats": np.stack(loss, axis=1),
    }
