"""What a figure is, apart from how it is drawn: panels, axes with units, and series of a few kinds.

`figures.py` makes these from a sweep's results; `matplotlib_figures.py` and `plotly_figures.py` draw them.
All numbers are in data units; a NaN in a line is a gap.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sweep.common.artefacts import Number

Numbers = Sequence[Number]
# A number from 0 to 1 is a place on the viridis scale (sizes, budgets); a name is a role in axes.PALETTE.
Color = float | str


@dataclass(frozen=True)
class Axis:
    """`label` includes the unit. `ticks` is how they are written: 3.4 (number), 10¹¹ (power), 3.2k (size); `at` is
    where they are, for an axis of a few values that were chosen."""

    label: str
    log: bool = False
    ticks: Literal["number", "power", "size"] = "number"
    range: tuple[float, float] | None = None
    at: Numbers = ()


@dataclass(frozen=True)
class Series:
    """One thing drawn in a panel. Series of one name share one entry in the legend; no name, no entry.

    line, points: `x`, `y`. band: `x`, `lower`, `upper`. contour: `x`, `y`, `z[i][j]` at (x[j], y[i]), and `step`.
    reference: a horizontal line at `y[0]` across the panel, with its name written on it.
    """

    kind: Literal["line", "points", "band", "contour", "reference"]
    name: str = ""
    x: Numbers = ()
    y: Numbers = ()
    lower: Numbers = ()
    upper: Numbers = ()
    z: Sequence[Numbers] = ()
    step: float = 1.0  # between contour levels, which are its multiples
    color: Color = "ink"
    dash: Literal["solid", "dash", "dot"] = "solid"
    width: float = 1.6
    opacity: float = 1.0
    marker: Literal["circle", "open", "diamond", "star", "cross", "square", "triangle"] = "circle"
    size: float = 6.0
    hover: Sequence[str] = ()


@dataclass(frozen=True)
class Panel:
    """One pair of axes and what is drawn in it, first series at the back."""

    x: Axis
    y: Axis
    series: Sequence[Series]
    title: str = ""


@dataclass(frozen=True)
class Figure:
    """A figure of one or two panels side by side; `caption` says how to read it and what is missing from it."""

    key: str
    title: str
    panels: Sequence[Panel]
    caption: str = ""
    legend_title: str = ""


@dataclass(frozen=True)
class LeftOut:
    """A figure that this sweep has no data for, and why."""

    key: str
    title: str
    reason: str
