"""Draws `sweep.report.figure_spec` figures: with matplotlib for papers (PNG, SVG), as plotly JSON for the page."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FixedLocator, NullLocator

from sweep.common.plain import plain
from sweep.common.units import short
from sweep.report.figure_spec import Axis, Color, Figure, Panel, Series
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
FONT = "DejaVu Sans"
MATPLOTLIB_STYLE: Any = {
    "font.family": FONT,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.title_fontsize": 9,
    "svg.hashsalt": "sweep",  # the same figure gives the same file
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


# ---- matplotlib ------------------------------------------------------------------------------------------------


def save(figure: Figure, folder: Path) -> list[Path]:
    """Write `folder/<key>.png` (180 dpi) and `folder/<key>.svg`; returns the paths."""
    with matplotlib.rc_context(MATPLOTLIB_STYLE):
        canvas = _canvas(figure)
        png, svg = _paths(figure.key, folder)
        canvas.savefig(png, dpi=180)
        canvas.set_layout_engine("none")  # laid out once is enough
        canvas.savefig(svg, metadata={"Date": None})
    return [png, svg]


def remove(key: str, folder: Path) -> None:
    """Remove what `save` wrote for a figure, if it did."""
    for path in _paths(key, folder):
        path.unlink(missing_ok=True)


def _paths(key: str, folder: Path) -> tuple[Path, Path]:
    return folder / f"{key}.png", folder / f"{key}.svg"


def _canvas(figure: Figure) -> Canvas:
    wide = len(figure.panels) > 1
    canvas = Canvas(figsize=(10.5 if wide else 7.2, 4.4), layout="constrained")
    axes = canvas.subplots(1, len(figure.panels), squeeze=False)[0]
    for ax, panel in zip(axes, figure.panels, strict=True):
        for series in panel.series:
            _draw(ax, series)
        _dress(ax, panel)
    entries: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            # the line and the points of one series share an entry: both handles drawn over each other
            entries[label] = (*entries.get(label, ()), handle) if len(entries.get(label, ())) < 2 else entries[label]
    if entries:
        canvas.legend(
            list(entries.values()),
            list(entries),
            loc="outside right upper",
            title=figure.legend_title or None,
        )
    canvas.suptitle(figure.title, fontsize=12, fontweight="bold", x=0.01, ha="left")
    return canvas


def _draw(ax: Axes, series: Series) -> None:
    color, label = hex_color(series.color), series.name or None
    style: dict[str, Any] = {"color": color, "alpha": series.opacity, "label": label}
    lines = {"solid": "-", "dash": "--", "dot": ":"}
    if series.kind == "line":
        ax.plot(series.x, series.y, linestyle=lines[series.dash], linewidth=series.width, **style)
    elif series.kind == "points":
        face = "none" if series.marker == "open" else color
        edge = color if series.marker in ("open", "cross") else "white"
        ax.plot(
            series.x,
            series.y,
            linestyle="none",
            marker=MARKERS[series.marker][0],
            markersize=series.size,
            markerfacecolor=face,
            markeredgecolor=edge,
            markeredgewidth=1.2 if series.marker in ("open", "cross") else min(0.6, series.size / 12),
            **style,
        )
    elif series.kind == "band":
        ax.fill_between(series.x, series.lower, series.upper, color=color, alpha=0.2, linewidth=0, label=label)
    elif series.kind == "contour":
        drawn = ax.contour(series.x, series.y, series.z, levels=contour_levels(series), cmap="viridis", linewidths=1.1)
        ax.clabel(drawn, fontsize=8, fmt="%g")
    elif series.kind == "reference":
        ax.axhline(series.y[0], color=color, linestyle=lines[series.dash], linewidth=series.width)
        ax.annotate(
            series.name,
            (1.0, series.y[0]),
            xycoords=ax.get_yaxis_transform(),
            xytext=(-2, 2),
            textcoords="offset points",
            ha="right",
            fontsize=8,
            color=color,
            bbox={"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 0.5},
        )


def _dress(ax: Axes, panel: Panel) -> None:
    ax.set_title(panel.title, fontsize=10, loc="left")
    for which, axis in (("x", panel.x), ("y", panel.y)):
        side = getattr(ax, f"{which}axis")
        side.set_label_text(axis.label)
        if axis.log:
            low, high = log_range(panel, which)
            getattr(ax, f"set_{which}scale")("log")
            getattr(ax, f"set_{which}lim")(low, high)
            ticks = tick_values(axis, low, high)
            side.set_major_locator(FixedLocator(ticks))
            side.set_minor_locator(NullLocator())
            side.set_ticklabels(tick_texts(axis, ticks))
        elif axis.range:
            getattr(ax, f"set_{which}lim")(*axis.range)


# ---- plotly ----------------------------------------------------------------------------------------------------


def plotly(figure: Figure) -> dict[str, Any]:
    """The figure as plotly's `{"data": [...], "layout": {...}}`, ready for JSON."""
    data, in_legend = [], set[str]()
    layout = _plotly_layout(figure)
    for number, panel in enumerate(figure.panels, start=1):
        suffix = "" if number == 1 else str(number)
        for series in panel.series:
            if series.kind == "reference":
                line, label = _plotly_reference(series, suffix)
                layout["shapes"].append(line)
                layout["annotations"].append(label)
                continue
            trace = _plotly_trace(panel, series) | {"xaxis": "x" + suffix, "yaxis": "y" + suffix}
            if series.name:
                trace |= {
                    "name": series.name,
                    "legendgroup": series.name,
                    "showlegend": series.name not in in_legend,
                }
                in_legend.add(series.name)
            else:
                trace["showlegend"] = False
            data.append(trace)
    return plain({"data": data, "layout": layout})


