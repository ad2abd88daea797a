"""Forms that are sums of power laws: L = sum over terms of a coefficient times powers of the variables. For fixed
exponents such a form is linear in its coefficients.

Shape suffixes: B candidate parameter vectors, P parameters, K terms, E exponents, G points of the scan, n rows,
Q pairs of parameters.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sweep.fit.law import EXPONENT_RANGE, Bound, Law, Params, Point

FLOOR_DEPTH = 7.0  # ln of how far under the least loss the floor E may go: e^-7, a thousandth
TERM_DEPTH = 14.0  # ln of how far under the least loss any other term may go, at the data's centre: a millionth
MANY_ROWS = 20_000


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
        self.X_PKn = self.X_KPn.transpose(1, 0, 2).reshape(K + E, -1)
        self.by_exponent = list(zip(*np.nonzero(np.abs(self.X_KPn[:, K:]).sum(axis=2)), strict=True))
        # Each row's outer products, for all problems at once; too large to keep where there are very many rows.
        few = len(loss_n) <= MANY_ROWS
        self.XX_KnQ = np.einsum("kpn,kqn->knpq", self.X_KPn, self.X_KPn).reshape(K * len(loss_n), -1) if few else None
        self.theta_names = tuple(f"log {t.coefficient}" for t in law.terms) + law.exponents
        least, most = np.log(loss_n.min()), np.log(loss_n.max())
        depths = [TERM_DEPTH if term.powers else FLOOR_DEPTH for term in law.terms]
        self.low_P = np.array([least - depth for depth in depths] + [EXPONENT_RANGE[0]] * E)
        self.high_P = np.array([most + 3.0] * K + [EXPONENT_RANGE[1]] * E)

    def evaluate(self, theta_BP: np.ndarray) -> Point:
        K, P, n = self.X_KPn.shape
        t_BKn = (theta_BP @ self.X_PKn).reshape(len(theta_BP), K, n)
        top_Bn = t_BKn.max(axis=1)
        share_BKn = np.exp(t_BKn - top_Bn[:, None])
        total_Bn = share_BKn.sum(axis=1)
        share_BKn /= total_Bn[:, None]
        J_BPn = np.zeros((len(theta_BP), P, n))
        J_BPn[:, :K] = share_BKn
        for k, p in self.by_exponent:
            J_BPn[:, K + p] += share_BKn[:, k] * self.X_KPn[k, K + p]
        return Point(theta_BP, top_Bn + np.log(total_Bn), J_BPn, share_BKn)

    def curvature(self, point: Point, s_Bn: np.ndarray) -> np.ndarray:
        B, P, _ = point.J_BPn.shape
        sp_BKn = point.share_BKn * s_Bn[:, None]
        if self.XX_KnQ is not None:
            outer_BPP = (sp_BKn.reshape(B, -1) @ self.XX_KnQ).reshape(B, P, P)
        else:
            X_KnP = self.X_KPn.transpose(0, 2, 1)
            outer_BPP = np.stack([((self.X_KPn * sp_Kn[:, None]) @ X_KnP).sum(axis=0) for sp_Kn in sp_BKn])
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
        coefficient_GK = solve_above(normal_GKK, right_GK, least)
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


def solve_above(normal_GKK: np.ndarray, right_GK: np.ndarray, least_K: np.ndarray) -> np.ndarray:
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
