"""A sweep as a W&B run of its own (`job_type=frontier`): its table, figures, the fit with intervals, the frontier as an
interactive chart, and artifacts whose lineage leads from the table to the fit.

Everything is read from what `collect`, `fit` and `report` wrote, nothing is computed again. The run is written offline,
login or not, each time anew after a collect: `python -m sweep sync` does both, writing and uploading.
"""

import hashlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from sweep.common import artefacts, files
from sweep.common.errors import UserError
from sweep.config.schema import WandbSection
from sweep.fit.bootstrap import Interval
from sweep.fit.table import read_collected
from sweep.report.figure_spec import Series
from sweep.report.plotly_figures import plotly
from sweep.report.report_file import Report
from sweep.runs.sweepdir import SweepDir
from sweep.tracking import client
from sweep.tracking.mirror import IncompleteFile, await_end
from sweep.tracking.wandb_files import Fields

JOB_TYPE = "frontier"
POINTS = "frontier_points"  # the table behind the custom chart
POINT_COLUMNS = ["kind", "series", "trial", "flops", "loss", "low", "high"]
# The figures worth zooming into; every figure is there as a picture too.
INTERACTIVE = ("headline", "isoflop", "optimal_params", "optimal_tokens", "loss_against_compute", "contour", "cost")
REPORT = "report/report.json"
MADE_BY = {"table.parquet": "collect", REPORT: "report"}
FILES = ("table.parquet", "fit.json", REPORT)


@dataclass(frozen=True)
class FittedRows:
    """What is read of `fit.json`, also of one that holds a refusal: a hash of the rows that were fitted."""

    data_sha256: str = ""


@dataclass(frozen=True)
class Remembered:
    """`wandb.json` in the sweep's folder: what W&B was given before."""

    frontier: str | None = None  # fingerprint of what the sweep's run was last written from
    refreshes: int = 0  # how often that run was written
    workspace: str | None = None  # addresses of the dashboards
    report: str | None = None

    @classmethod
    def of(cls, sweep: SweepDir) -> "Remembered":
        path = sweep.path / "wandb.json"
        return artefacts.read(cls, path) if path.exists() else cls()

    def keep(self, sweep: SweepDir) -> None:
        files.write_json(sweep.path / "wandb.json", asdict(self))


@dataclass(frozen=True)
class Made:
    """What the steps before left in a sweep's folder."""

    sweep: SweepDir
    table: pd.DataFrame
    report: Report
    fingerprint: str  # of the table, the fit and the report


def run_id(name: str) -> str:
    """The W&B id of a sweep's own run."""
    return f"{name}-frontier"


def read(sweep: SweepDir) -> Made:
    """UserError with the command to run where a step is missing, or older than the one before it."""
    for name, verb in MADE_BY.items():
        if not (sweep.path / name).is_file():
            raise UserError(f"{sweep.path / name}: no such file; run `python -m sweep {verb} {sweep.name}` first")
    table, report = read_collected(sweep.path / "table.parquet"), read_report(sweep)
    path = sweep.path / "fit.json"
    fitted = artefacts.read(FittedRows, path).data_sha256 if path.is_file() else ""
    if table["status"].value_counts().to_dict() != report.counts or fitted not in "\n".join(report.made):
        raise UserError(
            f"{sweep.path / REPORT}: older than the table or the fit; run `python -m sweep report {sweep.name}` first"
        )
    digest = hashlib.sha256()
    for name in FILES:
        if (sweep.path / name).is_file():
            digest.update((sweep.path / name).read_bytes())
    return Made(sweep, table, report, digest.hexdigest())


def refresh(sweep: SweepDir, section: WandbSection) -> str:
    """Write the run, unless nothing has changed since it was written last; the line that says what was done."""
    made, remembered = read(sweep), Remembered.of(sweep)
    if remembered.frontier == made.fingerprint:
        return f"{run_id(sweep.name)}: the table, the fit and the report are as they were"
    write(made, section, remembered.refreshes)
    replace(remembered, frontier=made.fingerprint, refreshes=remembered.refreshes + 1).keep(sweep)
    return f"{run_id(sweep.name)}: written from {sweep.path / REPORT}"


