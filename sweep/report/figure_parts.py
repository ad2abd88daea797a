"""Pieces that several figures share: axes, lines, points, the frontier, what the fit says of approaches and rows."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from sweep.common.units import short
from sweep.fit import isoflop
from sweep.fit.fit_file import Residual
from sweep.fit.frontier import Approach, Optimum
from sweep.fit.holdout import PredictedRow
from sweep.report import answers
from sweep.report.figure_spec import Axis, Color, Series
from sweep.report.format import power
from sweep.report.results import Results


@dataclass(frozen=True)
class Style:
    """How an approach to the frontier is named and drawn."""

    label: str
    color: Color
    marker: Literal["circle", "diamond", "star", "square"]


APPROACHES = {
    "parametric": Style("parametric", "vermillion", "circle"),
    "isoflop_parabola": Style("isoFLOP, parabola", "blue", "diamond"),
    "isoflop_akima": Style("isoFLOP, Akima", "green", "star"),
    "envelope": Style("envelope (undecayed)", "ink", "square"),
}


def compute_axis() -> Axis:
    return Axis("compute C (FLOPs)", log=True, ticks="power")


def size_axis(results: Results) -> Axis:
    counted = {"params_non_embedding": "non-embedding", "params_total": "with embeddings"}
    how = counted.get(results.columns["N"]) if results.foreign is None else results.foreign.get("N")
    return Axis(f"parameters N ({how})" if how else "parameters N", log=True, ticks="size")


def tokens_axis() -> Axis:
    return Axis("training tokens D", log=True, ticks="size")


def floats(values: Iterable[float]) -> list[float]:
    return [float(value) for value in values]


def line(x: Iterable[float], y: Iterable[float], name: str, color: Color, **style: Any) -> Series:
    return Series("line", name, floats(x), floats(y), color=color, **style)


def points(
    rows: pd.DataFrame, x: str, y: str, name: str, color: Color, *, id_column: str | None = "trial_id", **style: Any
) -> Series:
    hover = [] if id_column is None or id_column not in rows else [str(each) for each in rows[id_column]]
    return Series("points", name, floats(rows[x]), floats(rows[y]), color=color, hover=hover, **style)


def joined(
    rows: pd.DataFrame, x: str, y: str, name: str, color: Color, dash: Any = "solid", marker: Any = "circle"
) -> list[Series]:
    dots = points(rows, x, y, name, color, marker=marker, size=5)
    return [line(rows[x], rows[y], name, color, dash=dash, width=1.2), dots]


def shades(values: Iterable[float]) -> dict[float, float]:
    """Each distinct value's place on the colour scale, by rank, smallest first."""
    distinct = sorted(set(values))
    return {value: rank / max(1, len(distinct) - 1) for rank, value in enumerate(distinct)}


def nearest(values: pd.Series, levels: Sequence[float]) -> pd.Series:
    """The level nearest to each value, by ratio."""
    distance = np.abs(np.log(values.to_numpy()[:, None]) - np.log(np.asarray(levels))[None, :])
    return pd.Series(np.asarray(levels)[distance.argmin(axis=1)], index=values.index)


def few(values: pd.Series) -> list[float]:
    """The distinct values, for ticks, if they are few."""
    distinct = sorted(values.unique())
    return floats(distinct) if len(distinct) <= 8 else []


def padded(low: float, high: float, share: float = 0.05) -> tuple[float, float]:
    room = share * (high - low) or 0.05
    return float(low - room), float(high + room)


def with_trial_ids(results: Results, rows: Sequence[Residual] | Sequence[PredictedRow]) -> pd.DataFrame:
    """Rows of the fit, which name trials by their position in the table, as a frame with their trial ids."""
    frame = pd.DataFrame([vars(row) for row in rows])
    frame["trial_id"] = [results.trial_ids.get(row.row, str(row.row)) for row in rows]
    return frame


def optima_frame(optima: Sequence[Optimum]) -> pd.DataFrame:
    """C, N, D and loss_nats of the optima of an approach, smallest C first."""
    frame = pd.DataFrame([(o.C, o.N, o.D, o.loss_nats) for o in optima], columns=["C", "N", "D", "loss_nats"])
    return frame.sort_values("C")


