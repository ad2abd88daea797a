"""How far a fit can be trusted: a bootstrap over what is independent, batched, with small-sample widening.

What is independent is a family, not a row: the budgets of a family share their trunk, points of one curve are one
run. Each replicate gives every family a random weight (exponential, mean 1: the Bayesian bootstrap of Rubin 1981,
"fractional random weights" of Xu et al. 2020) and refits. No family ever vanishes, so a replicate of few
sizes is as well posed as the fit. Percentiles of the replicates are widened about the estimate by
sqrt(F / (F - 1)) t / z, t with F - 3 degrees of freedom for F families (three parameters, E, A and alpha, are
decided between families). `benchmarks/fit_calibration.py` simulates what that covers.

The isoFLOP and envelope approaches interpolate, and weights do not move an interpolation. Their intervals come from
losses that are drawn again: the law's, plus deviations as they might have been. A law follows its rows, so residuals
are too small (variance 1 - h times the truth, h the leverage); deviations from the law fitted without the row's family
are too large (1 / (1 - h) times), with few families by far. Their geometric mean is neither (MacKinnon & White 1985,
"HC2").

Shape suffixes: B replicates, F families, P parameters, n rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import special

from sweep.common.artefacts import Number
from sweep.fit.law import Params
from sweep.fit.minimise import minimise
from sweep.fit.solve import Solution

LEVEL = 0.90
LEAST_FAMILIES = 5
ROUNDING = 1e-4  # of an estimate (or its log) and its replicates, which fit.json holds in 6 digits
TOLERANCE = 1e-6  # of a replicate's objective: far under the spread between replicates
MOST_ROWS = 50_000  # a bootstrap of more would take minutes
MOST_FOLDS = 50
CHUNK_ROWS = 50_000  # rows times replicates refitted together: what stays in cache


class Interval(NamedTuple):
    """The two ends of an interval at LEVEL; [low, high] in files."""

    low: Number
    high: Number


@dataclass(frozen=True)
class Bootstrap:
    """How the intervals were made: `replicates` refits over so many families, stretched by `widening`."""

    method: str
    replicates: int
    families: int
    widening: float
    level: float
    seed: int


@dataclass(frozen=True)
class SeedNoise:
    """Standard deviation of log loss between runs of the same N and D, over so many cells (N, D) with replicates."""

    sd_log_loss: float
    degrees_of_freedom: int
    cells: int


@dataclass(frozen=True)
class Replicates:
    """B refits: theta_BP; how each row's log loss deviates from the law, and from the law fitted without its family."""

    theta_BP: np.ndarray
    params: Params
    residual_n: np.ndarray
    deviation_n: np.ndarray
    family_n: np.ndarray  # 0 … F-1
    widening: float

    @property
    def families(self) -> int:
        return int(self.family_n.max()) + 1


def widening(families: int) -> float:
    """What percentiles of F families are stretched by, about the estimate."""
    tail = (1 + LEVEL) / 2
    small = np.sqrt(families / (families - 1)) * special.stdtrit(families - 3, tail)
    return float(small / special.ndtri(tail))


def refusal(rows: int, families: int) -> str | None:
    """Why there can be no intervals, or None."""
    if families < LEAST_FAMILIES:
        return f"too few independent runs for intervals: {LEAST_FAMILIES} families are needed, there are {families}"
    if rows > MOST_ROWS:
        return f"no intervals: {rows} rows, and the bootstrap takes {MOST_ROWS}; keep one row per run, or use --where"
    return None


