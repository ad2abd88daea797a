"""The whole fit, from checked rows to a `Fit`: parameters with their certificate and intervals, approaches 1, 2 and 3
to the frontier, hold-out by compute, sensitivity, and the warnings that follow from them.
"""

import platform
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
import pandas as pd
import scipy

from sweep.common.errors import UserError
from sweep.fit import frontier
from sweep.fit.approaches import all_approaches, disagreements
from sweep.fit.bootstrap import LEVEL, Bootstrap, Interval, Replicates, interval, refusal, resample, seed_noise
from sweep.fit.checks import crossing, floors
from sweep.fit.dimension_check import DimensionCheck, Sized, beside_exponent
from sweep.fit.fit_file import Exponents, Fit, Residual, Target
from sweep.fit.fit_warnings import warnings_about
from sweep.fit.fitted_law import FittedLaw
from sweep.fit.frontier import Approach
from sweep.fit.holdout import holdout
from sweep.fit.identifiability import without_effect
from sweep.fit.law import Law
from sweep.fit.laws import law_named
from sweep.fit.minimise import Objective, objective_named
from sweep.fit.rows import FitError, Rows
from sweep.fit.sensitivity import conventions, effect_of_drops, leave_out
from sweep.fit.solve import Solution, solve

STORED = 400  # replicates kept in fit.json
MOST_LISTED = 10_000  # residuals and dropped rows in fit.json

T = TypeVar("T")


def fit_rows(
    rows: Rows,
    curves: pd.DataFrame | None = None,
    *,
    form: str = "additive",
    objective: str = "huber",
    delta: float = 1e-3,
    bootstrap: int = 1000,
    seed: int = 0,
    alternatives: Sequence[Rows] = (),
    dimensions: Sequence[Sized] = (),
    command: str = "",
) -> Fit:
    """The whole fit. FitError where the rows cannot carry it; a refused part says why in its place.

    `bootstrap`: replicates for the intervals, 0 for none. `alternatives`: the same table under other conventions.
    `dimensions`: (N, of such a model's activations), smallest first, for alpha beside 4/d of the largest.
    """
    law, goal = law_named(form), objective_named(objective, delta)
    solution = _solved(law, rows, goal)
    refused = refusal(len(rows.row), rows.n_families) if bootstrap else None
    wanted = bootstrap and not refused
    replicates = resample(solution, rows.loss, rows.family, bootstrap, seed) if wanted else None
    stored, deviations, method = _stored(replicates), _stored_deviations(replicates, seed), _method(replicates, seed)
    flops = frontier.measure_flops(rows.N, rows.D, rows.C)
    # What is stored answers here too, so that whoever reads fit.json gets the same numbers.
    fitted = FittedLaw.of(form, solution.params, solution.certificate, flops, stored, deviations, method)
    approaches, drawn = all_approaches(rows, curves, solution, flops, replicates, seed)
    parametric, akima = approaches["parametric"], approaches["isoflop_akima"]
    intervals = _intervals(solution, replicates, parametric)
    E_interval = (intervals or {}).get("E")
    noise = seed_noise(rows.N, rows.D, rows.loss, rows.family)
    return Fit(
        form=form,
        objective=objective,
        delta=goal.delta,
        columns=rows.columns,
        convention=rows.convention,
        n_rows=len(rows.row),
        n_families=rows.n_families,
        dropped=_thin(rows.dropped),
        dropped_by_reason=rows.dropped_by_reason,
        data_sha256=rows.data_sha256,
        params=solution.params,
        objective_value=solution.value,
        certificate=solution.certificate,
        flops_model=flops,
        replicates=stored,
        deviations=deviations,
        bootstrap=method,
        intervals=intervals,
        seed_noise=noise,
        exponents=Exponents(parametric.a, parametric.b),
        approaches=approaches,
        disagreements=disagreements(approaches),
        targets=_targets(fitted, rows),
        residuals=_thin(_residuals(fitted, rows)),
        holdout=holdout(law, rows, goal, intervals=bool(bootstrap), seed=seed),
        leave_out=leave_out(rows, solution, flops),
        effect_of_drops=effect_of_drops(rows, law, goal, flops, parametric.a),
        conventions=conventions(alternatives, law, goal, parametric.a),
        floors=floors(
            solution.params, E_interval, akima, drawn["isoflop_akima"].get("loss_nats"), fitted.widening, goal
        ),
        crossing=crossing(fitted, rows.C, rows.D),
        dimension=_dimension(solution, intervals, dimensions),
        warnings=rows.warnings + warnings_about(rows, solution, flops, refused, intervals, noise),
        versions=versions(),
        command=command,
    )


