"""One fit of a scaling law to rows of (N, D, C, loss): the best of several polished starts, certified.

From arrays to `fit.json`: `solve` finds the parameters and certifies them; `fit_rows` adds exponents, the
three roads to the frontier, residuals, the expanding-compute holdout, and where they disagree.
"""

import dataclasses
import json
import math
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy

from sweep import frontier
from sweep.errors import UserError
from sweep.frontier import FlopsModel
from sweep.laws import Bound, Law, law_named
from sweep.objective import Objective, derivatives, minimise, objective_named, value
from sweep.table import Rows

STARTS = 12
SAME_OPTIMUM = 1e-6  # relative difference of objectives that counts as the same optimum
WEAK_CONDITION = 1e3


class FitError(UserError):
    """The data cannot carry this fit: one line that says why. Beats a number that only looks like a fit."""


# --- Parameters ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Solution:
    """The best parameters found for `law` on some rows, and the certificate of the search."""

    law: Law
    bound: Bound
    objective: Objective
    theta_P: np.ndarray
    value: float
    certificate: dict[str, Any]

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
    """Fit `law` to losses (nats, shape (n,)) at `x` (variable -> (n,)): scan, polish `starts`, certify.
    FitError where the rows cannot determine the parameters at all."""
    refuse_degenerate(law, x, loss_n)
    weight_n = np.ones(len(loss_n)) if weight_n is None else weight_n
    bound = law.bind(x, loss_n)
    log_loss_n = np.log(loss_n)
    scan_BP = bound.starts(loss_n, weight_n)
    scan_B = value(bound, log_loss_n, weight_n, objective, scan_BP)
    chosen = _spread_out(scan_BP, scan_B, starts)
    found = minimise(bound, log_loss_n, weight_n, objective, scan_BP[chosen])
    best = int(found.value_B.argmin())
    theta_P = found.theta_BP[best]
    scale = max(float(found.value_B[best]), objective.unit * 1e-20)
    certificate = certify(bound, log_loss_n, weight_n, objective, theta_P) | {
        "starts": len(chosen),
        "starts_agreeing": int(np.sum(found.value_B - found.value_B[best] <= SAME_OPTIMUM * scale)),
        "converged": bool(found.converged_B[best]),
    }
    certificate["verdict"] = _verdict(certificate)
    return Solution(law, bound, objective, theta_P, float(found.value_B[best]), certificate)


