"""A sweep as a W&B run of its own (`job_type=frontier`): its table, figures, the fit with intervals, the frontier as an
interactive chart, and artifacts whose lineage leads from the table to the fit.

Everything is read from what `collect`, `fit` and `report` wrote, nothing is computed again. The run is written offline,
login or not, each time anew after a collect: `python -m sweep sync` does both, writing and uploading.
"""

import contextlib
import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from sweep.common import files
from sweep.common.errors import UserError
from sweep.config.schema import WandbSection
from sweep.fit.table import read_collected
from sweep.report.figure_spec import Axis, Figure, Panel, Series
from sweep.report.plotly_figures import plotly
from sweep.runs.sweepdir import SweepDir
from sweep.tracking import client
from sweep.tracking.mirror import IncompleteFile, await_end

JOB_TYPE = "frontier"
POINTS = "frontier_points"  # the table behind the custom chart
POINT_COLUMNS = ["kind", "series", "trial", "flops", "loss", "low", "high"]
# The figures worth zooming into; every figure is there as a picture too.
INTERACTIVE = ("headline", "isoflop", "optimal_params", "optimal_tokens", "loss_against_compute", "contour", "cost")
MADE_BY = {"table.parquet": "collect", "report/report.json": "report"}
FILES = ("table.parquet", "fit.json", "report/report.json")


@dataclass(frozen=True)
class Made:
    """What the steps before left in a sweep's folder."""

    sweep: SweepDir
    table: pd.DataFrame
    report: dict[str, Any]  # report.json
    fingerprint: str  # of the table, the fit and the report


def run_id(name: str) -> str:
    """The W&B id of a sweep's own run."""
    return f"{name}-frontier"


def read(sweep: SweepDir) -> Made:
    """UserError with the command to run where a step is missing, or older than the one before it."""
    for name, verb in MADE_BY.items():
        if not (sweep.path / name).is_file():
            raise UserError(f"{sweep.path / name}: no such file; run `python -m sweep {verb} {sweep.name}` first")
    table, report = read_collected(sweep.path / "table.parquet"), files.read_json(sweep.path / "report/report.json")
    fit = files.read_json(sweep.path / "fit.json") if (sweep.path / "fit.json").is_file() else {}
    fitted = fit.get("data_sha256", "")
    if table["status"].value_counts().to_dict() != report["counts"] or fitted not in "\n".join(report["made"]):
        raise UserError(
            f"{sweep.path / 'report/report.json'}: older than the table or the fit; "
            f"run `python -m sweep report {sweep.name}` first"
        )
    digest = hashlib.sha256()
    for name in FILES:
        if (sweep.path / name).is_file():
            digest.update((sweep.path / name).read_bytes())
    return Made(sweep, table, report, digest.hexdigest())


def refresh(sweep: SweepDir, section: WandbSection) -> str:
    """Write the run, unless nothing has changed since it was written last; the line that says what was done."""
    made, remembered = read(sweep), Remembered.of(sweep)
    if remembered.content.get("frontier") == made.fingerprint:
        return f"{run_id(sweep.name)}: the table, the fit and the report are as they were"
    step = remembered.content.get("refreshes", 0)
    with of_this_version(sweep):
        write(made, section, step)
    remembered.keep(frontier=made.fingerprint, refreshes=step + 1)
    return f"{run_id(sweep.name)}: written from {sweep.path / 'report/report.json'}"


@contextlib.contextmanager
def of_this_version(sweep: SweepDir) -> Iterator[None]:
    """A number that report.json lacks as a UserError."""
    try:
        yield
    except KeyError as missing:
        raise UserError(
            f"{sweep.path / 'report/report.json'}: made by another version (no {missing}); "
            f"run `python -m sweep report {sweep.name}` again"
        ) from missing


def write(made: Made, section: WandbSection, step: int) -> None:
    """The run as an offline file. `step` counts how often it was refreshed."""
    sweep, report = made.sweep, made.report
    runs = Path(sweep.settings().paths.runs)
    wandb = client.wandb_module()
    answers, drawn, bought = summary(report), points(report), budgets(report)
    run = client.start_run(
        section,
        runs,
        "offline",
        run_id=run_id(sweep.name),
        name=f"{sweep.name}: frontier",
        group=sweep.name,
        job_type=JOB_TYPE,
        tags=[client.tag(sweep.name)],
        config=config(report),
        more_settings={"x_disable_stats": True},
    )
    logged: dict[str, Any] = {"table": wandb.Table(dataframe=made.table)}
    logged[POINTS] = wandb.Table(dataframe=drawn)
    if len(bought):
        logged["budgets"] = wandb.Table(dataframe=bought)
    for figure in report["figures"]:
        picture = sweep.path / "report/figures" / f"{figure['key']}.png"
        logged[f"figures/{figure['key']}"] = wandb.Image(str(picture), caption=figure["caption"] or None)
        if figure["key"] in INTERACTIVE:
            logged[f"charts/{figure['key']}"] = wandb.Plotly(go.Figure(plotly(figure_of(figure))))
    _artifacts(wandb, run, sweep)
    run.log(logged, step=step)
    run.summary.update(answers)
    finish(run)


def finish(run: Any, exit_code: int = 0) -> None:
    """End an offline run. wandb says nothing of a full disk: UserError where its file lacks the end."""
    run.finish(exit_code=exit_code)
    try:
        await_end(client.file_of(run))
    except IncompleteFile as error:
        raise UserError(f"{error}; free some space, and run the same again") from error


