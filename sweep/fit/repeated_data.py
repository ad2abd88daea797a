"""The additive law where data is repeated (Muennighoff et al. 2023, arXiv 2305.16264): later epochs count less.

Shape suffixes: B candidate parameter vectors, P parameters, K terms, G points of the scan, S scales, n rows.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sweep.fit.law import Bound, Law, Params, Point
from sweep.fit.power_laws import ADDITIVE
from sweep.fit.power_sum import BoundPowerSum

SCALE_RANGE = (-2.0, 12.0)  # ln of a decay constant counted in repetitions


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
