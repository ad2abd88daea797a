"""Which trials to run next: those that most shrink what is not known about the compute-optimal run at a target compute.

The fit's bootstrap replicates say how each candidate's loss varies together with the two questions, ln N_opt and ln
loss at the target. Observing a candidate leaves, of a question's variance, Var(q) - Cov(q, y)^2 / (Var(y) + noise), the
update of a linear Gaussian model. Candidates are taken greedily by variance removed per FLOP until the budget is spent.

Shape suffixes: B replicates, Q questions, M candidates.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sweep.common.errors import UserError
from sweep.fit.fitted_law import FittedLaw


@dataclass(frozen=True)
class Choice:
    """Candidate `index`, its cost when chosen, and the share of each question's standard deviation left after it."""

    index: int
    flops: float
    left_Q: np.ndarray


def questions(law: FittedLaw, target_flops: float) -> np.ndarray:
    """(B, 2): ln N_opt and ln loss at the target, of each replicate. UserError without replicates."""
    if not law.replicates:
        raise UserError(
            "fit.json has no bootstrap replicates (too few families, or --bootstrap 0): there is nothing to choose by"
        )
    N_B1, _, loss_B1 = law.drawn.optimum(target_flops)
    return np.log(np.concatenate([N_B1, loss_B1], axis=1))


def outcomes(law: FittedLaw, N_M: np.ndarray, D_M: np.ndarray) -> np.ndarray:
    """(B, M): ln loss of each candidate under each replicate."""
    return np.log(law.drawn.loss(N_M, D_M))


def propose(
    questions_BQ: np.ndarray,
    outcomes_BM: np.ndarray,
    noise_variance: float,
    cost: Callable[[int, list[int]], float],
    budget_flops: float,
) -> list[Choice]:
    """Greedy choices within the budget. `cost(candidate, chosen)` is in FLOPs, and may fall with what was chosen."""
    joint = np.concatenate([questions_BQ, outcomes_BM], axis=1)
    joint = joint[np.isfinite(joint).all(axis=1)]
    S = np.cov(joint, rowvar=False)
    n_questions, n_candidates = questions_BQ.shape[1], outcomes_BM.shape[1]
    before_Q = np.diag(S)[:n_questions].copy()
    chosen: list[int] = []
    choices: list[Choice] = []
    left_flops = budget_flops
    while True:
        best, best_rate, best_cost = None, 0.0, 0.0
        for j in range(n_candidates):
            flops = cost(j, chosen)
            if j in chosen or flops > left_flops:
                continue
            column = S[:, n_questions + j]
            removed_Q = column[:n_questions] ** 2 / (column[n_questions + j] + noise_variance)
            rate = float(np.sum(removed_Q / before_Q)) / flops
            if rate > best_rate:
                best, best_rate, best_cost = j, rate, flops
        if best is None:
            return choices
        column = S[:, n_questions + best].copy()
        S = S - np.outer(column, column) / (column[n_questions + best] + noise_variance)
        chosen.append(best)
        left_flops -= best_cost
        left_Q = np.sqrt(np.maximum(np.diag(S)[:n_questions], 0.0) / before_Q)
        choices.append(Choice(best, best_cost, left_Q))
