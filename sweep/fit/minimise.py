"""What a fit minimises, and the minimiser: many small robust problems at once, by damped Newton steps.

The objective is the *sum* over rows of weight * rho(residual). Hoffmann et al. 2022 take the residual in log
loss and rho Huber's with delta = 1e-3. The mean instead of the sum makes default tolerances stop early
(Besiroglu et al. 2024, arXiv 2404.10102).

Shape suffixes: B problems (starts, bootstrap replicates), P parameters, n rows.
"""

from dataclasses import dataclass, fields

import numpy as np

from sweep.common.errors import UserError
from sweep.fit.law import Bound

MAX_ITERATIONS = 200
ABSOLUTE_DELTA = 1e-6  # where absolute deviations are rounded off, so that they have a gradient
GIVE_UP_DAMPING = 1e9
EXACT = 1e-26  # an objective this small per row is rounding: the rows lie on the law

State = tuple[np.ndarray, ...]  # of `derivatives`: value, gradient, Hessian, its majoriser


@dataclass(frozen=True)
class Objective:
    """`space` is where the residual is taken ("log" of the loss, or the loss itself); rho is Huber's with
    `delta` (infinite: squares / 2); `unit` rescales the sum (absolute deviations are Huber / delta)."""

    name: str
    space: str
    delta: float
    unit: float = 1.0


def objective_named(name: str, delta: float = 1e-3) -> Objective:
    """`huber` and `absolute` on log loss, `squares` on loss in nats. UserError lists them."""
    if not (np.isfinite(delta) and delta > 0):
        raise UserError(f"--delta {delta}: must be a positive number; 1e-3 is the usual one")
    objectives = {
        "huber": Objective("huber", "log", delta),
        "absolute": Objective("absolute", "log", ABSOLUTE_DELTA, 1 / ABSOLUTE_DELTA),
        "squares": Objective("squares", "loss", np.inf),
    }
    if name not in objectives:
        raise UserError(f"--objective {name}: no such objective; there is {', '.join(objectives)}")
    return objectives[name]


@dataclass(frozen=True)
class Minimum:
    """theta_BP, the objective there, and how flat it is: `decrement_B` is the decrease that a safe step still
    promises, relative to the objective; `converged_B` says whether that is nothing."""

    theta_BP: np.ndarray
    value_B: np.ndarray
    decrement_B: np.ndarray
    converged_B: np.ndarray


def joined(one: Minimum, other: Minimum) -> Minimum:
    """Both batches as one."""
    return Minimum(*(np.concatenate([getattr(m, f.name) for m in (one, other)]) for f in fields(Minimum)))


def value(
    bound: Bound, log_loss_n: np.ndarray, weight_n: np.ndarray, objective: Objective, theta_BP: np.ndarray
) -> np.ndarray:
    """The objective, shape (B,). `log_loss_n` and `weight_n` are (n,) or (B, n)."""
    residual_Bn, _ = _residual(bound.evaluate(theta_BP).y_Bn, log_loss_n, objective)
    return _rho(residual_Bn, weight_n, objective)


