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

from sweep.common.errors import UserError

EXPONENT_RANGE = (0.005, 3.0)
FLOOR_DEPTH = 7.0  # ln of how far under the least loss the floor E may go: e^-7, a thousandth
TERM_DEPTH = 14.0  # ln of how far under the least loss any other term may go, at the data's centre: a millionth
MANY_ROWS = 20_000
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


KAPLAN_STEPS = PowerSum(
    "kaplan_steps",
    "L(N, S) = (Nc/N)^alpha_N + (Sc/S)^alpha_S",
    "Kaplan et al. 2020, arXiv 2001.08361, eq. 1.6",
    (
        Term("Nc", (("N", "alpha_N", -1.0),), as_scale=True),
        Term("Sc", (("S", "alpha_S", -1.0),), as_scale=True),
    ),
)

PER_RATIO = PowerSum(
    "per_ratio",
    "L(C, M) = E + (A M^eta + B M^-eta) C^-eta, M = D/N",
    "Gadre et al. 2024, arXiv 2403.08540, eq. 4",
    (
        Term("E"),
        Term("A", (("M", "eta", 1.0), ("C", "eta", -1.0))),  # a and b in the paper; here exponents have these names
        Term("B", (("M", "eta", -1.0), ("C", "eta", -1.0))),
    ),
)


# --- Kaplan's joint law -------------------------------------------------------------------------------------


class KaplanJoint(Law):
    """One exponent is shared: L = (sum)^alpha_D, with terms (Nc/N)^(alpha_N/alpha_D) and Dc/D."""

    name = "kaplan_joint"
    formula = "L(N, D) = [(Nc/N)^(alpha_N/alpha_D) + Dc/D]^alpha_D"
    source = "Kaplan et al. 2020, arXiv 2001.08361, eq. 1.5"
    variables = ("N", "D")
    params = ("Nc", "Dc", "alpha_N", "alpha_D")

    def loss(self, params: Mapping[str, Any], x: Mapping[str, Any]) -> np.ndarray:
        alpha_N, alpha_D = np.asarray(params["alpha_N"]), np.asarray(params["alpha_D"])
        ratio = alpha_N / alpha_D
        return ((np.asarray(params["Nc"]) / x["N"]) ** ratio + np.asarray(params["Dc"]) / x["D"]) ** alpha_D

    def bind(self, x: Mapping[str, np.ndarray], loss_n: np.ndarray) -> "BoundKaplanJoint":
        return BoundKaplanJoint(x, loss_n)


class BoundKaplanJoint(Bound):
    """theta = (p, q, alpha_N, alpha_D): p and q are log loss at the data's centre if only N, only D, limited.

    log L = alpha_D * logsumexp((p - alpha_N n) / alpha_D, (q - alpha_D d) / alpha_D), n and d centred logs.
    """

    theta_names = ("log Nc", "log Dc", "alpha_N", "alpha_D")

    def __init__(self, x: Mapping[str, np.ndarray], loss_n: np.ndarray) -> None:
        self.n0, self.d0 = float(np.mean(np.log(x["N"]))), float(np.mean(np.log(x["D"])))
        self.n_n, self.d_n = np.log(x["N"]) - self.n0, np.log(x["D"]) - self.d0
        least, most = np.log(loss_n.min()), np.log(loss_n.max())
        self.low_P = np.array([least - 3, least - 3, EXPONENT_RANGE[0], EXPONENT_RANGE[0]])
        self.high_P = np.array([most + 3, most + 3, EXPONENT_RANGE[1], EXPONENT_RANGE[1]])

    def evaluate(self, theta_BP: np.ndarray) -> Point:
        p, q, alpha_N, alpha_D = (theta_BP[:, i : i + 1] for i in range(4))
        t_BKn = np.stack([(p - alpha_N * self.n_n) / alpha_D, q / alpha_D - self.d_n], axis=1)
        top_Bn = t_BKn.max(axis=1)
        share_BKn = np.exp(t_BKn - top_Bn[:, None])
        total_Bn = share_BKn.sum(axis=1)
        share_BKn /= total_Bn[:, None]
        inner_Bn = top_Bn + np.log(total_Bn)
        by_N, by_D = share_BKn[:, 0], share_BKn[:, 1]
        by_alpha_D = inner_Bn - by_N * t_BKn[:, 0] - by_D * (q / alpha_D)
        J_BPn = np.stack([by_N, by_D, -by_N * self.n_n, by_alpha_D], axis=1)
        return Point(theta_BP, alpha_D * inner_Bn, J_BPn, share_BKn)

    def starts(self, loss_n: np.ndarray, weight_n: np.ndarray) -> np.ndarray:
        """For fixed exponents, L^(1/alpha_D) is linear in Nc^(alpha_N/alpha_D) and Dc."""
        axis = np.geomspace(0.02, 1.0, 16)
        alpha_N, alpha_D = (m.reshape(-1, 1) for m in np.meshgrid(axis, axis, indexing="ij"))
        power_Gn = np.exp(-np.log(loss_n) / alpha_D)
        basis_GKn = np.stack([np.exp(-alpha_N / alpha_D * self.n_n), np.exp(-self.d_n) + 0 * alpha_N], axis=1)
        basis_GKn = basis_GKn * power_Gn[:, None]
        normal_GKK = (basis_GKn * weight_n) @ basis_GKn.transpose(0, 2, 1)
        floor = 1e-9 / np.maximum(basis_GKn.max(axis=(0, 2)), 1e-300)
        coefficient_GK = _solve_above(normal_GKK, basis_GKn @ weight_n, floor)
        log_GK = np.log(coefficient_GK) * alpha_D
        return np.concatenate([log_GK, alpha_N, alpha_D], axis=1)

    def to_params(self, theta_BP: np.ndarray) -> Params:
        p, q, alpha_N, alpha_D = theta_BP.T
        return {
            "Nc": np.exp(p / alpha_N + self.n0),
            "Dc": np.exp(q / alpha_D + self.d0),
            "alpha_N": alpha_N,
            "alpha_D": alpha_D,
        }

    def from_params(self, params: Mapping[str, Any]) -> np.ndarray:
        alpha_N, alpha_D = params["alpha_N"], params["alpha_D"]
        p = alpha_N * (np.log(params["Nc"]) - self.n0)
        q = alpha_D * (np.log(params["Dc"]) - self.d0)
        return np.array([p, q, alpha_N, alpha_D], dtype=float)


