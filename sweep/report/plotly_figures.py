"""Draws `sweep.report.figure_spec` figures as plotly's JSON, for the page and for W&B."""

import math
from typing import Any

from sweep.common.plain import plain
from sweep.report.axes import MARKERS, PALETTE, contour_levels, hex_color, log_range, tick_texts, tick_values
from sweep.report.figure_spec import Axis, Figure, Panel, Series

Json = dict[str, Any]  # of plotly's schema (plotly.com/javascript/reference)


def plotly(figure: Figure) -> Json:
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


def _plotly_trace(panel: Panel, series: Series) -> Json:
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
    trace: Json = {"type": "scatter", "x": series.x, "y": series.y, "opacity": series.opacity}
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


def _plotly_reference(series: Series, suffix: str) -> tuple[Json, Json]:
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


def _plotly_layout(figure: Figure) -> Json:
    layout: Json = {
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


def _plotly_axis(panel: Panel, which: str) -> Json:
    axis = getattr(panel, which)
    style: Json = {
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