def derivatives(
    bound: Bound, log_loss_n: np.ndarray, weight_n: np.ndarray, objective: Objective, theta_BP: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Value (B,), gradient (B, P), Hessian (B, P, P), and the Hessian's majoriser (B, P, P): what iteratively
    reweighted least squares would use, never indefinite."""
    point = bound.evaluate(theta_BP)
    residual_Bn, slope_Bn = _residual(point.y_Bn, log_loss_n, objective)
    size_Bn = np.abs(residual_Bn)
    irls_Bn = weight_n * np.minimum(1.0, objective.delta / np.maximum(size_Bn, 1e-300))
    pull_Bn = irls_Bn * residual_Bn * slope_Bn  # d objective / d y
    value_B = _rho(residual_Bn, weight_n, objective)
    gradient_BP = (point.J_BPn @ pull_Bn[:, :, None])[:, :, 0]
    J_BnP = point.J_BPn.transpose(0, 2, 1)
    inside_Bn = np.where(size_Bn <= objective.delta, weight_n, 0.0) * slope_Bn**2
    if objective.space == "loss":
        inside_Bn = inside_Bn + pull_Bn  # d2(e^y) = e^y (d2 y + dy dy^T)
    H_BPP = (point.J_BPn * inside_Bn[:, None]) @ J_BnP + bound.curvature(point, pull_Bn)
    M_BPP = (point.J_BPn * (irls_Bn * slope_Bn**2)[:, None]) @ J_BnP
    return value_B, gradient_BP, H_BPP, M_BPP


def _residual(y_Bn: np.ndarray, log_loss_n: np.ndarray, objective: Objective) -> tuple[np.ndarray, np.ndarray]:
    """The residual, and its derivative by y = log of the predicted loss."""
    if objective.space == "log":
        return y_Bn - log_loss_n, np.ones_like(y_Bn)
    return np.exp(y_Bn) - np.exp(log_loss_n), np.exp(y_Bn)


def _rho(residual_Bn: np.ndarray, weight_n: np.ndarray, objective: Objective) -> np.ndarray:
    size_Bn = np.abs(residual_Bn)
    inner_Bn = np.minimum(size_Bn, objective.delta)
    return objective.unit * np.sum(weight_n * inner_Bn * (size_Bn - inner_Bn / 2), axis=-1)


def minimise(
    bound: Bound,
    log_loss_n: np.ndarray,
    weight_n: np.ndarray,
    objective: Objective,
    theta_BP: np.ndarray,
    tolerance: float = 1e-10,
    max_iterations: int = MAX_ITERATIONS,
) -> Minimum:
    """Minimise B problems from B starts, inside the bound's box. `log_loss_n` and `weight_n` are (n,)
    where all problems share them, or (B, n).

    Each step solves (H + damping * M) step = -g, H the Hessian and M its majoriser: with little damping
    Newton's step, with much a shortened reweighted-least-squares step, which always goes down. Problems that have
    converged leave the batch.
    """
    B, unit = len(theta_BP), objective.unit
    theta_BP = np.clip(theta_BP, bound.low_P, bound.high_P)
    out_theta_BP = theta_BP.copy()
    out_value_B, out_decrement_B = np.empty(B), np.full(B, np.inf)
    index_B, damping_B = np.arange(B), np.full(B, 1e-2)
    nothing = unit * EXACT * np.max(np.sum(np.atleast_2d(weight_n), axis=1))
    state: State = derivatives(bound, log_loss_n, weight_n, objective, theta_BP)
    for _ in range(max_iterations):
        value_B, g_BP, _, M_BPP = state
        free_BP = ~((theta_BP <= bound.low_P) & (g_BP > 0) | (theta_BP >= bound.high_P) & (g_BP < 0))
        safe_BP = _solve(M_BPP, np.zeros(len(g_BP)), M_BPP, g_BP, free_BP)
        decrement_B = unit * -np.sum(safe_BP * g_BP * free_BP, axis=1) / 2
        out_theta_BP[index_B], out_value_B[index_B] = theta_BP, value_B
        out_decrement_B[index_B] = np.where(value_B > nothing, decrement_B / np.maximum(value_B, nothing), 0.0)
        busy_B = (decrement_B > tolerance * value_B) & (value_B > nothing) & (damping_B < GIVE_UP_DAMPING)
        if not busy_B.any():
            break
        if not busy_B.all():
            theta_BP, free_BP, damping_B, index_B = (part[busy_B] for part in (theta_BP, free_BP, damping_B, index_B))
            log_loss_n, weight_n = (part[busy_B] if part.ndim == 2 else part for part in (log_loss_n, weight_n))
            state = tuple(part[busy_B] for part in state)
        problem = (log_loss_n, weight_n, objective)
        theta_BP, state, damping_B = _stepped(bound, *problem, theta_BP, state, damping_B, free_BP)
    return Minimum(out_theta_BP, out_value_B, out_decrement_B, out_decrement_B <= tolerance)


def _stepped(
    bound: Bound,
    log_loss_n: np.ndarray,
    weight_n: np.ndarray,
    objective: Objective,
    theta_BP: np.ndarray,
    state: State,
    damping_B: np.ndarray,
    free_BP: np.ndarray,
) -> tuple[np.ndarray, State, np.ndarray]:
    """theta, state and damping after a step of each problem, which is taken only if the objective falls by enough of
    what the gradient promises; else the next one is damped more."""
    value_B, g_BP, H_BPP, M_BPP = state
    step_BP = _solve(H_BPP, damping_B, M_BPP, g_BP, free_BP)
    trial_BP = np.clip(theta_BP + step_BP, bound.low_P, bound.high_P)
    promised_B = -objective.unit * np.sum(g_BP * (trial_BP - theta_BP), axis=1)
    trial = derivatives(bound, log_loss_n, weight_n, objective, trial_BP)
    better_B = (promised_B > 0) & (value_B - trial[0] > 1e-4 * promised_B)
    state = tuple(
        np.where(better_B.reshape((-1,) + (1,) * (new.ndim - 1)), new, old)
        for new, old in zip(trial, state, strict=True)
    )
    damping_B = np.where(better_B, np.maximum(damping_B / 6, 1e-12), np.maximum(damping_B, 1e-6) * 8)
    return np.where(better_B[:, None], trial_BP, theta_BP), state, damping_B


def _solve(
    H_BPP: np.ndarray, damping_B: np.ndarray, M_BPP: np.ndarray, g_BP: np.ndarray, free_BP: np.ndarray
) -> np.ndarray:
    """-(H + damping M)^-1 g over the free parameters, zero for the others."""
    P = g_BP.shape[1]
    diagonal_BP = np.maximum(np.einsum("bpp->bp", M_BPP), 1e-30)
    scale_BP = np.where(free_BP, 1 / np.sqrt(diagonal_BP), 0.0)
    system_BPP = (H_BPP + damping_B[:, None, None] * M_BPP) * scale_BP[:, :, None] * scale_BP[:, None, :]
    system_BPP += np.where(free_BP, 1e-11 * (1 + damping_B)[:, None], 1.0)[:, :, None] * np.eye(P)
    try:
        step_BP = np.linalg.solve(system_BPP, -(g_BP * scale_BP)[..., None])[..., 0]
    except np.linalg.LinAlgError:  # one exactly singular system stops the whole batch: take the safe direction
        step_BP = -(g_BP * scale_BP)
    return step_BP * scale_BP