# --- Repeated data ------------------------------------------------------------------------------------------


class Repeated(Law):
    """Additive in effective tokens D' = U + U R_D (1 - exp(-R/R_D)), R = D/U - 1 the epochs past the first.

    With `excess_params` the same for N: U_N = min(N, the size that U tokens are compute-optimal for), and
    parameters beyond U_N lose value as repetitions do.
    """

    def __init__(self, excess_params: bool) -> None:
        self.excess_params = excess_params
        self.name = "repeated_both" if excess_params else "repeated"
        effective = "N'" if excess_params else "N"
        self.formula = f"L(N, D, U) = E + A {effective}^-alpha + B D'^-beta, D' = U + U R_D (1 - exp(-(D/U - 1)/R_D))"
        self.source = "Muennighoff et al. 2023, arXiv 2305.16264, eq. 5 and 6"
        self.variables = ("N", "D", "U")
        self.params = (*ADDITIVE.params, "R_D") + (("R_N",) if excess_params else ())

    def loss(self, params: Mapping[str, Any], x: Mapping[str, Any]) -> np.ndarray:
        A, B, alpha, beta = (np.asarray(params[name], dtype=float) for name in ("A", "B", "alpha", "beta"))
        N, D = np.asarray(x["N"], dtype=float), np.asarray(x["D"], dtype=float)
        U = np.minimum(D, x["U"])
        if self.excess_params:
            best_N = ((alpha * A) / (beta * B) * U**beta) ** (1 / alpha)
            U_N = np.minimum(N, best_N)
            N = _effective(U_N, N / U_N - 1, np.asarray(params["R_N"]))
        D = _effective(U, D / U - 1, np.asarray(params["R_D"]))
        return np.asarray(params["E"]) + A * N**-alpha + B * D**-beta

    def bind(self, x: Mapping[str, np.ndarray], loss_n: np.ndarray) -> "BoundRepeated":
        return BoundRepeated(self, x, loss_n)


def _effective(unique: np.ndarray, repeats: np.ndarray, R: np.ndarray) -> np.ndarray:
    return unique * (1 + R * -np.expm1(-repeats / R))


