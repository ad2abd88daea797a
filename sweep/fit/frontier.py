"""The compute-optimal frontier of a fitted law: the model size N_opt and the tokens D_opt that give the least loss for
C FLOPs. Locally N_opt ~ C^a and D_opt ~ C^b. Also the types in which all three approaches to the frontier
(`approaches.py`) give their answers.

Shape suffixes: n rows, B bootstrap replicates.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sweep.common.artefacts import Number
from sweep.common.errors import UserError
from sweep.fit.bootstrap import Interval
from sweep.fit.law import Law

MOST_FLOPS = 1e40  # a loss that takes more is out of reach
OVERFLOWS = np.errstate(over="ignore", divide="ignore", invalid="ignore")  # a replicate may lie anywhere: not finite


@dataclass(frozen=True)
class Optimum:
    """The compute-optimal model for C FLOPs: N parameters, D tokens, and its loss in nats per token. The 90% intervals
    are None where there are no bootstrap replicates."""

    C: Number
    N: Number
    D: Number
    loss_nats: Number
    N_interval: Interval | None = None
    D_interval: Interval | None = None
    loss_nats_interval: Interval | None = None


@dataclass(frozen=True)
class ExponentIntervals:
    """90% intervals of the exponents of N_opt ~ C^a and D_opt ~ C^b."""

    a: Interval
    b: Interval


@dataclass(frozen=True)
class RefusedBudget:
    """A compute budget of C FLOPs at which isoFLOP found no minimum, and why."""

    C: Number
    reason: str


@dataclass(frozen=True)
class Approach:
    """The frontier as one approach finds it. Where the approach is refused as a whole, `refused` says why, and a and b
    are None; the optima that it found all the same stand beside the reason."""

    a: float | None = None
    b: float | None = None
    intervals: ExponentIntervals | None = None
    optima: list[Optimum] = field(default_factory=list)
    refused: str = ""
    budgets_refused: list[RefusedBudget] = field(default_factory=list)
    note: str = ""


# --- FLOPs as a function of N and D ------------------------------------------------------------------------


@dataclass(frozen=True)
class FlopsModel:
    """C = k N^gamma D, measured on the rows: attention and logits make gamma differ from 1 and k from 6."""

    k: float
    gamma: float
    worst_relative_error: float = 0.0

    def flops(self, N: Any, D: Any) -> Any:
        return self.k * N**self.gamma * D

    def tokens(self, C: Any, N: Any) -> Any:
        return C / (self.k * N**self.gamma)


def measure_flops(N_n: np.ndarray, D_n: np.ndarray, C_n: np.ndarray) -> FlopsModel:
    """Least squares of ln(C/D) on ln N. Where all rows have one size, gamma is 1."""
    y_n, x_n = np.log(C_n / D_n), np.log(N_n)
    gamma = 1.0
    if np.ptp(x_n) > 1e-9:
        gamma = float(np.cov(x_n, y_n, bias=True)[0, 1] / np.var(x_n))
    log_k = float(np.mean(y_n - gamma * x_n))
    worst = float(np.max(np.abs(np.expm1(log_k + gamma * x_n - y_n))))
    return FlopsModel(float(np.exp(log_k)), gamma, worst)


# --- The optimum along C = k N^gamma D ---------------------------------------------------------------------


def exponents(law: Law, params: Mapping[str, Any], flops: FlopsModel) -> tuple[Any, Any]:
    """(a, b) of N_opt ~ C^a and D_opt ~ C^b. For the additive form along C = k N^gamma D the optimum satisfies
    alpha A N^-alpha = gamma beta B D^-beta, hence a = beta / (alpha + gamma beta) and b = alpha / (alpha + gamma beta)
    (Hoffmann et al. 2022, eq. 4, has gamma = 1). For other forms the local slope at C = 1e20 FLOPs, by differences.
    Parameters may be arrays (B,)."""
    if law.name == "additive":
        alpha, beta = params["alpha"], params["beta"]
        return beta / (alpha + flops.gamma * beta), alpha / (alpha + flops.gamma * beta)
    (N1, D1, _), (N2, D2, _) = (optimum(law, params, flops, C) for C in (1e20 / 1.5, 1e20 * 1.5))
    return np.log(N2 / N1) / np.log(2.25), np.log(D2 / D1) / np.log(2.25)


@OVERFLOWS
def optimum(law: Law, params: Mapping[str, Any], flops: FlopsModel, C: Any) -> tuple[Any, Any, Any]:
    """(N_opt, D_opt, loss in nats) for C FLOPs on data that is not repeated. C and the parameters may be arrays.
    UserError where the form does not depend on N and D, or has no minimum along C."""
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
    """N with the least loss at C FLOPs: a scan of ln N, then a ternary search around the best."""

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


def least_compute(law: Law, params: Mapping[str, Any], flops: FlopsModel, loss_nats: float) -> np.ndarray:
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


def slopes(x_g: np.ndarray, y_Bg: np.ndarray) -> np.ndarray:
    """The least-squares slope of each row of `y_Bg` on `x_g`, shape (B,)."""
    centred_g = x_g - x_g.mean()
    return y_Bg @ centred_g / (centred_g @ centred_g)
