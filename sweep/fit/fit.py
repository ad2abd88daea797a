"""The whole fit, from checked rows to `fit.json`: parameters with their certificate and intervals, the three roads
to the frontier, extrapolation, sensitivity, and the warnings that follow from them.
"""

import dataclasses
import json
import math
import platform
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy

from sweep.common import files
from sweep.common.errors import UserError
from sweep.common.plain import plain
from sweep.common.units import counted
from sweep.fit import frontier
from sweep.fit.approaches import all_roads, disagreements
from sweep.fit.bootstrap import LEVEL, Replicates, interval, refusal, resample, seed_noise
from sweep.fit.checks import crossing, floors
from sweep.fit.fitted_law import Fitted
from sweep.fit.frontier import FlopsModel
from sweep.fit.holdout import holdout
from sweep.fit.identifiability import described, without_effect
from sweep.fit.laws import Law, law_named
from sweep.fit.minimise import Objective, objective_named
from sweep.fit.sensitivity import conventions, effect_of_drops, leave_out
from sweep.fit.solve import WEAK_CONDITION, Solution, solve
from sweep.fit.table import FitError, Home, Rows
from sweep.train.intrinsic_dimension import Sized, beside_exponent

STORED = 400  # replicates kept in fit.json
WIDE_EXPONENT = 0.5
MOST_LISTED = 10_000  # residuals and dropped rows in fit.json


@dataclass
class Fit:
    """What `fit.json` holds, key by key. Losses are nats per token, C is FLOPs."""

    # What was fitted, and how.
    form: str
    objective: str
    delta: float
    columns: dict[str, str]
    convention: dict[str, str]
    n_rows: int
    n_families: int
    dropped: list[dict[str, Any]]
    dropped_by_reason: dict[str, int]
    data_sha256: str
    # The law, and how sure it is.
    params: dict[str, float]
    objective_value: float
    certificate: dict[str, Any]
    flops_model: dict[str, float]
    replicates: dict[str, list[float]] | None
    deviations: list[float] | None
    bootstrap: dict[str, Any] | None
    intervals: dict[str, list[float] | None] | None
    seed_noise: dict[str, Any] | None
    # The frontier.
    exponents: dict[str, float]
    roads: dict[str, Any]
    disagreements: list[str]
    targets: list[dict[str, Any]]
    # How far to trust it.
    residuals: list[dict[str, Any]]
    holdout: list[dict[str, Any]]
    leave_out: list[dict[str, Any]]
    effect_of_drops: list[dict[str, Any]]
    conventions: list[dict[str, Any]]
    floors: dict[str, Any]
    crossing: dict[str, Any]
    dimension: dict[str, Any] | None
    warnings: list[str]
    # How it came to be.
    versions: dict[str, str]
    command: str

    def to_json(self) -> str:
        """A line for each key."""
        lines = [f"{json.dumps(name)}: {json.dumps(value, allow_nan=False)}" for name, value in self.as_dict().items()]
        return "{\n" + ",\n".join(lines) + "\n}\n"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Fit":
        names = {f.name for f in dataclasses.fields(cls)}
        missing = sorted(names - set(values))
        if missing:
            raise UserError(f"the fit has no {', '.join(missing)}: it is from another version; fit again")
        return cls(**{name: values[name] for name in names})

    def as_dict(self) -> dict[str, Any]:
        return plain(vars(self))


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
    flops = frontier.measure_flops(rows.N, rows.D, rows.C)
    answer = _answer(solution, flops, replicates, seed)
    fitted = Fitted.of(answer)
    roads, drawn = all_roads(rows, curves, solution, flops, replicates, seed)
    exponents = {name: roads["parametric"].get(name, math.nan) for name in ("a", "b")}
    intervals = _intervals(solution, replicates, roads["parametric"])
    noise = seed_noise(rows.N, rows.D, rows.loss, rows.family)
    best_losses_Bg = drawn["isoflop_akima"].get("loss_nats")
    return Fit(
        **_data(rows),
        objective=objective,
        delta=goal.delta,
        **answer,
        intervals=intervals,
        seed_noise=noise,
        exponents=exponents,
        roads=roads,
        disagreements=_disagreements(roads),
        targets=_targets(fitted, rows),
        residuals=_thin(_residuals(fitted, rows)),
        holdout=holdout(law, rows, goal, intervals=bool(bootstrap), seed=seed),
        leave_out=leave_out(rows, solution, flops),
        effect_of_drops=effect_of_drops(rows, law, goal, flops, exponents["a"]),
        conventions=conventions(alternatives, law, goal, exponents["a"]),
        floors=floors(solution.params, intervals, roads["isoflop_akima"], best_losses_Bg, fitted.widening, goal),
        crossing=crossing(fitted, rows.C, rows.D),
        dimension=_dimension(solution, intervals, dimensions),
        warnings=rows.warnings + warnings_about(rows, solution, flops, refused, intervals, noise),
        versions=versions(),
        command=command,
    )


