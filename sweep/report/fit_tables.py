"""The fit as the tables of the report show it."""

from dataclasses import fields, replace

from sweep.fit import laws
from sweep.fit.fit_file import Fit
from sweep.fit.frontier import Approach
from sweep.fit.sensitivity import LeaveOut
from sweep.fit.solve import Certificate
from sweep.report import answers
from sweep.report.figure_parts import APPROACHES, refusals
from sweep.report.format import significant
from sweep.report.report_file import ApproachRow, DroppedTrial, FitTables, LeaveOutRow, ParameterRow
from sweep.report.results import Results

MEANINGS = {
    "E": "floor: the loss that no compute goes below (nats per token)",
    "A": "coefficient of the size term",
    "B": "coefficient of the tokens term",
    "alpha": "exponent of size (4/d by Sharma and Kaplan 2020, d the intrinsic dimension of the data)",
    "beta": "exponent of tokens",
    "a": "exponent of the compute-optimal size, N ∝ C^a",
    "b": "exponent of the compute-optimal tokens, D ∝ C^b",
}
MOST_LEFT_OUT = 8  # rows and families whose leaving out is shown


def fit_tables(results: Results) -> FitTables | None:
    """None where there is no fit."""
    fit = results.fit
    if fit is None:
        return None
    return FitTables(
        form=fit.form,
        formula=laws.law_named(fit.form).formula,
        objective=f"{fit.objective}, δ = {fit.delta:g}; value {significant(fit.objective_value)}",
        columns=results.columns,
        n_rows=fit.n_rows,
        n_families=fit.n_families,
        counted=fit.rows_and_families,
        flops_model=fit.flops_model,
        rows=_parameters(fit),
        approaches=[_approach(name, approach) for name, approach in fit.approaches.items()],
        certificate=_certificate(fit.certificate),
        dropped=[
            DroppedTrial(**vars(row), trial_id=results.trial_ids.get(row.row, str(row.row))) for row in fit.dropped
        ],
        bootstrap=fit.bootstrap,
        seed_noise=fit.seed_noise,
        floors=fit.floors,
        crossing=fit.crossing,
        dimension=fit.dimension,
        leave_out=[LeaveOutRow(**vars(each), what=_left_out(results, each)) for each in fit.leave_out[:MOST_LEFT_OUT]],
        effect_of_drops=fit.effect_of_drops,
        conventions=fit.conventions,
        extrapolation=answers.extrapolation(fit.holdout),
        holdout=[replace(cut, rows=[]) for cut in fit.holdout],
    )


def _parameters(fit: Fit) -> list[ParameterRow]:
    """The parameters of the law, then the exponents of the frontier."""
    values: dict[str, float | None] = {**fit.params, "a": fit.exponents.a, "b": fit.exponents.b}
    return [
        ParameterRow(
            name, value, fit.interval(name), MEANINGS.get(name, ""), "law" if name in fit.params else "frontier"
        )
        for name, value in values.items()
    ]


def _approach(name: str, approach: Approach) -> ApproachRow:
    both = approach.intervals
    notes = [approach.refused, *(f"refused {reason}" for reason in refusals(approach)), approach.note]
    return ApproachRow(
        key=name,
        label=APPROACHES[name].label if name in APPROACHES else name,
        a=approach.a,
        b=approach.b,
        a_interval=both.a if both else None,
        b_interval=both.b if both else None,
        n_optima=len(approach.optima),
        note="; ".join(filter(None, notes)),
    )


def _left_out(results: Results, each: LeaveOut) -> str:
    if each.row is None:
        return f"family {each.family}"
    return f"trial {results.trial_ids.get(each.row, str(each.row))}"


def _certificate(certificate: Certificate) -> list[tuple[str, str]]:
    """Each part of the certificate by name, in words."""
    values = vars(certificate)
    return [(field.name.replace("_", " "), _in_words(values[field.name])) for field in fields(certificate)]


def _in_words(value: bool | float | str | list[str]) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return significant(value)
    return (", ".join(value) or "none") if isinstance(value, list) else str(value)
