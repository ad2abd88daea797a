"""Draws `sweep.report.figure_spec` figures with matplotlib, as PNG and SVG files for papers."""

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FixedLocator, NullLocator

from sweep.report.axes import MARKERS, contour_levels, hex_color, log_range, tick_texts, tick_values
from sweep.report.figure_spec import Figure, Panel, Series

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
