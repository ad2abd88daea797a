"""The functional forms of a scaling law, each with analytic gradients of log loss.

N parameters, D tokens seen, C training FLOPs, S optimizer steps, U unique tokens, L loss in nats per token.
A form is fitted in its own unconstrained coordinates theta (logs of coefficients, exponents as they are),
centred at the geometric means of the data, where the problem is well conditioned.

Shape suffixes: B candidate parameter vectors (starts, bootstrap replicates), P parameters, K terms, n rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sweep.errors import UserError

EXPONENT_RANGE = (0.005, 3.0)
FLOOR_DEPTH = 7.0  # ln of how far under the least loss the floor E may go: e^-7, a thousandth
TERM_DEPTH = 14.0  # the same for any other term, at the centre of the data: a millionth
SCALE_RANGE = (-2.0, 12.0)  # ln of a decay constant counted in repetitions

Params = dict[str, Any]  # published name -> float, or an array over candidates


@dataclass(frozen=True)
class Point:
    """A form evaluated at theta_BP: log loss y_Bn, its gradient J_BPn, and each term's share of the loss."""

    theta_BP: np.ndarray
    y_Bn: np.ndarray
    J_BPn: np.ndarray
    share_BKn: np.ndarray


class Law:
    """What all forms share. `bind` fixes the data; `loss` is the published formula on published names."""

    name: str
    formula: str
    source: str
    variables: tuple[str, ...]
    params: tuple[str, ...]

    def loss(self, params: Mapping[str, Any], x: Mapping[str, Any]) -> np.ndarray:
        """Loss in nats for `params` (published names) at `x` (variable -> array); the two broadcast."""
        raise NotImplementedError

    def bind(self, x: Mapping[str, np.ndarray], loss_n: np.ndarray) -> "Bound":
        """The form on given rows. `x` maps each of `variables` to positive values of shape (n,)."""
        raise NotImplementedError


class Bound:
    """A form on given rows: everything that a fit needs of it."""

    theta_names: tuple[str, ...]
    low_P: np.ndarray
    high_P: np.ndarray

    def evaluate(self, theta_BP: np.ndarray) -> Point:
        raise NotImplementedError

    def starts(self, loss_n: np.ndarray, weight_n: np.ndarray) -> np.ndarray:
        """Candidate starts (B, P) from a coarse scan of what is nonlinear, the rest solved for."""
        raise NotImplementedError

    def to_params(self, theta_BP: np.ndarray) -> Params:
        """Published name -> values of shape (B,)."""
        raise NotImplementedError

    def from_params(self, params: Mapping[str, Any]) -> np.ndarray:
        """The inverse of `to_params` for one parameter set: shape (P,)."""
        raise NotImplementedError

    def curvature(self, point: Point, s_Bn: np.ndarray) -> np.ndarray:
        """sum_n s_n * second derivative of y_n: (B, P, P). By central differences of the exact gradient."""
        step = 1e-5
        columns = []
        for p in range(point.theta_BP.shape[1]):
            nudge_P = step * np.eye(point.theta_BP.shape[1])[p]
            up = self.evaluate(point.theta_BP + nudge_P).J_BPn
            down = self.evaluate(point.theta_BP - nudge_P).J_BPn
            columns.append(np.einsum("bpn,bn->bp", up - down, s_Bn) / (2 * step))
        H_BPP = np.stack(columns, axis=2)
        return (H_BPP + H_BPP.transpose(0, 2, 1)) / 2


# --- Sums of power laws: additive, power law, Kaplan steps, per ratio -------------------------------------


@dataclass(frozen=True)
class Term:
    """coefficient * product of x^(sign * exponent). With `as_scale` the published coefficient is x0 in
    (x0/x)^exponent instead of the factor itself."""

    coefficient: str
    powers: tuple[tuple[str, str, float], ...] = ()  # (variable, the exponent's name, sign)
    as_scale: bool = False