def _spread_out(theta_BP: np.ndarray, value_B: np.ndarray, count: int) -> np.ndarray:
    """Half of the starts are the best of the scan, half the best among a sparse tenth of it: starts that are
    all neighbours would agree with each other and prove nothing."""
    order = np.argsort(value_B, kind="stable")
    near = order[: count - count // 2]
    sparse = order[len(near) :: max(1, len(order) // (3 * count))]
    return np.concatenate([near, sparse[: count // 2]])


def certify(
    bound: Bound, log_loss_n: np.ndarray, weight_n: np.ndarray, objective: Objective, theta_P: np.ndarray
) -> dict[str, Any]:
    """Gradient norm (in units of the objective per standardised parameter), condition number of the
    standardised least-squares problem, and the bounds that the parameters lie on."""
    value_B, g_BP, _, M_BPP = derivatives(bound, log_loss_n, weight_n, objective, theta_P[None])
    spread_P = np.sqrt(np.maximum(np.diag(M_BPP[0]), 1e-300))
    at_bound_P = (theta_P <= bound.low_P) | (theta_P >= bound.high_P)
    standard_P = np.where(at_bound_P, 0.0, objective.unit * g_BP[0] / spread_P)
    scale = math.sqrt(max(float(value_B[0]) * objective.unit, 1e-18))  # exact rows: rounding, not a slope
    singular = np.linalg.eigvalsh(M_BPP[0] / spread_P[:, None] / spread_P)
    return {
        "gradient_norm": float(np.linalg.norm(standard_P) / scale),
        "condition_number": float(np.sqrt(singular[-1] / max(singular[0], 1e-30))),
        "bounds_hit": [name for name, hit in zip(bound.theta_names, at_bound_P, strict=True) if hit],
    }


def _verdict(certificate: Mapping[str, Any]) -> str:
    if not certificate["converged"] or certificate["starts_agreeing"] < 2:
        return "uncertain optimum"
    if certificate["bounds_hit"] or certificate["condition_number"] > WEAK_CONDITION:
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


# --- The whole fit ------------------------------------------------------------------------------------------


@dataclass
class Fit:
    """What `fit.json` holds, key by key. Losses are nats per token, C is FLOPs."""

    form: str
    objective: str
    delta: float
    columns: dict[str, str]
    convention: dict[str, str]
    n_rows: int
    n_families: int
    dropped: list[dict[str, Any]]
    data_sha256: str
    params: dict[str, float]
    objective_value: float
    flops_model: dict[str, float]
    exponents: dict[str, float]
    intervals: dict[str, list[float]] | None
    certificate: dict[str, Any]
    roads: dict[str, Any]
    residuals: list[dict[str, Any]]
    holdout: list[dict[str, Any]]
    disagreements: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    command: str = ""

    def to_json(self) -> str:
        return json.dumps(_plain(dataclasses.asdict(self)), indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Fit":
        values = json.loads(text)
        names = {f.name for f in dataclasses.fields(cls)}
        missing = sorted(names - set(values))
        if missing:
            raise UserError(f"fit.json has no {', '.join(missing)}: it is from another version; fit again")
        return cls(**{name: values[name] for name in names})

    def as_dict(self) -> dict[str, Any]:
        return _plain(dataclasses.asdict(self))

    def predict_loss(self, N: Any, D: Any, **more: Any) -> Any:
        """See `frontier.predict_loss`."""
        return frontier.predict_loss(self.as_dict(), N, D, **more)

    def optimal(self, C: float) -> dict[str, float]:
        """See `frontier.optimal`."""
        return frontier.optimal(self.as_dict(), C)

    def compute_for_loss(self, loss_nats: float) -> float:
        """See `frontier.compute_for_loss`."""
        return frontier.compute_for_loss(self.as_dict(), loss_nats)


def _plain(value: Any) -> Any:
    """JSON's own types; what is not finite becomes null."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(v) for v in value]
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value


def variables(rows: Rows) -> dict[str, np.ndarray]:
    """Every variable that the forms may ask for and these rows have."""
    return {"N": rows.N, "D": rows.D, "C": rows.C, "M": rows.D / rows.N} | rows.extra


def fit_rows(
    rows: Rows,
    curves: pd.DataFrame | None = None,
    *,
    form: str = "additive",
    objective: str = "huber",
    delta: float = 1e-3,
    command: str = "",
) -> Fit:
    """The whole fit. FitError where the rows cannot carry it; a refused part says why in its place."""
    law, goal = law_named(form), objective_named(objective, delta)
    x = variables(rows)
    missing = [name for name in law.variables if name not in x]
    if missing:
        names = {"S": "steps", "U": "unique_tokens"}
        raise FitError(f"--form {form} needs {missing[0]}: name its column with --columns {names[missing[0]]}=…")
    solution = solve(law, x, rows.loss, goal)
    flops = frontier.measure_flops(rows.N, rows.D, rows.C)
    roads = all_roads(rows, curves, solution, flops)
    a, b = (roads["parametric"].get(name, math.nan) for name in ("a", "b"))
    residuals = _residuals(rows, solution, flops)
    return Fit(
        form=form,
        objective=objective,
        delta=goal.delta,
        columns=rows.columns,
        convention=rows.convention,
        n_rows=len(rows.row),
        n_families=len(np.unique(rows.family.astype(str))),
        dropped=[dataclasses.asdict(d) for d in rows.dropped],
        data_sha256=rows.data_sha256,
        params=solution.params,
        objective_value=solution.value,
        flops_model=dataclasses.asdict(flops),
        exponents={"a": a, "b": b},
        intervals=None,
        certificate=solution.certificate,
        roads=roads,
        residuals=residuals,
        holdout=holdout(rows, law, goal),
        disagreements=disagreements(roads),
        warnings=rows.warnings + warnings_about(rows, solution, flops),
        versions=versions(),
        command=command,
    )


def versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "pandas": pd.__version__,
    }


def _residuals(rows: Rows, solution: Solution, flops: FlopsModel) -> list[dict[str, Any]]:
    """Every row that has N, D and loss, used or not, with the loss that the law predicts there."""
    fit = {"form": solution.law.name, "params": solution.params, "flops_model": dataclasses.asdict(flops)}
    parts = [{"row": rows.row, "N": rows.N, "D": rows.D, "C": rows.C, "loss": rows.loss} | rows.extra]
    if not rows.extra:
        parts.append(rows.unused)
    found = []
    for used, part in zip((True, False), parts, strict=False):
        more = {name: part[name] for name in rows.extra if name in part}
        predicted = frontier.predict_loss(fit, part["N"], part["D"], **more)
        found += [
            {"row": int(r), "N": N, "D": D, "C": C, "loss_nats": L, "predicted_nats": P, "used": used}
            for r, N, D, C, L, P in zip(
                part["row"], part["N"], part["D"], part["C"], part["loss"], predicted, strict=True
            )
        ]
    return sorted(found, key=lambda r: r["row"])


def all_roads(rows: Rows, curves: pd.DataFrame | None, solution: Solution, flops: FlopsModel) -> dict[str, Any]:
    """The three roads (isoFLOP twice) side by side; a road that cannot be taken is {"refused": reason}."""
    groups = frontier.budgets(rows.N, rows.D, rows.C)
    log_loss_n = np.log(rows.loss)
    roads: dict[str, Any] = {}
    try:
        size_of_family = dict(zip(rows.family, rows.N, strict=True))
        roads["envelope"] = frontier.envelope_road(frontier.stable_curves(curves, size_of_family))
    except UserError as refusal:
        roads["envelope"] = {"refused": str(refusal)}
    for method in frontier.ISOFLOP_METHODS:
        roads[method] = frontier.isoflop_road(method, groups, log_loss_n)
    centres = [g.C for g in groups] or list(np.geomspace(rows.C.min(), rows.C.max(), 5))
    try:
        roads["parametric"] = parametric_road(solution.law, solution.params, flops, centres)
    except UserError as refusal:
        roads["parametric"] = {"refused": str(refusal)}
    return roads


def parametric_road(law: Law, params: Mapping[str, float], flops: FlopsModel, centres: list[float]) -> dict[str, Any]:
    N_m, D_m, loss_m = frontier.optimum(law, params, flops, np.array(centres))
    a, b = frontier.exponents(law, params, flops)
    optima = [
        {"C": C, "N": float(N), "D": float(D), "loss_nats": float(L)}
        for C, N, D, L in zip(centres, N_m, D_m, loss_m, strict=True)
    ]
    note = f"the fitted form along C = {flops.k:.4g} N^{flops.gamma:.4g} D"
    return {"a": float(a), "b": float(b), "intervals": None, "optima": optima, "refused": [], "note": note}


def disagreements(roads: Mapping[str, Any]) -> list[str]:
    """Pairs of roads whose exponents differ beyond their intervals (by more than 0.1 without any)."""
    found = []
    open_roads = [(name, road) for name, road in roads.items() if "a" in road]
    for i, (name, road) in enumerate(open_roads):
        for other_name, other in open_roads[i + 1 :]:
            mine, theirs = ((r.get("intervals") or {}).get("a") for r in (road, other))
            if mine and theirs:
                apart = mine[1] < theirs[0] or theirs[1] < mine[0]
            else:
                apart = abs(road["a"] - other["a"]) > 0.1
            if apart:
                found.append(f"N_opt ~ C^a: {name} gives a = {road['a']:.3f}, {other_name} gives a = {other['a']:.3f}")
    return found


def warnings_about(rows: Rows, solution: Solution, flops: FlopsModel) -> list[str]:
    certificate, warnings = solution.certificate, []
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


# --- Extrapolation ------------------------------------------------------------------------------------------


def holdout(rows: Rows, law: Law, objective: Objective) -> list[dict[str, Any]]:
    """Fit the rows up to each cut in compute, predict the dearer ones. `error` is predicted / observed - 1;
    `mean_error` is the mean of its absolute value, `mean_signed_error` of itself."""
    x, found = variables(rows), []
    for cut in _cuts(rows.C):
        inside = cut >= rows.C
        try:
            fitted = solve(law, {k: v[inside] for k, v in x.items()}, rows.loss[inside], objective)
        except FitError:
            continue
        beyond = {k: v[~inside] for k, v in x.items()}
        predicted = law.loss(fitted.params, beyond)
        error = predicted / rows.loss[~inside] - 1
        cells = zip(rows.row[~inside], rows.N[~inside], rows.D[~inside], rows.C[~inside], strict=True)
        found.append(
            {
                "cut_flops": float(cut),
                "n_fit": int(inside.sum()),
                "n_predicted": int((~inside).sum()),
                "max_flops_ratio": float(rows.C.max() / rows.C[inside].max()),
                "mean_error": float(np.mean(np.abs(error))),
                "mean_signed_error": float(np.mean(error)),
                "params": fitted.params,
                "rows": [
                    {"row": int(r), "N": N, "D": D, "C": C, "loss_nats": L, "predicted_nats": P, "error": e}
                    for (r, N, D, C), L, P, e in zip(cells, rows.loss[~inside], predicted, error, strict=True)
                ],
            }
        )
    return found


def _cuts(C_n: np.ndarray, most: int = 6) -> list[float]:
    """Compute values to cut at: between budgets where the rows form a few, else quantiles of the rows."""
    log_C = np.sort(np.log(C_n))
    gaps = np.flatnonzero(np.diff(log_C) > frontier.SAME_BUDGET)
    if not 1 <= len(gaps) <= 12:
        gaps = np.unique(np.linspace(0.3 * len(log_C), 0.9 * len(log_C), most).astype(int)) - 1
    return [float(np.exp(log_C[i])) * (1 + 1e-12) for i in gaps if i + 1 < len(log_C)]


def write(fit: Fit, folder: Path) -> Path:
    """Write `fit.json` into `folder`, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    path, temporary = folder / "fit.json", folder / ".fit.json.partial"
    temporary.write_text(fit.to_json())
    temporary.replace(path)
    return path
