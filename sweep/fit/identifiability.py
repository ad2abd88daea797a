"""Whether the losses fall with N and with D at all, as far as the rows can tell.

Where they do not, a law still fits: its parameters run to the bounds of the search, and the compute-optimal N and D
that they give are noise. So the law is fitted once more without the variable; leaving out a variable that matters makes
the objective clearly worse.
"""

from collections.abc import Mapping

import numpy as np

from sweep.common.errors import UserError
from sweep.fit.laws import law_named
from sweep.fit.minimise import EXACT
from sweep.fit.solve import Solution, solve

WITHOUT = {  # form -> variable -> the same form without it
    "additive": {"N": "power_D", "D": "power_N"},
    "kaplan_joint": {"N": "power_D_no_floor", "D": "power_N_no_floor"},
}
# By how many mean row residuals the objective must worsen. Of tables of pure noise (12 to 240 rows, three kinds of
# noise) 1 to 5 in 100 pass it; a grid of 24 rows whose law explains a third of the loss does at 10% of noise.
LEAST_GAIN = 4.0


def without_effect(solution: Solution, x: Mapping[str, np.ndarray], loss_n: np.ndarray) -> list[str]:
    """The variables, of N and D, that the losses do not fall with. Empty for forms that are not asked."""
    rows, params = len(loss_n), len(solution.law.params)
    per_row = max(solution.value, solution.objective.unit * EXACT * rows) / (rows - params)
    found = []
    for variable, reduced in WITHOUT.get(solution.law.name, {}).items():
        without = solve(law_named(reduced), x, loss_n, solution.objective, solution.weight_n)
        if without.value - solution.value <= LEAST_GAIN * per_row:
            found.append(variable)
    return found


def described(variables: list[str]) -> str:
    return f"the losses do not fall with {' or '.join(variables)}, as far as this table tells"


def refuse_without_effect(variables: list[str]) -> None:
    """UserError where there are such variables: the data do not determine a compute-optimal N and D."""
    if variables:
        raise UserError(f"{described(variables)}: there is no compute-optimal size")
