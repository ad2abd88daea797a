"""What a functional form of a scaling law offers to a fit: the published formula, and log loss with analytic gradients.

N parameters, D tokens seen, C training FLOPs, S optimizer steps, U unique tokens, L loss in nats per token.
A form is fitted in its own unconstrained coordinates theta (logs of coefficients, exponents as they are),
centred at the geometric means of the data, where the problem is well conditioned.

Shape suffixes: B candidate parameter vectors (starts, bootstrap replicates), P parameters, K terms, n rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

EXPONENT_RANGE = (0.005, 3.0)

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
