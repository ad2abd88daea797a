"""The parameters of a law on some rows: the best of several polished starts, with a certificate.

Shape suffixes: B starts, P parameters, n rows.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
from pydantic import AliasChoices, Field

from sweep.common.artefacts import Number
from sweep.fit.law import Bound, Law
from sweep.fit.minimise import Objective, derivatives, joined, minimise, value
from sweep.fit.rows import FitError

STARTS = 12
ROUGH_ITERATIONS = 20  # then the worse half of the starts is given up: stragglers cost more than they can tell
MORE_STARTS = 60  # where those polished do not all agree
SCAN_ROWS = 4000
FULL_STARTS = 3  # polished on all rows, where there are more than SCAN_ROWS
SAME_OPTIMUM = 1e-6  # relative difference of objectives that counts as the same optimum
WEAK_CONDITION = 1e3


@dataclass(frozen=True)
class Certificate:
    """How sure the search is of its optimum.

    `gradient_norm` is in units of the objective per standardised parameter, `condition_number` that of the
    standardised least-squares problem, `bounds_hit` the coordinates that lie on a bound of the search. The starts
    counted are those polished to the end, of which `starts_agreeing` ended at the best optimum. `without_effect`:
    the variables that the losses do not fall with (`identifiability.py`)."""

    gradient_norm: Number
    condition_number: Number
    bounds_hit: list[str]
    starts: int
    starts_agreeing: int
    starts_stopped_early: Annotated[
        int, Field(validation_alias=AliasChoices("starts_stopped_early", "starts_given_up"))
    ]
    converged: bool
    verdict: str
    without_effect: list[str] = field(default_factory=list)

    @property
    def at_bounds(self) -> list[str]:
        """The parameters on a bound of the search, by published name."""
        return [name.removeprefix("log ") for name in self.bounds_hit]

    @property
    def pinned(self) -> list[str]:
        """Those parameters without the floor: a floor at its bound is as good as zero, which it cannot be below.
        Replicates pile up at the others, and look sure of what the data leave open."""
        return [name for name in self.at_bounds if name != "E"]


@dataclass(frozen=True)
class Solution:
    """The best parameters found for `law` on some rows, and the certificate of the search."""

    law: Law
    bound: Bound
    objective: Objective
    weight_n: np.ndarray
    theta_P: np.ndarray
    value: float
    certificate: Certificate

    @property
    def params(self) -> dict[str, float]:
        return {name: float(v[0]) for name, v in self.bound.to_params(self.theta_P[None]).items()}


def solve(
    law: Law,
    x: Mapping[str, np.ndarray],
    loss_n: np.ndarray,
    objective: Objective,
    weight_n: np.ndarray | None = None,
    starts: int = STARTS,
) -> Solution:
    """Fit `law` to losses (nats, shape (n,)) at `x` (variable -> (n,)): scan, polish `starts` of the scan (more
    where they end apart), certify. FitError where the rows cannot determine the parameters at all."""
    refuse_degenerate(law, x, loss_n)
    weight_n = np.ones(len(loss_n)) if weight_n is None else weight_n
    some = _some_rows(len(loss_n))
    bound = law.bind({name: x[name][some] for name in law.variables}, loss_n[some])
    problem = (np.log(loss_n[some]), weight_n[some], objective)
    scan_BP = bound.starts(loss_n[some], weight_n[some])
    scan_B = value(bound, *problem, scan_BP)
    rough = minimise(bound, *problem, scan_BP[_spread_out(scan_B, starts)], max_iterations=ROUGH_ITERATIONS)
    order = np.argsort(rough.value_B, kind="stable")
    ahead_BP, behind_BP = np.split(rough.theta_BP[order], [(starts + 1) // 2])
    if len(some) < len(loss_n):
        whole = law.bind(x, loss_n)
        ahead_BP, behind_BP = _carried_over(bound, whole, ahead_BP[:FULL_STARTS]), behind_BP[:0]
        bound, problem = whole, (np.log(loss_n), weight_n, objective)
    found = minimise(bound, *problem, ahead_BP)
    if not _agreeing(found.value_B, objective).all() and len(some) == len(loss_n):
        more_BP = np.concatenate([behind_BP, scan_BP[_spread_out(scan_B, MORE_STARTS)]])
        found, behind_BP = joined(found, minimise(bound, *problem, more_BP)), behind_BP[:0]
    best = int(found.value_B.argmin())
    theta_P = found.theta_BP[best]
    gradient_norm, condition_number, bounds_hit = certify(bound, *problem, theta_P)
    agreeing, converged = int(_agreeing(found.value_B, objective).sum()), bool(found.converged_B[best])
    certificate = Certificate(
        gradient_norm=gradient_norm,
        condition_number=condition_number,
        bounds_hit=bounds_hit,
        starts=len(found.value_B),
        starts_agreeing=agreeing,
        starts_stopped_early=len(behind_BP),
        converged=converged,
        verdict=_verdict(converged and agreeing >= 2, bounds_hit, condition_number),
    )
    return Solution(law, bound, objective, weight_n, theta_P, float(found.value_B[best]), certificate)


def _carried_over(some: Bound, whole: Bound, theta_BP: np.ndarray) -> np.ndarray:
    """Parameters of the form on some rows, in its coordinates on all rows (which are centred elsewhere)."""
    params = some.to_params(theta_BP)
    each = [{name: float(values_B[b]) for name, values_B in params.items()} for b in range(len(theta_BP))]
    return np.stack([whole.from_params(one) for one in each])


def _agreeing(value_B: np.ndarray, objective: Objective) -> np.ndarray:
    """Which ends are the best one."""
    least = value_B.min()
    return value_B - least <= SAME_OPTIMUM * max(least, objective.unit * 1e-20)


def _some_rows(n: int) -> np.ndarray:
    """The rows that the scan and the first polish see: all, or SCAN_ROWS of them at random."""
    if n <= SCAN_ROWS:
        return np.arange(n)
    return np.sort(np.random.default_rng(0).choice(n, SCAN_ROWS, replace=False))


def _spread_out(value_B: np.ndarray, count: int) -> np.ndarray:
    """Half of the starts are the best of the scan, half the best among a sparse part of it: starts that are
    all neighbours would agree with each other and prove nothing."""
    order = np.argsort(value_B, kind="stable")
    near = order[: count - count // 2]
    sparse = order[len(near) :: max(1, len(order) // (3 * count))]
    return np.concatenate([near, sparse[: count // 2]])


def certify(
    bound: Bound, log_loss_n: np.ndarray, weight_n: np.ndarray, objective: Objective, theta_P: np.ndarray
) -> tuple[float, float, list[str]]:
    """Gradient norm (in units of the objective per standardised parameter), condition number of the
    standardised least-squares problem, and the coordinates that lie on a bound of the search."""
    value_B, g_BP, _, M_BPP = derivatives(bound, log_loss_n, weight_n, objective, theta_P[None])
    spread_P = np.sqrt(np.maximum(np.diag(M_BPP[0]), 1e-300))
    at_bound_P = (theta_P <= bound.low_P) | (theta_P >= bound.high_P)
    standard_P = np.where(at_bound_P, 0.0, objective.unit * g_BP[0] / spread_P)
    scale = math.sqrt(max(float(value_B[0]) * objective.unit, 1e-18))  # exact rows: rounding, not a slope
    singular = np.linalg.eigvalsh(M_BPP[0] / spread_P[:, None] / spread_P)
    return (
        float(np.linalg.norm(standard_P) / scale),
        float(np.sqrt(singular[-1] / max(singular[0], 1e-30))),
        [name for name, hit in zip(bound.theta_names, at_bound_P, strict=True) if hit],
    )


def _verdict(agreed: bool, bounds_hit: list[str], condition_number: float) -> str:
    if not agreed:
        return "uncertain optimum"
    if bounds_hit or condition_number > WEAK_CONDITION:
        return "weakly identified"
    return "certified"


def refuse_degenerate(law: Law, x: Mapping[str, np.ndarray], loss_n: np.ndarray) -> None:
    """FitError where no fit of `law` can mean anything."""
    need = len(law.params) + 1
    if len(loss_n) < need:
        raise FitError(f"{len(loss_n)} usable rows: {law.name} has {len(law.params)} parameters and needs {need} rows")
    if np.ptp(np.log(loss_n)) < 1e-9:
        raise FitError(f"all {len(loss_n)} losses are equal ({loss_n[0]:g}): there is nothing to fit")
    meaning = {
        "N": "model sizes",
        "D": "token counts",
        "C": "compute budgets",
        "S": "step counts",
        "M": "tokens per N",
    }
    for name in law.variables:
        distinct = len(np.unique(x[name]))
        if name in meaning and distinct < 3:
            raise FitError(f"{distinct} distinct {meaning[name]} ({name}): {law.name} needs at least 3")
    if {"N", "D"} <= set(law.variables):
        log_N, log_D = np.log(x["N"]), np.log(x["D"])
        if abs(np.corrcoef(log_N, log_D)[0, 1]) > 0.9999:
            raise FitError("N and D move together in all rows (one budget, or one ratio): their effects are one")