def _solved(law: Law, rows: Rows, goal: Objective) -> Solution:
    """The law on the rows. FitError where a variable of it is missing, or the rows cannot carry it: then the counts of
    dropped rows are said too, since they are often why."""
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
        asked = {"without_effect": without_effect(solution, x, rows.loss)}
        return dataclasses.replace(solution, certificate=solution.certificate | asked)
    except FitError as refusal:
        left_out = ", ".join(f"{count} {reason}" for reason, count in rows.dropped_by_reason.items())
        raise FitError(f"{refusal}; dropped: {left_out}" if left_out else str(refusal)) from None


def _data(rows: Rows) -> dict[str, Any]:
    """What was fitted."""
    return {
        "columns": rows.columns,
        "convention": rows.convention,
        "n_rows": len(rows.row),
        "n_families": rows.n_families,
        "dropped": _thin([dataclasses.asdict(d) for d in rows.dropped]),
        "dropped_by_reason": rows.dropped_by_reason,
        "data_sha256": rows.data_sha256,
    }


def _answer(solution: Solution, flops: FlopsModel, replicates: Replicates | None, seed: int) -> dict[str, Any]:
    """The law and how sure it is: all that `Fitted` needs, so that whoever reads fit.json answers as this fit does."""
    return {
        "form": solution.law.name,
        "params": solution.params,
        "objective_value": solution.value,
        "certificate": solution.certificate,
        "flops_model": dataclasses.asdict(flops),
        "replicates": _stored(replicates),
        "deviations": _stored_deviations(replicates, seed),
        "bootstrap": _method(replicates, seed),
    }


def _intervals(
    solution: Solution, replicates: Replicates | None, parametric: Mapping[str, Any]
) -> dict[str, list[float] | None] | None:
    """90% intervals of every parameter and of a and b; None without replicates. A parameter that lies on a bound of the
    search has none: its replicates pile up there, and would give an interval that looks sure of the bound."""
    if replicates is None:
        return None
    at_bound = {name.removeprefix("log ") for name in solution.certificate["bounds_hit"]}
    found = {
        name: None if name in at_bound else interval(value, replicates.params[name], replicates.widening, positive=True)
        for name, value in solution.params.items()
    }
    return found | {name: (parametric.get("intervals") or {}).get(name) for name in ("a", "b")}


def _targets(fitted: Fitted, rows: Rows) -> list[dict[str, Any]]:
    """The best buy at the dearest compute of the rows times 1, 10, 100, 1000."""
    try:
        return [fitted.optimal(float(rows.C.max()) * times) | {"times": times} for times in (1, 10, 100, 1000)]
    except UserError:
        return []


def _disagreements(roads: Mapping[str, Any]) -> list[str]:
    """One line for the exponent a, with that of every road, where any two differ beyond their intervals."""
    if not disagreements(roads):
        return []
    found = []
    for name, road in roads.items():
        if "a" in road:
            ends = (road.get("intervals") or {}).get("a")
            found.append(f"{name} {road['a']:.3f}" + (f" [{ends[0]:.3f}, {ends[1]:.3f}]" if ends else ""))
    return [f"the roads disagree on a, N_opt ~ C^a: {', '.join(found)}"]


def _dimension(
    solution: Solution, intervals: Mapping[str, Any] | None, dimensions: Sequence[Sized]
) -> dict[str, Any] | None:
    """The exponent of N beside 4/d; None without a dimension, or in a form that has no such exponent."""
    name = "alpha" if "alpha" in solution.params and "N" in solution.law.variables else "alpha_N"
    if not dimensions or name not in solution.params:
        return None
    return beside_exponent(solution.params[name], (intervals or {}).get(name), dimensions)


def _thin(entries: list[Any]) -> list[Any]:
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


def _method(replicates: Replicates | None, seed: int) -> dict[str, Any] | None:
    if replicates is None:
        return None
    count = len(replicates.theta_BP)
    return {
        "method": "exponential weights per family, percentiles widened about the estimate",
        "replicates": count,
        "families": replicates.families,
        "widening": replicates.widening,
        "level": LEVEL,
        "seed": seed,
    }


def versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "pandas": pd.__version__,
    }


