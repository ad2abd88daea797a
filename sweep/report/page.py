"""The interactive page: one HTML file with plotly.js, figures and data inside, which loads nothing from anywhere.

The template is report.html and its script report.js, beside this file. Jinja escapes everything that comes from data,
and texts that models wrote reach the page only as JSON that the script sets as text.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jinja2
import plotly
from markupsafe import Markup

from sweep.common.plain import plain
from sweep.common.units import duration, short
from sweep.report.format import dollars, power, significant
from sweep.report.plotly_figures import Json
from sweep.report.report_file import Cell, Report

HERE = Path(__file__).parent
PLOTLY_JS = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"


def render(report: Report, figures: dict[str, Json]) -> str:
    """The page as HTML; `figures` maps a figure's key to plotly's JSON."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters |= {
        "short": _or_dash(short),
        "power": _or_dash(power),
        "significant": _or_dash(significant),
        "duration": _or_dash(duration),
        "nats": _or_dash("{:.3f}".format),
        "signed": _or_dash("{:+.2g}".format),
        "dollars": _or_dash(dollars),
        "span": _span,
        "cell": _cell,
    }
    page_data = {"figures": figures, "calculator": plain(report.calculator), "samples": plain(report.samples)}
    return environment.from_string(_read(HERE / "report.html")).render(
        r=report,
        page_data=page_data,
        plotly_js=Markup(_read(PLOTLY_JS)),
        page_js=Markup(_read(HERE / "report.js")),
    )


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _or_dash(written: Callable[..., str]) -> Callable[..., str]:
    """A number as `written` writes it, and a dash for an unknown one."""
    return lambda value, *digits: "–" if value is None or math.isnan(value) else written(value, *digits)


def _span(interval: Sequence[float] | None, style: str = "significant") -> str:
    """` [low, high]`, or nothing."""
    styles: dict[str, Callable[[float], str]] = {"significant": significant, "short": short, "nats": "{:.3f}".format}
    return f" [{', '.join(map(styles[style], interval))}]" if interval else ""


def _cell(value: Cell, style: str) -> str:
    """A cell of the table of trials, empty for what is unknown."""
    styles: dict[str, Callable[[Any], str]] = {
        "text": str,
        "count": short,
        "power": lambda value: power(value, 3),
        "loss": "{:.3f}".format,
        "number": significant,
        "duration": duration,
    }
    return "" if value is None else styles[style](value)