@dataclass(frozen=True)
class PowerSum(Law):
    """L = sum of terms. log L is a log-sum-exp of functions linear in theta."""

    name: str
    formula: str
    source: str
    terms: tuple[Term, ...]
    variables: tuple[str, ...] = field(init=False)
    exponents: tuple[str, ...] = field(init=False)
    params: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        powers = [power for term in self.terms for power in term.powers]
        exponents = tuple(dict.fromkeys(p[1] for p in powers))
        object.__setattr__(self, "variables", tuple(dict.fromkeys(p[0] for p in powers)))
        object.__setattr__(self, "exponents", exponents)
        object.__setattr__(self, "params", tuple(t.coefficient for t in self.terms) + exponents)

    def loss(self, params: Mapping[str, Any], x: Mapping[str, Any]) -> np.ndarray:
        total: Any = 0.0
        for term in self.terms:
            factor = np.asarray(params[term.coefficient], dtype=float)
            if term.as_scale:
                factor = factor ** np.asarray(params[term.powers[0][1]], dtype=float)
            for variable, exponent, sign in term.powers:
                factor = factor * np.asarray(x[variable], dtype=float) ** (sign * np.asarray(params[exponent]))
            total = total + factor
        return total

    def bind(self, x: Mapping[str, np.ndarray], loss_n: np.ndarray) -> "BoundPowerSum":
        return BoundPowerSum(self, x, loss_n)


class BoundPowerSum(Bound):
    """theta = (log of each coefficient at the data's centre, exponents)."""

    def __init__(self, law: PowerSum, x: Mapping[str, np.ndarray], loss_n: np.ndarray) -> None:
        self.law = law
        self.centre = {name: float(np.mean(np.log(x[name]))) for name in law.variables}
        K, E = len(law.terms), len(law.exponents)
        self.X_KPn = np.zeros((K, K + E, len(loss_n)))
        for k, term in enumerate(law.terms):
            self.X_KPn[k, k] = 1.0
            for variable, exponent, sign in term.powers:
                centred_n = np.log(x[variable]) - self.centre[variable]
                self.X_KPn[k, K + law.exponents.index(exponent)] += sign * centred_n
        self.XX_KnQ = np.einsum("kpn,kqn->knpq", self.X_KPn, self.X_KPn).reshape(K * len(loss_n), -1)
        self.theta_names = tuple(f"log {t.coefficient}" for t in law.terms) + law.exponents
        least, most = np.log(loss_n.min()), np.log(loss_n.max())
        depths = [TERM_DEPTH if term.powers else FLOOR_DEPTH for term in law.terms]
        self.low_P = np.array([least - depth for depth in depths] + [EXPONENT_RANGE[0]] * E)
        self.high_P = np.array([most + 3.0] * K + [EXPONENT_RANGE[1]] * E)

    def evaluate(self, theta_BP: np.ndarray) -> Point:
        K, P, n = self.X_KPn.shape
        t_BKn = np.einsum("bp,kpn->bkn", theta_BP, self.X_KPn, optimize=True)
        top_Bn = t_BKn.max(axis=1)
        share_BKn = np.exp(t_BKn - top_Bn[:, None])
        total_Bn = share_BKn.sum(axis=1)
        share_BKn /= total_Bn[:, None]
        J_BPn = np.zeros((len(theta_BP), P, n))
        J_BPn[:, :K] = share_BKn
        for k, p in zip(*np.nonzero(np.abs(self.X_KPn[:, K:]).sum(axis=2)), strict=True):
            J_BPn[:, K + p] += share_BKn[:, k] * self.X_KPn[k, K + p]
        return Point(theta_BP, top_Bn + np.log(total_Bn), J_BPn, share_BKn)

    def curvature(self, point: Point, s_Bn: np.ndarray) -> np.ndarray:
        B, P, _ = point.J_BPn.shape
        sp_BKn = point.share_BKn * s_Bn[:, None]
        outer_BPP = (sp_BKn.reshape(B, -1) @ self.XX_KnQ).reshape(B, P, P)
        return outer_BPP - (point.J_BPn * s_Bn[:, None]) @ point.J_BPn.transpose(0, 2, 1)

    def starts(self, loss_n: np.ndarray, weight_n: np.ndarray) -> np.ndarray:
        """Variable projection: for fixed exponents the loss is linear in the coefficients."""
        K, E = len(self.law.terms), len(self.law.exponents)
        per_axis = {1: 80, 2: 16}.get(E, 8)
        axis = np.geomspace(0.02, 1.6, per_axis)
        exponents_GE = np.stack(np.meshgrid(*[axis] * E, indexing="ij"), axis=-1).reshape(-1, E)
        basis_GKn = np.exp(np.einsum("ge,ken->gkn", exponents_GE, self.X_KPn[:, K:])) / loss_n
        normal_GKK = (basis_GKn * weight_n) @ basis_GKn.transpose(0, 2, 1)
        right_GK = basis_GKn @ weight_n
        least = np.exp(self.low_P[:K])
        coefficient_GK = _solve_above(normal_GKK, right_GK, least)
        return np.concatenate([np.log(coefficient_GK), exponents_GE], axis=1)

    def to_params(self, theta_BP: np.ndarray) -> Params:
        K = len(self.law.terms)
        exponents = {name: theta_BP[:, K + i] for i, name in enumerate(self.law.exponents)}
        params: Params = {}
        for k, term in enumerate(self.law.terms):
            log_B = theta_BP[:, k].copy()
            for variable, exponent, sign in term.powers:
                log_B -= sign * exponents[exponent] * self.centre[variable]
            if term.as_scale:
                log_B /= exponents[term.powers[0][1]]
            params[term.coefficient] = np.exp(log_B)
        return params | exponents

    def from_params(self, params: Mapping[str, Any]) -> np.ndarray:
        theta = []
        for term in self.law.terms:
            log = float(np.log(params[term.coefficient]))
            if term.as_scale:
                log *= params[term.powers[0][1]]
            log += sum(sign * params[name] * self.centre[variable] for variable, name, sign in term.powers)
            theta.append(log)
        return np.array(theta + [params[name] for name in self.law.exponents])