def _solved(law: Law, rows: Rows, goal: Objective) -> Solution:
    """The law on the rows. FitError where a variable of it is missing, or the rows cannot carry it: then it says how
    many rows were dropped for each reason too, since that is often why."""
    x = rows.variables()
    missing = [name for name in law.variables if name not in x]
    if missing:
        names = {"S": "steps", "U": "unique_tokens"}
        raise FitError(f"--form {law.name} needs {missing[0]}: name its column with --columns {names[missing[0]]}=…")
    for name in law.variables:
        if not (np.isfinite(x[name]) & (x[name] > 0)).all():
            raise FitError(f"--form {law.name} needs {name}, and some rows have none: leave them out with --where")
    try:
        solution = solve(law, x, rows.loss, goal, rows.weight)
        nothing = without_effect(solution, x, rows.loss)
        return replace(solution, certificate=replace(solution.certificate, without_effect=nothing))
    except FitError as refusal:
        left_out = ", ".join(f"{count} {reason}" for reason, count in rows.dropped_by_reason.items())
        raise FitError(f"{refusal}; dropped: {left_out}" if left_out else str(refusal)) from None


def _intervals(
    solution: Solution, replicates: Replicates | None, parametric: Approach
) -> dict[str, Interval | None] | None:
    """90% intervals of every parameter and of a and b; None without replicates. A parameter that lies on a bound of the
    search has none: its replicates pile up there, and would give an interval that looks sure of the bound."""
    if replicates is None:
        return None
    found = {
        name: None
        if name in solution.certificate.at_bounds
        else interval(value, replicates.params[name], replicates.widening, positive=True)
        for name, value in solution.params.items()
    }
    ends = parametric.intervals
    return found | {"a": ends.a if ends else None, "b": ends.b if ends else None}


def _targets(fitted: FittedLaw, rows: Rows) -> list[Target]:
    """The compute-optimal model at the largest compute of the rows times 1, 10, 100, 1000."""
    largest = float(rows.C.max())
    try:
        return [Target(**vars(fitted.optimal(largest * times)), times=times) for times in (1, 10, 100, 1000)]
    except UserError:
        return []


def _dimension(
    solution: Solution, intervals: dict[str, Interval | None] | None, dimensions: Sequence[Sized]
) -> DimensionCheck | None:
    """The exponent of N beside 4/d; None without a dimension, or in a form that has no such exponent."""
    name = "alpha" if "alpha" in solution.params and "N" in solution.law.variables else "alpha_N"
    if not dimensions or name not in solution.params:
        return None
    return beside_exponent(solution.params[name], (intervals or {}).get(name), dimensions)


def _thin(entries: list[T]) -> list[T]:
    """At most MOST_LISTED entries, evenly spaced: a table of a million rows must not make a fit.json of a gigabyte."""
    step = -(-len(entries) // MOST_LISTED)
    return entries[::step] if step > 1 else entries


def _stored(replicates: Replicates | None) -> dict[str, list[float]] | None:
    """Parameters of the first STORED replicates, for intervals at any C; 6 digits are far under their spread."""
    if replicates is None:
        return None
    return {name: [float(f"{v:.6g}") for v in values_B[:STORED]] for name, values_B in replicates.params.items()}


def _stored_deviations(replicates: Replicates | None, seed: int) -> list[float] | None:
    """How rows deviate in log loss from the law fitted without their family; at most STORED of them, at random."""
    if replicates is None:
        return None
    seen_n = replicates.deviation_n
    some = seen_n if len(seen_n) <= STORED else np.random.default_rng(seed).choice(seen_n, STORED, replace=False)
    return [float(f"{v:.4g}") for v in some]


def _method(replicates: Replicates | None, seed: int) -> Bootstrap | None:
    if replicates is None:
        return None
    return Bootstrap(
        method="exponential weights per family, percentiles widened about the estimate",
        replicates=len(replicates.theta_BP),
        families=replicates.families,
        widening=replicates.widening,
        level=LEVEL,
        seed=seed,
    )


def versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "pandas": pd.__version__,
    }


def _residuals(fitted: FittedLaw, rows: Rows) -> list[Residual]:
    """Every row that has N, D and loss, used or not, with the loss that the law predicts there."""
    mine = {"row": rows.row, "N": rows.N, "D": rows.D, "C": rows.C, "loss": rows.loss} | rows.extra
    found = []
    for used, part in ((True, mine), (False, rows.unused)):
        more = {name: part[name] for name in ("C", *rows.extra)}
        predicted = fitted.loss(part["N"], part["D"], **more)
        columns = (part[name].tolist() for name in ("row", "N", "D", "C", "loss"))
        found += [
            Residual(row, N, D, C, loss_nats, predicted_nats, used)
            for row, N, D, C, loss_nats, predicted_nats in zip(*columns, predicted.tolist(), strict=True)
        ]
    return sorted(found, key=lambda residual: residual.row)