def resample(solution: Solution, loss_n: np.ndarray, family_n: np.ndarray, count: int, seed: int) -> Replicates:
    """`count` refits of `solution` (made on these rows) with random weights per family."""
    _, family_n = np.unique(family_n.astype(str), return_inverse=True)
    families, log_loss_n = int(family_n.max()) + 1, np.log(loss_n)
    rng = np.random.default_rng(seed)
    step = max(1, CHUNK_ROWS // len(loss_n))
    parts = []
    for start in range(0, count, step):
        weight_BF = rng.exponential(size=(min(step, count - start), families))
        weight_BF /= weight_BF.mean(axis=1, keepdims=True)
        parts.append(refit(solution, log_loss_n, weight_BF[:, family_n]))
    theta_BP = np.concatenate(parts)
    residual_n = log_loss_n - solution.bound.evaluate(solution.theta_P[None]).y_Bn[0]
    deviation_n = deviations(solution, log_loss_n, family_n, rng)
    params = solution.bound.to_params(theta_BP)
    return Replicates(theta_BP, params, residual_n, deviation_n, family_n, widening(families))


def deviations(
    solution: Solution, log_loss_n: np.ndarray, family_n: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Log loss of each row minus the law fitted without its family (with many families, without its fold)."""
    families = int(family_n.max()) + 1
    folds = min(families, MOST_FOLDS)
    fold_n = (rng.permutation(families) % folds)[family_n]
    predicted_n = np.empty(len(log_loss_n))
    for fold in range(folds):
        mine_n = fold_n == fold
        theta_BP = refit(solution, log_loss_n, 1.0 - mine_n[None])
        predicted_n[mine_n] = solution.bound.evaluate(theta_BP).y_Bn[0, mine_n]
    return log_loss_n - predicted_n


def refit(solution: Solution, log_loss_n: np.ndarray, weight_Bn: np.ndarray) -> np.ndarray:
    """theta_BP of the law refitted from the solution, with its weights times those of each replicate."""
    step = max(1, CHUNK_ROWS // weight_Bn.shape[1])
    parts = []
    for start in range(0, len(weight_Bn), step):
        part_Bn = weight_Bn[start : start + step]
        theta_BP = np.repeat(solution.theta_P[None], len(part_Bn), axis=0)
        found = minimise(
            solution.bound, log_loss_n, part_Bn * solution.weight_n, solution.objective, theta_BP, TOLERANCE, 60
        )
        parts.append(found.theta_BP)
    return np.concatenate(parts)


def interval(estimate: float | None, draws_B: np.ndarray, widen: float, positive: bool = False) -> Interval | None:
    """Percentiles of the replicates, stretched about the estimate (in the log where `positive`).
    None where the estimate or many replicates are not finite, or all lie on one side of the estimate: they are then no
    sample around it."""
    draws_B = np.asarray(draws_B, dtype=float)
    if (
        estimate is None
        or not np.isfinite(estimate)
        or (positive and estimate <= 0)
        or np.mean(np.isfinite(draws_B)) < 0.9
    ):
        return None
    draws_B = draws_B[np.isfinite(draws_B)]
    if positive:
        estimate, draws_B = np.log(estimate), np.log(np.maximum(draws_B, 1e-300))
    ends = np.quantile(draws_B, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    ends = estimate + widen * (ends - estimate)
    if ends[0] > estimate + ROUNDING or ends[1] < estimate - ROUNDING:
        return None
    ends = np.exp(ends) if positive else ends
    return Interval(float(ends[0]), float(ends[1]))


def prediction_interval(
    solution: Solution, replicates: Replicates, x: Mapping[str, np.ndarray], seed: int
) -> np.ndarray:
    """[low, high] of the loss (nats) that new runs at `x` (variable -> (m,)) will show, (2, m)."""
    centre_m = solution.law.loss(solution.params, x)
    params = {name: values_B[:, None] for name, values_B in replicates.params.items()}
    drawn_Bm = solution.law.loss(params, {name: v[None] for name, v in x.items()})
    return prediction_limits(centre_m, drawn_Bm, replicates.deviation_n, replicates.widening, seed)


def prediction_limits(
    centre_m: np.ndarray, drawn_Bm: np.ndarray, deviation_n: np.ndarray, widen: float, seed: int
) -> np.ndarray:
    """[low, high] of the loss of new runs, (2, m): what the law may be (losses of the replicates, widened about the
    law's) and how a run deviates from it (as rows did from the law fitted without their family)."""
    rng = np.random.default_rng(seed + 1)
    log_Bm = np.log(centre_m) + widen * (np.log(drawn_Bm) - np.log(centre_m))
    log_Bm = log_Bm + rng.choice(deviation_n, size=log_Bm.shape)
    return np.exp(np.quantile(log_Bm, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0))


def draw_deviations(replicates: Replicates, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Deviations of log loss as they might have been: (count, n) of the rows, and the part that each family's rows
    share, (count, F). Both parts are drawn from those seen, over all families, with random signs: the few families
    around a minimum are too few to say by themselves how far it could have moved."""
    rng = np.random.default_rng(seed + 2)
    family_n = replicates.family_n
    seen_n = np.sign(replicates.residual_n) * np.sqrt(np.abs(replicates.residual_n * replicates.deviation_n))
    shared_F = np.bincount(family_n, seen_n) / np.bincount(family_n)
    own_n = seen_n - shared_F[family_n]

    def draw(seen: np.ndarray) -> np.ndarray:
        return rng.choice(seen, size=(count, len(seen))) * rng.choice([-1.0, 1.0], size=(count, len(seen)))

    shared_BF = draw(shared_F)
    return shared_BF[:, family_n] + draw(own_n), shared_BF


def seed_noise(N_n: np.ndarray, D_n: np.ndarray, loss_n: np.ndarray, family_n: np.ndarray) -> SeedNoise | None:
    """Standard deviation of log loss between replicates: runs of the same N and D in different families. None
    without any."""
    cells: dict[tuple[float, float], dict[str, float]] = {}
    for N, D, loss, family in zip(N_n, D_n, loss_n, family_n.astype(str), strict=True):
        cells.setdefault((float(N), float(D)), {})[family] = float(np.log(loss))
    repeated = [list(cell.values()) for cell in cells.values() if len(cell) > 1]
    if not repeated:
        return None
    freedom = sum(len(values) - 1 for values in repeated)
    squares = sum(float(np.sum((np.array(values) - np.mean(values)) ** 2)) for values in repeated)
    return SeedNoise(float(np.sqrt(squares / freedom)), freedom, len(repeated))