class BoundRepeated(Bound):
    """theta = (log E, log A, log B, alpha, beta, log R_D[, log R_N]), A and B at the data's centre."""

    def __init__(self, law: Repeated, x: Mapping[str, np.ndarray], loss_n: np.ndarray) -> None:
        self.law = law
        self.additive = BoundPowerSum(ADDITIVE, x, loss_n)
        self.n_n = np.log(x["N"]) - self.additive.centre["N"]
        self.u_n = np.log(np.minimum(x["D"], x["U"])) - self.additive.centre["D"]
        self.repeats_n = np.maximum(x["D"] / x["U"] - 1, 0.0)
        scales = 2 if law.excess_params else 1
        self.theta_names = self.additive.theta_names + ("log R_D", "log R_N")[:scales]
        self.low_P = np.append(self.additive.low_P, [SCALE_RANGE[0]] * scales)
        self.high_P = np.append(self.additive.high_P, [SCALE_RANGE[1]] * scales)

    def evaluate(self, theta_BP: np.ndarray) -> Point:
        e, a, b, alpha, beta, log_R_D = (theta_BP[:, i : i + 1] for i in range(6))
        gain_D, gain_D_by_R, _ = _gain(self.repeats_n, log_R_D)
        n_Bn, d_Bn = self.n_n + 0 * a, self.u_n + gain_D
        if self.law.excess_params:
            best_Bn = (np.log(alpha) + a - np.log(beta) - b + beta * self.u_n) / alpha
            excess_Bn = np.clip(self.n_n - best_Bn, 0.0, 50.0)  # e^50 times too large is as good as infinite
            gain_N, gain_N_by_R, gain_N_by_r = _gain(np.expm1(excess_Bn), theta_BP[:, 6:7])
            n_Bn = np.minimum(self.n_n, best_Bn) + gain_N
            # Moving the best size moves U_N and, the other way, the excess over it.
            by_best = np.where(excess_Bn > 0, 1 - gain_N_by_r * np.exp(excess_Bn), 0.0)
        t_BKn = np.stack([e + 0 * n_Bn, a - alpha * n_Bn, b - beta * d_Bn], axis=1)
        top_Bn = t_BKn.max(axis=1)
        share_BKn = np.exp(t_BKn - top_Bn[:, None])
        total_Bn = share_BKn.sum(axis=1)
        share_BKn /= total_Bn[:, None]
        by_E, by_A, by_B = share_BKn.transpose(1, 0, 2)
        rows = [by_E, by_A, by_B, -by_A * n_Bn, -by_B * d_Bn, -by_B * beta * gain_D_by_R]
        if self.law.excess_params:
            pull = -by_A * alpha * by_best
            rows[1] = by_A + pull / alpha
            rows[2] = by_B - pull / alpha
            rows[3] = rows[3] + pull * (1 / alpha - best_Bn) / alpha
            rows[4] = rows[4] + pull * (self.u_n - 1 / beta) / alpha
            rows.append(-by_A * alpha * gain_N_by_R)
        return Point(theta_BP, top_Bn + np.log(total_Bn), np.stack(rows, axis=1), share_BKn)

    def starts(self, loss_n: np.ndarray, weight_n: np.ndarray) -> np.ndarray:
        """The additive scan on tokens that all count, with a few decay constants each."""
        start_GP = self.additive.starts(loss_n, weight_n)
        scales = np.log([2.0, 5.0, 15.0, 60.0])
        R_RS = scales[:, None] + np.zeros((1, len(self.low_P) - 5))
        return np.concatenate([np.tile(start_GP, (len(R_RS), 1)), np.repeat(R_RS, len(start_GP), axis=0)], axis=1)

    def to_params(self, theta_BP: np.ndarray) -> Params:
        params = self.additive.to_params(theta_BP[:, :5]) | {"R_D": np.exp(theta_BP[:, 5])}
        return params | ({"R_N": np.exp(theta_BP[:, 6])} if self.law.excess_params else {})

    def from_params(self, params: Mapping[str, Any]) -> np.ndarray:
        scales = [np.log(params[name]) for name in self.law.params[5:]]
        return np.append(self.additive.from_params(params), scales)


def _gain(repeats: np.ndarray, log_R: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ln(1 + R (1 - exp(-repeats/R))), its derivative by ln R, and by repeats."""
    R = np.exp(log_R)
    left = np.exp(-repeats / R)
    inner = 1 - R * np.expm1(-repeats / R)
    return np.log(inner), (R * (1 - left) - repeats * left) / inner, left / inner


KAPLAN_JOINT, REPEATED, REPEATED_BOTH = KaplanJoint(), Repeated(False), Repeated(True)

LAWS: dict[str, Law] = {
    law.name: law
    for law in [
        ADDITIVE,
        *(power_law(variable, floor) for variable in "NDC" for floor in (True, False)),
        KAPLAN_JOINT,
        KAPLAN_STEPS,
        REPEATED,
        REPEATED_BOTH,
        PER_RATIO,
    ]
}


def law_named(name: str) -> Law:
    """The form called `name`. UserError lists the forms."""
    if name not in LAWS:
        raise UserError(f"--form {name}: no such form; there is {', '.join(LAWS)}")
    return LAWS[name]