def _residuals(fitted: Fitted, rows: Rows) -> list[dict[str, Any]]:
    """Every row that has N, D and loss, used or not, with the loss that the law predicts there."""
    mine = {"row": rows.row, "N": rows.N, "D": rows.D, "C": rows.C, "loss": rows.loss} | rows.extra
    found = []
    for used, part in ((True, mine), (False, rows.unused)):
        more = {name: part[name] for name in ("C", *rows.extra)}
        predicted = fitted.loss(part["N"], part["D"], **more)
        found += [
            {"row": int(r), "N": N, "D": D, "C": C, "loss_nats": L, "predicted_nats": P, "used": used}
            for r, N, D, C, L, P in zip(
                part["row"], part["N"], part["D"], part["C"], part["loss"], predicted, strict=True
            )
        ]
    return sorted(found, key=lambda r: r["row"])


def warnings_about(
    rows: Rows,
    solution: Solution,
    flops: FlopsModel,
    refused: str | None,
    intervals: Mapping[str, Any] | None,
    noise: Mapping[str, Any] | None,
) -> list[str]:
    certificate, warnings = solution.certificate, []
    if nothing := certificate.get("without_effect"):
        warnings.append(f"{described(nothing)}: no best size, and no loss of a larger run, follows from it")
    if certificate["verdict"] == "uncertain optimum":
        warnings.append(f"uncertain optimum: {certificate['starts_agreeing']} of {certificate['starts']} starts agree")
    if certificate["bounds_hit"]:
        hit = ", ".join(certificate["bounds_hit"])
        warnings.append(f"weakly identified: {hit} at a bound of what is searched; the data do not determine it")
    elif certificate["condition_number"] > WEAK_CONDITION:
        warnings.append(
            f"weakly identified (condition number {certificate['condition_number']:.0f}): the parameters "
            "trade off against each other; widen the range of N and of D"
        )
    if refused:
        warnings.append(refused)
    for name in ("alpha", "beta", "a"):
        ends = (intervals or {}).get(name)
        if ends and ends[1] - ends[0] > WIDE_EXPONENT:
            what = "the exponent of N_opt, a," if name == "a" else name
            warnings.append(f"weakly identified: {what} is anywhere in [{ends[0]:.2f}, {ends[1]:.2f}]")
    if noise is not None:
        residual = np.log(rows.loss) - solution.bound.evaluate(solution.theta_P[None]).y_Bn[0]
        ratio = float(np.sqrt(np.mean(residual**2))) / max(noise["sd_log_loss"], 1e-12)
        if ratio > 3:
            warnings.append(
                f"the form misses by {ratio:.1f} times what seeds differ by: it does not describe these rows"
            )
    if flops.worst_relative_error > 0.1:
        warnings.append(
            f"C = {flops.k:.3g} N^{flops.gamma:.3f} D misses the FLOPs of a row by "
            f"{100 * flops.worst_relative_error:.0f}%: N_opt at a given C is that uncertain"
        )
    epochs_n = rows.D / rows.extra.get("U", rows.D)
    if "U" not in solution.law.variables and np.any(epochs_n > 1.001):
        warnings.append(
            f"{int(np.sum(epochs_n > 1.001))} rows repeat data: {solution.law.name} counts a repeated token as new"
        )
    return warnings


def rows_and_families(fit: Mapping[str, Any]) -> str:
    """`36 rows of 9 families`"""
    return f"{counted(fit['n_rows'], 'row', 'rows')} of {counted(fit['n_families'], 'family', 'families')}"


def write(fit: Fit, folder: Path, name: str = "fit.json") -> Path:
    """Write the fit into `folder`, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    files.write(path, lambda file: file.write(fit.to_json().encode()))
    return path


def read(home: Home | Path) -> dict[str, Any]:
    """What the fit.json of a table, or of a sweep's folder, holds. UserError where there is none, it was refused, it is
    damaged or of another version."""
    home = home if isinstance(home, Home) else Home(home.name, home)
    path = home.path("fit.json")
    if not path.is_file():
        raise UserError(f"{path}: no fit yet; make it with `{_again(home)}`")
    content = load(home)
    if "refused" in content:
        raise UserError(f"{path}: the fit was refused: {content['refused']}")
    return content


def load(home: Home) -> dict[str, Any]:
    """As `read`, or {"refused": reason} where that is what the file holds."""
    path = home.path("fit.json")
    try:
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError("not an object")
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}); make it again with `{_again(home)}`") from None
    if "refused" in content:
        return {"refused": str(content["refused"])}
    try:
        return Fit.from_dict(content).as_dict()
    except UserError as other_version:
        raise UserError(f"{path}: {other_version} with `{_again(home)}`") from None


def _again(home: Home) -> str:
    return shlex.join(["python", "-m", "sweep", "fit", home.source])


def write_refusal(reason: str, folder: Path) -> None:
    """Leave the reason where a sweep's fit would be, so that its report can say it and no older fit stands for this
    data. Not for anybody's file: there it would only take a good fit away."""
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(folder / "fit.json", {"refused": reason})