def _plotly_trace(panel: Panel, series: Series) -> dict[str, Any]:
    color = hex_color(series.color)
    if series.kind == "contour":
        levels = contour_levels(series)
        span = {"start": levels[0], "end": levels[-1], "size": series.step}
        return {
            "type": "contour",
            "x": series.x,
            "y": series.y,
            "z": series.z,
            "colorscale": "Viridis",
            "showscale": False,
            "contours": {"coloring": "lines", "showlabels": True} | span,
            "line": {"width": 1.3},
            "hovertemplate": "N %{x:.3s}<br>D %{y:.3s}<br>L %{z:.3f}<extra></extra>",
        }
    if series.kind == "band":
        there_and_back = [*series.x, *reversed(series.x)]
        return {
            "type": "scatter",
            "mode": "lines",
            "x": there_and_back,
            "y": [*series.upper, *reversed(series.lower)],
            "fill": "toself",
            "fillcolor": color + "33",
            "line": {"width": 0},
            "hoverinfo": "skip",
        }
    x_format, y_format = (_hover_format(axis) for axis in (panel.x, panel.y))
    trace: dict[str, Any] = {"type": "scatter", "x": series.x, "y": series.y, "opacity": series.opacity}
    trace["hovertemplate"] = f"%{{text}}<br>{x_format.replace('?', 'x')}, {y_format.replace('?', 'y')}<extra></extra>"
    if series.hover:
        trace["text"] = [_html(text) for text in series.hover]
    else:
        trace["hovertemplate"] = trace["hovertemplate"].replace("%{text}<br>", "")
    if series.kind == "line":
        line = {"color": color, "width": series.width * 1.2, "dash": series.dash}
        return trace | {"mode": "lines", "line": line, "connectgaps": False}
    marker = {"color": color, "symbol": MARKERS[series.marker][1], "size": series.size * 1.3}
    if series.marker != "open":
        marker["line"] = {"color": "white", "width": min(0.7, series.size / 12)}
    return trace | {"mode": "markers", "marker": marker}


def _html(text: str) -> str:
    """Plotly's labels understand a little HTML: text from data must not."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _hover_format(axis: Axis) -> str:
    return "%{?:.4s}" if axis.ticks == "size" else "%{?:.3e}" if axis.ticks == "power" else "%{?:.4f}"


def _plotly_reference(series: Series, suffix: str) -> tuple[dict[str, Any], dict[str, Any]]:
    color, where = hex_color(series.color), {"xref": f"x{suffix} domain", "yref": f"y{suffix}"}
    line = {"color": color, "width": series.width, "dash": series.dash}
    shape = {
        "type": "line",
        "x0": 0,
        "x1": 1,
        "y0": series.y[0],
        "y1": series.y[0],
        "line": line,
        "layer": "below",
    }
    label = {
        "x": 1,
        "y": series.y[0],
        "text": _html(series.name),
        "showarrow": False,
        "xanchor": "right",
        "yanchor": "bottom",
    }
    return shape | where, label | where | {
        "font": {"size": 11, "color": color},
        "bgcolor": "rgba(255,255,255,0.7)",
        "borderpad": 0,
    }


def _plotly_layout(figure: Figure) -> dict[str, Any]:
    layout: dict[str, Any] = {
        "font": {
            "family": "system-ui, 'Segoe UI', Helvetica, Arial, sans-serif",
            "size": 13,
            "color": PALETTE["ink"],
        },
        "plot_bgcolor": "white",
        "paper_bgcolor": "white",
        "hovermode": "closest",
        "margin": {"l": 70, "r": 20, "t": 36, "b": 55},
        "height": 470,
        "legend": {"title": {"text": figure.legend_title}, "font": {"size": 12}, "tracegroupgap": 2},
        "shapes": [],
        "annotations": [],
    }
    count = len(figure.panels)
    for number, panel in enumerate(figure.panels, start=1):
        suffix = "" if number == 1 else str(number)
        start, end = (
            (number - 1) / count + (0.05 if number > 1 else 0),
            number / count - (0.05 if number < count else 0),
        )
        layout["xaxis" + suffix] = _plotly_axis(panel, "x") | {"domain": [start, end], "anchor": "y" + suffix}
        layout["yaxis" + suffix] = _plotly_axis(panel, "y") | {"anchor": "x" + suffix}
        if panel.title:
            where = {
                "xref": "paper",
                "yref": "paper",
                "x": start,
                "xanchor": "left",
                "y": 1,
                "yanchor": "bottom",
            }
            layout["annotations"].append({"text": panel.title, "showarrow": False, "font": {"size": 13}} | where)
    return layout


def _plotly_axis(panel: Panel, which: str) -> dict[str, Any]:
    axis = getattr(panel, which)
    style: dict[str, Any] = {
        "title": {"text": axis.label, "standoff": 8},
        "gridcolor": "#e6e6e6",
        "linecolor": "#888888",
        "zeroline": False,
        "showline": True,
        "ticks": "outside",
        "automargin": True,
    }
    if axis.log:
        low, high = log_range(panel, which)
        ticks = tick_values(axis, low, high)
        style |= {"type": "log", "range": [math.log10(low), math.log10(high)], "tickvals": ticks}
        style["ticktext"] = tick_texts(axis, ticks)
        style["exponentformat"] = "power" if axis.ticks == "power" else "B"  # for when the page zooms: see report.html
    elif axis.range:
        style["range"] = axis.range
    return style
