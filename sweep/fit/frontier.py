"""The compute-optimal frontier: which model size N_opt and how many tokens D_opt for C FLOPs; N_opt ~ C^a, D_opt ~
C^b.

A *road* is a way to find it: approach 1, 2 or 3 of Hoffmann et al. 2022 (arXiv 2203.15556).
1. envelope: the least loss of all training curves at each C, from undecayed (constant learning rate) points;
2. isoFLOP: at each budget the minimum over N, by a parabola in log N or by an Akima spline (Porian et al. 2024, arXiv
   2406.19146);
3. parametric: the fitted form minimised along C = k N^gamma D (k = 6, gamma = 1 where C = 6ND).
A part that the data cannot give is refused with its reason, never filled in.

Shape suffixes: n rows, m sizes of one budget, F curves, G grid points, B replicates of the losses.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.interpolate import Akima1DInterpolator
from scipy.sparse import csr_array

from sweep.common.errors import UserError
from sweep.fit.laws import Law

SAME_BUDGET = 0.15  # rows whose FLOPs differ by less than this (ln) from the next belong to one budget
LEAST_SIZES = 4
LEAST_BUDGETS = 3
LEAST_PASSINGS = 3
GRID = 600
MOST_FLOPS = 1e40  # a loss that takes more is out of reach
OVERFLOWS = np.errstate(over="ignore", divide="ignore", invalid="ignore")  # a replicate may lie anywhere: not finite


# --- FLOPs as a function of N and D ------------------------------------------------------------------------


@dataclass(frozen=True)
class FlopsModel:
    """C = k * N^gamma * D, measured on the rows: attention and logits make gamma differ from 1."""

    k: float
    gamma: float
    worst_relative_error: float = 0.0

    def flops(self, N: Any, D: Any) -> Any:
        return self.k * N**self.gamma * D

    def tokens(self, C: Any, N: Any) -> Any:
        return C / (self.k * N**self.gamma)


def measure_flops(N_n: np.ndarray, D_n: np.ndarray, C_n: np.ndarray) -> FlopsModel:
    """Least squares of ln(C/D) on ln N. With one size gamma is 1."""
    y_n, x_n = np.log(C_n / D_n), np.log(N_n)
    gamma = 1.0
    if np.ptp(x_n) > 1e-9:
        gamma = float(np.cov(x_n, y_n, bias=True)[0, 1] / np.var(x_n))
    log_k = float(np.mean(y_n - gamma * x_n))
    worst = float(np.max(np.abs(np.expm1(log_k + gamma * x_n - y_n))))
    return FlopsModel(float(np.exp(log_k)), gamma, worst)


# --- Road 3: parametric ------------------------------------------------------------------------


def exponents(law: Law, params: Mapping[str, Any], flops: FlopsModel) -> tuple[Any, Any]:
    """(a, b) of N_opt ~ C^a and D_opt ~ C^b. For the additive form along C = k N^gamma D, from
    alpha A N^-alpha = gamma beta B D^-beta: a = beta / (alpha + gamma beta), b = alpha / (alpha + gamma
    beta).
    Other forms: the local slope at C = 1e20 FLOPs, by differences. Parameters may be arrays (B,)."""
    if law.name == "additive":
        alpha, beta = params["alpha"], params["beta"]
        return beta / (alpha + flops.gamma * beta), alpha / (alpha + flops.gamma * beta)
    (N1, D1, _), (N2, D2, _) = (optimum(law, params, flops, C) for C in (1e20 / 1.5, 1e20 * 1.5))
    return np.log(N2 / N1) / np.log(2.25), np.log(D2 / D1) / np.log(2.25)


@OVERFLOWS
def optimum(law: Law, params: Mapping[str, Any], flops: FlopsModel, C: Any) -> tuple[Any, Any, Any]:
    """(N_opt, D_opt, loss in nats) for C FLOPs on data that is not repeated. C and the parameters may be arrays.
    UserError where the form says nothing of N and D, or has no minimum along C."""
    if not {"N", "D"} <= set(law.variables):
        raise UserError(f"--form {law.name}: it has no N and D, hence no compute-optimal size; use additive")
    C = np.asarray(C, dtype=float)
    if law.name == "additive":
        A, B, alpha, beta = (np.asarray(params[name]) for name in ("A", "B", "alpha", "beta"))
        log_ratio = np.log(alpha * A / (flops.gamma * beta * B)) + beta * np.log(C / flops.k)
        N = np.exp(log_ratio / (alpha + flops.gamma * beta))
    else:
        N = _minimise_along(law, params, flops, C)
    D = flops.tokens(C, N)
    return N, D, law.loss(params, {"N": N, "D": D, "U": D})


def _minimise_along(law: Law, params: Mapping[str, Any], flops: FlopsModel, C: np.ndarray) -> np.ndarray:
    """N with the least loss at C FLOPs: a scan of ln N, then ternary search around the best."""

    def loss(log_N: np.ndarray) -> np.ndarray:
        N = np.exp(log_N)
        D = flops.tokens(C, N)
        return law.loss(params, {"N": N, "D": D, "U": D})

    grid = np.linspace(0.0, np.log(1e16), 161)
    losses = np.stack([loss(np.asarray(g)) for g in grid])
    best = losses.argmin(axis=0)
    if np.any((best == 0) | (best == len(grid) - 1)):
        raise UserError(f"--form {law.name}: no best model size along a compute budget of {np.max(C):.3g} FLOPs")
    low, high = grid[best - 1], grid[best + 1]
    for _ in range(60):
        third = (high - low) / 3
        left_better = loss(low + third) < loss(high - third)
        low, high = np.where(left_better, low, low + third), np.where(left_better, high - third, high)
    return np.exp((low + high) / 2)


def cheapest(law: Law, params: Mapping[str, Any], flops: FlopsModel, loss_nats: float) -> np.ndarray:
    """The least FLOPs that reach `loss_nats` on the frontier: infinite where the floor is above it, 0 where the law
    is below it already at 1 FLOP. Parameters may be arrays (B,)."""
    shape = np.broadcast_shapes(*(np.shape(value) for value in params.values()))

    def frontier_loss(log_C: np.ndarray) -> np.ndarray:
        return optimum(law, params, flops, np.exp(log_C))[2]

    low, high = np.zeros(shape), np.full(shape, np.log(MOST_FLOPS))
    unreachable, trivial = frontier_loss(high) >= loss_nats, frontier_loss(low) <= loss_nats
    for _ in range(80):
        middle = (low + high) / 2
        above = frontier_loss(middle) > loss_nats
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return np.where(unreachable, np.inf, np.where(trivial, 0.0, np.exp((low + high) / 2)))


# --- Road 2: isoFLOP ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Budget:
    """The rows of one compute budget, one point per distinct size: replicates are averaged in log loss."""

    C: float
    log_N_m: np.ndarray
    log_D_m: np.ndarray
    average_mn: csr_array  # (m, n), sparse: maps the log losses of all rows to one per size


def budgets(N_n: np.ndarray, D_n: np.ndarray, C_n: np.ndarray) -> list[Budget]:
    """Rows grouped by nearly equal FLOPs, cheapest first; groups of a single size are left out."""
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


CONCAVE = "the parabola opens downwards: no minimum over N"


def _refusal(concave: bool, outside: bool) -> str:
    if concave:
        return CONCAVE
    return "the minimum is at the edge of the sizes tried: add sizes on that side" if outside else ""


ISOFLOP_METHODS = {"isoflop_parabola": parabola_minimum, "isoflop_akima": akima_minimum}


def isoflop_road(method: str, groups: list[Budget], log_loss_n: np.ndarray) -> dict[str, Any]:
    """{"a", "b", "optima", "refused", "note"}, or {"refused": reason} with what was found beside it."""
    optima, refused = [], []
    for group in groups:
        if len(group.log_N_m) < LEAST_SIZES:
            refused.append({"C": group.C, "reason": f"{len(group.log_N_m)} sizes; {LEAST_SIZES} are needed"})
            continue
        loss_m = np.exp(group.average_mn @ log_loss_n)
        if loss_m.argmin() in (0, len(loss_m) - 1):
            refused.append({"C": group.C, "reason": _refusal(False, True)})
            continue
        x_B, loss_B, reasons = ISOFLOP_METHODS[method](group.log_N_m, loss_m[None])
        if reasons[0]:
            refused.append({"C": group.C, "reason": reasons[0]})
            continue
        D = float(np.exp(np.interp(x_B[0], group.log_N_m, group.log_D_m)))
        optima.append({"C": group.C, "N": float(np.exp(x_B[0])), "D": D, "loss_nats": float(loss_B[0])})
    if len(optima) < LEAST_BUDGETS:
        reason = f"{len(optima)} budgets with a minimum inside the sizes tried; {LEAST_BUDGETS} are needed"
        return {"refused": reason, "optima": optima, "budgets_refused": refused}
    log_C = np.log([o["C"] for o in optima])
    a, b = (float(_slopes(log_C, np.log([[o[name] for o in optima]]))[0]) for name in ("N", "D"))
    note = "parabola in ln N over all sizes" if method == "isoflop_parabola" else "Akima spline in ln N"
    return {"a": a, "b": b, "intervals": None, "optima": optima, "refused": refused, "note": note}


def isoflop_draws(method: str, groups: list[Budget], log_loss_Bn: np.ndarray) -> dict[str, np.ndarray]:
    """{"a", "b": (B,), "N", "D", "loss_nats": (B, budgets)} of losses drawn B times, for the budgets that a road
    has accepted. A draw without a minimum is NaN, one beyond the sizes tried is put at their edge."""
    log_N, log_D, loss = [], [], []
    for group in groups:
        x_B, loss_B, reasons = ISOFLOP_METHODS[method](group.log_N_m, np.exp((group.average_mn @ log_loss_Bn.T).T))
        concave_B = np.array([reason == CONCAVE for reason in reasons])
        x_B = np.where(concave_B, np.nan, np.clip(x_B, group.log_N_m[0], group.log_N_m[-1]))
        log_N.append(x_B)
        log_D.append(np.interp(x_B, group.log_N_m, group.log_D_m))
        loss.append(loss_B)
    log_C = np.log([group.C for group in groups])
    log_N_Bg, log_D_Bg = np.stack(log_N, axis=1), np.stack(log_D, axis=1)
    return {
        "a": _slopes(log_C, log_N_Bg),
        "b": _slopes(log_C, log_D_Bg),
        "N": np.exp(log_N_Bg),
        "D": np.exp(log_D_Bg),
        "loss_nats": np.stack(loss, axis=1),
    }


def _slopes(x_g: np.ndarray, y_Bg: np.ndarray) -> np.ndarray:
    centred_g = x_g - x_g.mean()
    return y_Bg @ centred_g / (centred_g @ centred_g)


# --- Road 1: envelope ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curves:
    """The undecayed curves of F families on a common grid of compute: log loss, NaN where a curve has not
    been. `tokens` likewise in ln D."""

    log_C_G: np.ndarray
    log_N_F: np.ndarray
    family_F: np.ndarray
    log_loss_FG: np.ndarray
    log_D_FG: np.ndarray


def stable_curves(curves: Any, size_of_family: Mapping[Any, float], points: int = 200) -> Curves:
    """From a `curves` table (pandas): points of the stable phase at the full learning rate, validated; the
    curve that the budgets of a family share is taken once. UserError says why there is nothing to take."""
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


def envelope_road(curves: Curves) -> dict[str, Any]:
    """The least undecayed loss at each C. Where the best curve passes from one size to another, both are equally
    good and the size between them (geometric mean) is N_opt; (a, b) are the slopes through these points."""
    log_C, log_N, log_D, log_loss = passings(curves, curves.log_loss_FG)
    if len(log_C) < LEAST_PASSINGS:
        return {"refused": f"the envelope passes from size to size {len(log_C)} times; {LEAST_PASSINGS} are needed"}
    optima = [
        dict(zip(("C", "N", "D", "loss_nats"), map(float, np.exp(point)), strict=True))
        for point in zip(log_C, log_N, log_D, log_loss, strict=True)
    ]
    note = "undecayed losses: compare exponents, not levels; its intervals know nothing of the grid of sizes"
    return {
        "a": float(_slopes(log_C, log_N[None])[0]),
        "b": float(_slopes(log_C, log_D[None])[0]),
        "intervals": None,
        "optima": optima,
        "refused": [],
        "note": note,
    }


def passings(curves: Curves, log_loss_FG: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(ln C, ln N, ln D, log loss) where the best curve changes to another size while both curves are there: a
    curve that begins or ends makes a change that says nothing."""
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
    """{"a", "b": (B,)} of curves drawn B times; NaN where the envelope has fewer than two passings."""
    slopes = []
    for log_loss_FG in log_loss_BFG:
        log_C, log_N, log_D, _ = passings(curves, log_loss_FG)
        enough = len(log_C) >= 2
        slopes.append(_slopes(log_C, np.stack([log_N, log_D])) if enough else np.full(2, np.nan))
    return {"a": np.array(slopes)[:, 0], "b": np.array(slopes)[:, 1]}