def approach(results: Results, name: str) -> Approach:
    """An approach of the fit; an empty one where there is no fit."""
    return results.fit.approaches.get(name, Approach()) if results.fit is not None else Approach()


def refusals(approach: Approach) -> list[str]:
    """Why an approach refused the budgets that it refused, a line for each reason."""
    by_reason: dict[str, list[str]] = {}
    for budget in approach.budgets_refused:
        by_reason.setdefault(budget.reason, []).append(power(budget.C))
    return [f"at {', '.join(budgets)} FLOPs {reason}" for reason, budgets in by_reason.items()]


def references(results: Results, spread: tuple[float, float]) -> list[Series]:
    """The reference lines that lie within a loss axis's range; those too close to tell apart share one label."""
    (low, high), room = spread, 0.02 * (spread[1] - spread[0])
    inside = sorted((nats, name) for name, nats in results.reference_lines.items() if low + room <= nats <= high - room)
    lines: list[Series] = []
    for nats, name in inside:
        label = f"{name} {nats:.2f}"
        if lines and nats - lines[-1].y[0] < 0.04 * (high - low):
            label = f"{lines[-1].name}, {label}"
            lines[-1] = Series("reference", "", y=lines[-1].y, color="gray", dash="dash", width=1)
        lines.append(Series("reference", label, y=[nats], color="gray", dash="dash", width=1))
    return lines


def curve_lines(results: Results, x: str, y: str, shades: dict[float, float], named: bool = False) -> list[Series]:
    """One line per size that holds the curves of all its trials, with gaps (NaN) between them.

    The stable part that trials of one family share is drawn once: another trial's line starts where it leaves it.
    """
    curves = results.curves.dropna(subset=[x, y])
    lines = []
    for size, of_size in curves.groupby("params_non_embedding"):
        pieces, drawn = [], set[tuple[str, int, float]]()
        for _, curve in sorted(of_size.groupby("trial_id"), key=lambda item: -item[1]["tokens"].max()):
            curve = curve.sort_values("step")
            points = list(zip(curve["family_id"], curve["step"], curve[y], strict=True))
            shared = next((place for place, point in enumerate(points) if point not in drawn), len(points))
            drawn.update(points)
            pieces += [curve.iloc[max(0, shared - 1) :][[x, y]].to_numpy(float), np.full((1, 2), np.nan)]
        xy = np.concatenate(pieces[:-1])
        name = short(float(size)) if named else ""
        lines.append(line(xy[:, 0], xy[:, 1], name, shades.get(size, 0.5), width=1.1, opacity=0.75))
    return lines


def budgets(results: Results) -> dict[float, pd.DataFrame]:
    """Finished trials by compute budget, for budgets trained at two or more sizes."""
    rows = results.finished
    if rows.empty:
        return {}
    groups = isoflop.budgets(*(rows[letter].to_numpy(float) for letter in ("N", "D", "C")))
    return {group.C: rows[np.asarray(group.average_mn.sum(axis=0)).ravel() > 0] for group in groups}


def frontier_line(results: Results, reach: float = 10) -> list[Series]:
    """The least loss at each compute by the fit; dashed beyond the compute of the largest finished run."""
    fit = answers.fitted_law(results)
    if isinstance(fit, str):
        return []
    C = results.finished["C"]
    within, beyond = np.geomspace(C.min() / 2, C.max(), 40), np.geomspace(C.max(), C.max() * reach, 20)
    x, lower, upper = answers.band(fit, np.append(within, beyond[1:]), "loss_nats")
    band = Series("band", "90% interval", x, lower=lower, upper=upper, color="vermillion")
    name, color = "frontier (parametric)", "vermillion"
    lines = [
        line(part, fit.optimum(part)[2], name, color, dash=dash, width=2.5)
        for part, dash in ((within, "solid"), (beyond, "dash"))
    ]
    return [band, *lines] if x else lines


def envelope_line(results: Results) -> list[Series]:
    optima = optima_frame(approach(results, "envelope").optima)
    if optima.empty:
        return []
    return [line(optima["C"], optima["loss_nats"], APPROACHES["envelope"].label, "ink", dash="dot", width=2)]
