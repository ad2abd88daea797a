"""How far the exponent a hangs on single rows, on what was dropped, and on how N and C are counted."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sweep.common.errors import UserError
from sweep.fit import frontier
from sweep.fit.bootstrap import refit
from sweep.fit.laws import Law
from sweep.fit.minimise import Objective
from sweep.fit.solve import Solution, solve
from sweep.fit.table import Rows

MOST_WORK = 4_000_000  # rows times refits: above it nothing is left out row by row, or family by family
SHOWN = 20


def leave_out(rows: Rows, solution: Solution, flops: frontier.FlopsModel) -> list[dict[str, Any]]:
    """The effect on a of leaving out each row used, and each family of several rows: the SHOWN largest changes,
    {"row" or "family", "a", "change"}. Empty for a form without a."""
    groups: list[tuple[str, Any, np.ndarray]] = []
    families, family_n = np.unique(rows.family.astype(str), return_inverse=True)
    if len(rows.row) ** 2 <= MOST_WORK:
        groups += [("row", int(row), rows.row == row) for row in rows.row]
    if 2 < len(families) < len(rows.row) and len(families) * len(rows.row) <= MOST_WORK:
        groups += [("family", str(label), family_n == f) for f, label in enumerate(families)]
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
    return [{groups[i][0]: groups[i][1], "a": float(a_B[i]), "change": float(a_B[i] - whole)} for i in order]


def effect_of_drops(
    rows: Rows, law: Law, objective: Objective, flops: frontier.FlopsModel, a: float
) -> list[dict[str, Any]]:
    """For each reason, what a would be had its rows (those with a loss and the form's variables) been kept."""
    reason_of = {d.row: d.shown for d in rows.dropped}
    unused_reason = np.array([reason_of[int(row)] for row in rows.unused["row"]], dtype=object)
    asked = ("N", "D", "C", "loss", *(name for name in law.variables if name in rows.extra))
    whole_m = np.all([np.isfinite(rows.unused[name]) & (rows.unused[name] > 0) for name in asked], axis=0)
    found = []
    for reason in dict.fromkeys(reason_of.values()):
        count = sum(r == reason for r in reason_of.values())
        kept_m = whole_m & (unused_reason == reason)
        entry: dict[str, Any] = {"reason": reason, "rows": count, "rows_with_loss": int(kept_m.sum())}
        if kept_m.any():
            used = rows.variables()
            x = {name: np.append(used[name], rows.unused[name][kept_m]) for name in used if name != "M"}
            x["M"] = x["D"] / x["N"]
            loss_n = np.append(rows.loss, rows.unused["loss"][kept_m])
            try:
                weight_n = np.append(rows.weight, np.ones(int(kept_m.sum())))
                with_them = solve(law, x, loss_n, objective, weight_n)
                a_with = float(frontier.exponents(law, with_them.params, flops)[0])
                entry |= {"a": a_with, "change": a_with - a}
            except UserError as refusal:
                entry["refused"] = str(refusal)
            except np.linalg.LinAlgError:  # rows that were dropped may be anything
                entry["refused"] = "with these rows the search breaks down: no effect known"
        found.append(entry)
    return found


def conventions(alternatives: Sequence[Rows], law: Law, objective: Objective, a: float) -> list[dict[str, Any]]:
    """a and b under other ways of counting N and C: {"N", "C", "a", "b", "change"}, or "refused"."""
    found = []
    for rows in alternatives:
        entry: dict[str, Any] = dict(rows.convention)
        try:
            params = solve(law, rows.variables(), rows.loss, objective, rows.weight).params
            flops = frontier.measure_flops(rows.N, rows.D, rows.C)
            other_a, other_b = (float(v) for v in frontier.exponents(law, params, flops))
            entry |= {"a": other_a, "b": other_b, "change": other_a - a, "params": params}
        except UserError as refusal:
            entry["refused"] = str(refusal)
        found.append(entry)
    return found
