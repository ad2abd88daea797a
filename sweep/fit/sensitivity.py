"""How far the exponent a depends on single rows, on the rows that were dropped, and on how N and C are counted."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sweep.common.artefacts import Number
from sweep.common.errors import UserError
from sweep.fit import frontier
from sweep.fit.bootstrap import refit
from sweep.fit.law import Law
from sweep.fit.minimise import Objective
from sweep.fit.rows import Rows
from sweep.fit.solve import Solution, solve

MOST_WORK = 4_000_000  # rows times refits: above it nothing is left out row by row, or family by family
SHOWN = 20


@dataclass(frozen=True)
class LeaveOut:
    """The exponent a fitted without one row (its position in the table), or without one family."""

    a: Number
    change: Number
    row: int | None = None
    family: str | None = None


@dataclass(frozen=True)
class DropEffect:
    """How many rows were dropped for a reason, how many of them have a loss, and what a would be with those kept; None
    where none has a loss, or where `refused` says why that cannot be fitted."""

    reason: str
    rows: int
    rows_with_loss: int
    a: Number | None = None
    change: Number | None = None
    refused: str | None = None


@dataclass(frozen=True)
class ConventionEffect:
    """a and b where N and C are counted in another way, or why that is refused."""

    N: str
    C: str
    a: Number | None = None
    b: Number | None = None
    change: Number | None = None
    params: dict[str, Number] | None = None
    refused: str | None = None


def leave_out(rows: Rows, solution: Solution, flops: frontier.FlopsModel) -> list[LeaveOut]:
    """The effect on a of leaving out each row used, and each family of several rows: the SHOWN largest changes, largest
    first. Empty for a form without a."""
    groups: list[tuple[int | None, str | None, np.ndarray]] = []
    families, family_n = np.unique(rows.family.astype(str), return_inverse=True)
    if len(rows.row) ** 2 <= MOST_WORK:
        groups += [(int(row), None, rows.row == row) for row in rows.row]
    if 2 < len(families) < len(rows.row) and len(families) * len(rows.row) <= MOST_WORK:
        groups += [(None, str(label), family_n == f) for f, label in enumerate(families)]
    if not groups:
        return []
    weight_Bn = 1.0 - np.stack([out_n for _, _, out_n in groups])
    theta_BP = refit(solution, np.log(rows.loss), weight_Bn)
    try:
        whole = float(frontier.exponents(solution.law, solution.params, flops)[0])
        a_B = frontier.exponents(solution.law, solution.bound.to_params(theta_BP), flops)[0]
    except UserError:
        return []
    order = np.argsort(-np.abs(a_B - whole), kind="stable")[:SHOWN]
    return [LeaveOut(float(a_B[i]), float(a_B[i] - whole), groups[i][0], groups[i][1]) for i in order]


def effect_of_drops(
    rows: Rows, law: Law, objective: Objective, flops: frontier.FlopsModel, a: float | None
) -> list[DropEffect]:
    """For each reason, what a would be had its rows (those with a loss and the form's variables) been kept."""
    reason_of = {d.row: d.shown for d in rows.dropped}
    unused_reason = np.array([reason_of[int(row)] for row in rows.unused["row"]], dtype=object)
    asked = ("N", "D", "C", "loss", *(name for name in law.variables if name in rows.extra))
    whole_m = np.all([np.isfinite(rows.unused[name]) & (rows.unused[name] > 0) for name in asked], axis=0)
    found = []
    for reason in dict.fromkeys(reason_of.values()):
        count = sum(r == reason for r in reason_of.values())
        kept_m = whole_m & (unused_reason == reason)
        effect = DropEffect(reason, count, int(kept_m.sum()))
        if kept_m.any():
            try:
                a_with = _a_with(rows, kept_m, law, objective, flops)
                effect = replace(effect, a=a_with, change=_difference(a_with, a))
            except UserError as refusal:
                effect = replace(effect, refused=str(refusal))
            except np.linalg.LinAlgError:  # rows that were dropped may be anything
                effect = replace(effect, refused="with these rows the search breaks down: no effect known")
        found.append(effect)
    return found


def _a_with(rows: Rows, kept_m: np.ndarray, law: Law, objective: Objective, flops: frontier.FlopsModel) -> float:
    """a of the law fitted to the rows used and those of the unused ones that `kept_m` names."""
    used = rows.variables()
    x = {name: np.append(used[name], rows.unused[name][kept_m]) for name in used if name != "M"}
    x["M"] = x["D"] / x["N"]
    loss_n = np.append(rows.loss, rows.unused["loss"][kept_m])
    weight_n = np.append(rows.weight, np.ones(int(kept_m.sum())))
    with_them = solve(law, x, loss_n, objective, weight_n)
    return float(frontier.exponents(law, with_them.params, flops)[0])


def conventions(
    alternatives: Sequence[Rows], law: Law, objective: Objective, a: float | None
) -> list[ConventionEffect]:
    """a and b under other ways of counting N and C (Pearce & Song 2024, arXiv 2406.12907; Porian et al. 2024)."""
    found = []
    for rows in alternatives:
        effect = ConventionEffect(rows.convention.N, rows.convention.C)
        try:
            params = solve(law, rows.variables(), rows.loss, objective, rows.weight).params
            flops = frontier.measure_flops(rows.N, rows.D, rows.C)
            other_a, other_b = (float(v) for v in frontier.exponents(law, params, flops))
            effect = replace(effect, a=other_a, b=other_b, change=_difference(other_a, a), params=params)
        except UserError as refusal:
            effect = replace(effect, refused=str(refusal))
        found.append(effect)
    return found


def _difference(a: float, before: float | None) -> float | None:
    return None if before is None else a - before