def _solve_above(normal_GKK: np.ndarray, right_GK: np.ndarray, least_K: np.ndarray) -> np.ndarray:
    """Least squares with coefficients at or above `least`: the negative ones are pinned and the rest solved
    again, at most K times. Good enough for a start."""
    G, K = right_GK.shape
    ridge = 1e-12 * np.trace(normal_GKK, axis1=1, axis2=2)[:, None, None] * np.eye(K)
    free_GK = np.ones((G, K), dtype=bool)
    x_GK = np.zeros((G, K))
    for _ in range(K):
        pair_GKK = free_GK[:, :, None] & free_GK[:, None, :]
        system = np.where(pair_GKK, normal_GKK + ridge, np.eye(K))
        pinned = np.where(free_GK, 0.0, least_K)
        right = np.where(free_GK, right_GK - np.einsum("gkl,gl->gk", normal_GKK, pinned), least_K)
        x_GK = np.linalg.solve(system, right[..., None])[..., 0]
        below = free_GK & (x_GK < least_K)
        if not below.any():
            break
        free_GK &= ~below
    return np.maximum(x_GK, least_K)


ADDITIVE = PowerSum(
    "additive",
    "L(N, D) = E + A N^-alpha + B D^-beta",
    "Hoffmann et al. 2022, arXiv 2203.15556, eq. 2",
    (Term("E"), Term("A", (("N", "alpha", -1.0),)), Term("B", (("D", "beta", -1.0),))),
)


def power_law(variable: str, floor: bool) -> PowerSum:
    """L(x) = E + (x0/x)^alpha in one of N, D, C; without the floor E is fixed at 0."""
    scale = Term(f"{variable}0", ((variable, "alpha", -1.0),), as_scale=True)
    return PowerSum(
        f"power_{variable}" + ("" if floor else "_no_floor"),
        f"L({variable}) = {'E + ' if floor else ''}({variable}0/{variable})^alpha",
        "Henighan et al. 2020, arXiv 2010.14701, eq. 1.1" if floor else "Kaplan et al. 2020, arXiv 2001.08361, eq. 1.1",
        (Term("E"), scale) if floor else (scale,),
    )


LAWS: dict[str, Law] = {
    law.name: law for law in [ADDITIVE, *(power_law(v, floor) for v in "NDC" for floor in (True, False))]
}


def law_named(name: str) -> Law:
    """The form called `name`. UserError lists the forms."""
    if name not in LAWS:
        raise UserError(f"--form {name}: no such form; there is {', '.join(LAWS)}")
    return LAWS[name]