def read_report(sweep: SweepDir) -> Report:
    """The numbers and figures of the sweep's report. UserError where the file is damaged, or of another version."""
    return artefacts.read(Report, sweep.path / REPORT, f"run `python -m sweep report {sweep.name}` again")


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
    logged: Fields = {"table": wandb.Table(dataframe=made.table)}
    logged[POINTS] = wandb.Table(dataframe=drawn)
    if len(bought):
        logged["budgets"] = wandb.Table(dataframe=bought)
    for figure in report.figures:
        picture = sweep.path / "report/figures" / f"{figure.key}.png"
        logged[f"figures/{figure.key}"] = wandb.Image(str(picture), caption=figure.caption or None)
        if figure.key in INTERACTIVE:
            logged[f"charts/{figure.key}"] = wandb.Plotly(go.Figure(plotly(figure)))
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


def config(report: Report) -> Fields:
    """What the run's config says of the fit."""
    if report.fit is None:
        return {"sweep": report.name}
    fit = report.fit
    return {
        "sweep": report.name,
        "form": fit.form,
        "formula": fit.formula,
        "objective": fit.objective,
        "columns": fit.columns,
    }


def budgets(report: Report) -> pd.DataFrame:
    """The compute-optimal N and D for multiples of the largest run's compute, intervals as columns of their own."""
    rows = []
    for row in report.budgets:
        flat = {
            name: value for name, value in vars(row).items() if name != "outside" and not name.endswith("_interval")
        }
        flat |= {f"{name}_extrapolated": float(name in row.outside) for name in ("N", "D")}
        flat |= _with_ends("N", row.N, row.N_interval) | _with_ends("D", row.D, row.D_interval)
        flat |= _with_ends("loss_nats", row.loss_nats, row.loss_nats_interval)
        rows.append(flat)
    return pd.DataFrame(rows, dtype=float)


def summary(report: Report) -> Fields:
    """The answers as flat numbers: `fit/E`, `fit/E_low`, `fit/E_high`, `a/parametric`, `best/loss_nats`, …"""
    found: Fields = {f"trials/{status}": count for status, count in report.counts.items()}
    if report.best is not None:
        found |= {f"best/{name}": value for name, value in vars(report.best).items()}
    found["compute/flops"] = report.compute.flops
    found |= {"refused": report.refused, "warnings": report.warnings}
    if report.fit is not None:
        for row in report.fit.rows:
            found |= _with_ends(f"fit/{row.name}", row.value, row.interval)
        for approach in report.fit.approaches:
            found |= _with_ends(f"a/{approach.key}", approach.a, approach.a_interval)
            found |= _with_ends(f"b/{approach.key}", approach.b, approach.b_interval)
        found |= {"fit/rows_used": report.fit.n_rows, "fit/rows_dropped": len(report.fit.dropped)}
    return {name: value for name, value in found.items() if value is not None}


def _with_ends(name: str, value: float | None, interval: Interval | None) -> dict[str, float | None]:
    low, high = interval or (None, None)
    return {name: value, f"{name}_low": low, f"{name}_high": high}


@dataclass(frozen=True)
class Point:
    """A row of the table behind the custom chart: a run, a place on the frontier, or its interval there."""

    kind: str  # run, frontier or interval
    series: str
    flops: float
    trial: str | None = None
    loss: float | None = None  # nats per token, as low and high
    low: float | None = None
    high: float | None = None


def points(report: Report) -> pd.DataFrame:
    """The headline figure's runs, frontier and interval as rows, for a chart that W&B draws itself."""
    headlines = [figure.panels[0] for figure in report.figures if figure.key == "headline"]
    rows = [asdict(point) for panel in headlines for series in panel.series for point in _points(series)]
    return pd.DataFrame(rows, columns=POINT_COLUMNS)


def _points(series: Series) -> list[Point]:
    name = series.name
    if series.kind == "points":
        trials = series.hover or [""] * len(series.x)
        return [
            Point("run", name, C, trial=trial, loss=loss)
            for trial, C, loss in zip(trials, series.x, series.y, strict=True)
        ]
    if series.kind == "line" and name.startswith("frontier"):
        return [Point("frontier", name, C, loss=loss) for C, loss in zip(series.x, series.y, strict=True)]
    if series.kind == "band":
        ends = zip(series.x, series.lower, series.upper, strict=True)
        return [Point("interval", name, C, low=low, high=high) for C, low, high in ends]
    return []