def _artifacts(wandb: Any, run: Any, sweep: SweepDir) -> None:
    """The table as the run's input, the fit as its output."""
    folder = sweep.path
    table = wandb.Artifact(f"{sweep.name}-table", type="table", description="every planned trial as a row")
    for name in ("table.parquet", "curves.parquet", "samples.parquet", "meta.json"):
        if (folder / name).is_file():
            table.add_file(str(folder / name))
    # What run.use_artifact does with a new artifact; that method itself refuses to work offline.
    run._log_artifact(table, is_user_created=True, use_after_commit=True)
    fit = wandb.Artifact(
        f"{sweep.name}-fit", type="fit", description="the law, its intervals, and the report's numbers"
    )
    for path in (folder / "fit.json", folder / "report/report.json"):
        if path.is_file():
            fit.add_file(str(path))
    run.log_artifact(fit)


def config(report: dict[str, Any]) -> dict[str, Any]:
    fit = report["fit"] or {}
    told = {key: fit[key] for key in ("form", "formula", "objective", "columns") if key in fit}
    return {"sweep": report["name"]} | told


def budgets(report: dict[str, Any]) -> pd.DataFrame:
    """The compute-optimal N and D for multiples of the largest run's compute, intervals as columns of their own."""
    rows = []
    for row in report["budgets"]:
        flat = {name: value for name, value in row.items() if name != "outside" and not name.endswith("_interval")}
        flat |= {f"{name}_extrapolated": float(name in row["outside"]) for name in ("N", "D")}
        for name in ("N", "D", "loss_nats"):
            flat |= _with_ends(name, row[name], row[f"{name}_interval"])
        rows.append(flat)
    return pd.DataFrame(rows, dtype=float)


def summary(report: dict[str, Any]) -> dict[str, Any]:
    """The answers as flat numbers: `fit/E`, `fit/E_low`, `fit/E_high`, `a/parametric`, `best/loss_nats`, …"""
    found: dict[str, Any] = {f"trials/{status}": count for status, count in report["counts"].items()}
    found |= {f"best/{name}": value for name, value in (report["best"] or {}).items()}
    found["compute/flops"] = report["compute"]["flops"]
    found |= {"refused": report["refused"], "warnings": report["warnings"]}
    if fit := report["fit"]:
        for row in fit["rows"]:
            found |= _with_ends(f"fit/{row['name']}", row["value"], row["interval"])
        for approach in fit["approaches"]:
            for exponent in ("a", "b"):
                found |= _with_ends(
                    f"{exponent}/{approach['key']}", approach[exponent], approach[f"{exponent}_interval"]
                )
        found |= {"fit/rows_used": fit["n_rows"], "fit/rows_dropped": len(fit["dropped"])}
    return {name: value for name, value in found.items() if value is not None}


def _with_ends(name: str, value: float | None, interval: list[float] | None) -> dict[str, Any]:
    low, high = interval or (None, None)
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def points(report: dict[str, Any]) -> pd.DataFrame:
    """The headline figure's runs, frontier and interval as rows, for a chart that W&B draws itself."""
    rows: list[dict[str, Any]] = []
    for figure in report["figures"]:
        if figure["key"] != "headline":
            continue
        for series in figure["panels"][0]["series"]:
            rows += _rows(series)
    return pd.DataFrame(rows, columns=POINT_COLUMNS)


def _rows(series: dict[str, Any]) -> list[dict[str, Any]]:
    name, x = series["name"], series["x"]
    if series["kind"] == "points":
        trials = series["hover"] or [""] * len(x)
        return [
            {"kind": "run", "series": name, "trial": trial, "flops": C, "loss": loss}
            for trial, C, loss in zip(trials, x, series["y"], strict=True)
        ]
    if series["kind"] == "line" and name.startswith("frontier"):
        return [
            {"kind": "frontier", "series": name, "flops": C, "loss": y} for C, y in zip(x, series["y"], strict=True)
        ]
    if series["kind"] == "band":
        ends = zip(x, series["lower"], series["upper"], strict=True)
        return [{"kind": "interval", "series": name, "flops": C, "low": low, "high": high} for C, low, high in ends]
    return []


def figure_of(described: dict[str, Any]) -> Figure:
    """A figure of report.json as the object that `plotly` draws."""
    panels = [
        Panel(Axis(**panel["x"]), Axis(**panel["y"]), [_series(each) for each in panel["series"]], panel["title"])
        for panel in described["panels"]
    ]
    return Figure(**described | {"panels": panels})


def _series(described: dict[str, Any]) -> Series:
    gaps = {name: [math.nan if v is None else v for v in described[name]] for name in ("x", "y", "lower", "upper")}
    return Series(**described | gaps)


@dataclass(frozen=True)
class Remembered:
    """sweeps/<name>/wandb.json: what the frontier run was last written from, and the addresses of what was saved."""

    path: Path
    content: dict[str, Any]

    @classmethod
    def of(cls, sweep: SweepDir) -> "Remembered":
        path = sweep.path / "wandb.json"
        return cls(path, files.read_json(path) if path.exists() else {})

    def keep(self, **more: Any) -> None:
        self.content.update(more)
        files.write_json(self.path, self.content)
