"""How the colours, markers, ranges and ticks of a figure are chosen, whichever library draws it."""

import math
from collections.abc import Sequence

import matplotlib

from sweep.common.units import short
from sweep.report.figure_spec import Axis, Color, Panel, Series
from sweep.report.format import power, significant

# Okabe and Ito's colours, which stay apart for colour-blind readers; sizes and budgets use viridis below its yellow.
PALETTE = {
    "ink": "#222222",
    "gray": "#767676",
    "vermillion": "#D55E00",
    "blue": "#0072B2",
    "green": "#009E73",
}
VIRIDIS_END = 0.9
MARKERS = {  # ours → matplotlib, plotly
    "circle": ("o", "circle"),
    "open": ("o", "circle-open"),
    "diamond": ("d", "diamond"),
    "star": ("*", "star"),
    "cross": ("x", "x"),
    "square": ("s", "square"),
    "triangle": ("^", "triangle-up"),
}


def hex_color(color: Color) -> str:
    """A palette role or a place from 0 to 1 on the viridis scale, as #rrggbb."""
    if isinstance(color, str):
        return PALETTE[color]
    rgb = matplotlib.colormaps["viridis"](VIRIDIS_END * min(1.0, max(0.0, color)))[:3]
    return "#" + "".join(f"{round(255 * channel):02x}" for channel in rgb)


def tick_values(axis: Axis, low: float, high: float) -> list[float]:
    """Readable places for ticks of a log axis from `low` to `high`: decades, or 1-3, 1-2-5 where the span is short."""
    if axis.at:
        return list(axis.at)
    decades = math.log10(high / low)
    steps: Sequence[float] = (1,) if decades > 4 else (1, 3) if decades > 1.8 else (1, 2, 5)
    if decades < 0.7:
        steps = (1, 2, 3, 5) if axis.ticks == "power" else (1, 1.5, 2, 3, 4, 5, 6, 8)
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    skip = 1 + int(decades // 10)
    values = [step * 10.0**e for e in range(first, last + 1, skip) for step in steps]
    return [value for value in values if low * 0.999 <= value <= high * 1.001]


def tick_texts(axis: Axis, values: Sequence[float]) -> list[str]:
    """How the ticks of this axis are written: powers of ten only where plain numbers would be long."""
    if axis.ticks == "power" and values and not 0.01 <= min(values) <= max(values) < 10_000:
        return [power(value) for value in values]
    return [short(value) if axis.ticks == "size" and value >= 1 else significant(value) for value in values]


def log_range(panel: Panel, which: str) -> tuple[float, float]:
    """The range in data units that a log axis of this panel must show: its own, or all of its series with some room."""
    axis = getattr(panel, which)
    if axis.range:
        return axis.range
    values = [
        value
        for series in panel.series
        if series.kind != "reference"
        for numbers in (series.x if which == "x" else (*series.y, *series.lower, *series.upper),)
        for value in numbers
        if math.isfinite(value) and value > 0
    ]
    if not values:
        return (1.0, 10.0)
    low, high = min(values), max(values)
    room = max((high / low) ** 0.04, 1.08)
    return low / room, high * room


def contour_levels(series: Series) -> list[float]:
    """The multiples of a contour's step that its values reach."""
    low, high = min(map(min, series.z)), max(map(max, series.z))
    return [
        round(place * series.step, 6)
        for place in range(math.ceil(low / series.step), math.floor(high / series.step) + 1)
    ]
