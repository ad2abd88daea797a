"""Kaplan's joint law of N and D (Kaplan et al. 2020, arXiv 2001.08361, eq. 1.5).

Shape suffixes: B candidate parameter vectors, P parameters, K terms, G points of the scan, n rows.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sweep.fit.law import EXPONENT_RANGE, Bound, Law, Params, Point
from sweep.fit.power_sum import solve_above


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
        coefficient_GK = solve_above(normal_GKK, basis_GKn @ weight_n, floor)
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
