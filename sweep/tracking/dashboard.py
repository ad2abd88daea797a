"""A sweep's dashboards as code: a W&B workspace and a report.

Panels name what `sweep.tracking.run_content` and `sweep.tracking.sweep_run` put into the runs; the report's numbers are
those of report.json. Building them needs no login (`export`); `save` changes those that were saved before.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws

from sweep.common import files
from sweep.common.errors import UserError
from sweep.common.units import short
from sweep.config.schema import WandbSection
from sweep.fit.bootstrap import Interval
from sweep.report.format import power, with_interval
from sweep.report.report_file import Report
from sweep.runs.sweepdir import SweepDir
from sweep.tracking import account as accounts
from sweep.tracking import client, sweep_run
from sweep.tracking.account import Account

CHART = "scaling-frontier"  # the custom chart's name in W&B
CHART_SPEC = Path(__file__).with_name("frontier_chart.json")  # Vega-Lite
NOTES = "Notes"  # what people write below this heading of a report stays
ANYBODY = "ENTITY"  # stands for the entity in an export without a login
MOST_RUNS = 200  # drawn in a panel; W&B's own limit is 10
LOSS, TRAIN = "loss/val_nats", "loss/train_nats"
NATS = "loss (nats per token)"
FAILED = "SummaryMetric('status') != 'finished' and Metric('JobType') = 'trial'"
Options = dict[str, Any]  # keyword arguments of a panel
COLUMNS = ("summary:status", "config:size.value", "config:D.value", "config:C.value", "summary:loss_nats")


@dataclass(frozen=True)
class Part:
    """A section of the workspace, and of the report with `words` above it. `which` runs: trials, frontier or failed."""

    title: str
    words: str
    panels: list[Any]
    which: str = "trials"


def parts(entity: str) -> list[Part]:
    """What both dashboards show."""
    return [_frontier(entity), _compute(), _isoflop(), _learning_curves(), _speed(), _failures()]


def _frontier(entity: str) -> Part:
    return Part(
        "Frontier",
        "Final losses of all runs, the fitted frontier and its 90% interval, on log axes.",
        [_chart(entity), _media("Loss against compute", "charts/headline")],
        which="frontier",
    )


def _compute() -> Part:
    return Part(
        "Loss against compute",
        "Left: every run's curve. Right: final losses, coloured by size, with their lower envelope.",
        [
            wr.LinePlot(title="Curves", x="flops", y=[LOSS], log_x=True, log_y=True, **_lines("FLOPs", NATS)),
            _scatter("Final losses and their lower envelope", "C", "N", log_y=True, running_ymin=True),
        ],
    )


def _isoflop() -> Part:
    return Part(
        "IsoFLOP",
        "Final loss against size, coloured by compute: each budget's minimum is its best size.",
        [_scatter("Loss against size, by budget", "N", "C"), _scatter("Loss against tokens, by size", "D", "N")],
    )


def _learning_curves() -> Part:
    bits, references = "loss/val_bits_per_byte", [f"reference/{n}_nats" for n in ("unigram", "bigram", "trigram")]
    along: Options = {"x": "tokens", "log_x": True}
    return Part(
        "Learning curves by size",
        "Mean, least and largest of the runs of a size; the last stretch of a run is its decay.",
        [
            wr.LinePlot(title="Validation loss", y=[LOSS], **along, **_by_size(NATS)),
            wr.LinePlot(title="Training loss", y=[TRAIN], **along, **_by_size(NATS)),
            wr.LinePlot(title="Bits per byte", y=[bits], **along, **_by_size("bits")),
            wr.LinePlot(title="N-gram lines", y=[LOSS, *references], **along, **_lines("tokens", NATS)),
        ],
    )


def _speed() -> Part:
    tokens_per_second = wr.SummaryMetric("tokens_per_second")
    return Part(
        "Speed",
        "Tokens per second, MFU by the device's fastest measured matrix product, and what the device was busy with.",
        [
            wr.LinePlot(title="Tokens per second", x="tokens", y=["speed/tokens_per_second"], **_by_size("tokens/s")),
            wr.LinePlot(title="MFU", x="tokens", y=["speed/mfu"], **_by_size("share of the ceiling")),
            wr.ScatterPlot(title="Speed against size", x=wr.Config("N"), y=tokens_per_second, log_x=True),
            wr.LinePlot(title="GPU use (%)", x="Relative Time (Process)", metric_regex=r"system/gpu\..*\.gpu$"),
        ],
    )


def _failures() -> Part:
    along: Options = {"x": "tokens", "log_y": True}
    return Part(
        "Failures",
        "Runs that did not finish, and the signs before: the gradient's norm and the training loss.",
        [
            wr.LinePlot(title="Gradient norm", y=["optim/grad_norm"], **along, **_lines("tokens", "norm")),
            wr.LinePlot(title="Training loss", y=[TRAIN], **along, **_lines("tokens", NATS)),
            wr.RunComparer(diff_only=True),
        ],
        which="failed",
    )


def _chart(entity: str) -> wr.CustomChart:
    fields = {column: column for column in sweep_run.POINT_COLUMNS}  # the chart's names are the table's
    chart = wr.CustomChart.from_table(sweep_run.POINTS, chart_fields=fields, chart_strings={})
    chart.chart_name = f"{entity}/{CHART}"
    return chart


def _media(title: str, *keys: str) -> wr.MediaBrowser:
    return wr.MediaBrowser(title=title, media_keys=list(keys), num_columns=1)


def _lines(x: str, y: str) -> Options:
    return {"title_x": x, "title_y": y, "max_runs_to_show": MOST_RUNS, "smoothing_type": "none"}


def _by_size(y: str) -> Options:
    grouped = {"groupby": wr.Config("size"), "groupby_aggfunc": "mean", "groupby_rangefunc": "minmax"}
    return _lines("tokens", y) | grouped


def _scatter(title: str, x: str, color: str, log_y: bool = False, **more: Any) -> wr.ScatterPlot:
    axes: Options = {"x": wr.Config(x), "y": wr.SummaryMetric("loss_nats"), "z": wr.Config(color)}
    return wr.ScatterPlot(title=title, log_x=True, log_y=log_y, log_z=True, **axes, **more)


def workspace(name: str, entity: str, project: str) -> ws.Workspace:
    """The sweep's workspace: its runs are those with its tag."""
    return ws.Workspace(
        name=f"Sweep {name}",
        entity=entity,
        project=project,
        sections=[
            ws.Section(name=part.title, panels=part.panels, is_open=part.which != "failed") for part in parts(entity)
        ],
        settings=ws.WorkspaceSettings(x_axis="tokens", max_runs=MOST_RUNS),
        runset_settings=ws.RunsetSettings(filters=_tagged(name), pinned_columns=list(COLUMNS)),
    )


def report(name: str, entity: str, project: str, numbers: Report | None, signed_in: bool = False) -> wr.Report:
    """The sweep's report. `numbers`: report.json, None where there is none yet. The library asks the server for the
    project of a run set that names one; without a login it is the report's own."""
    runsets = {
        "trials": f"{_tagged(name)} and Metric('JobType') = 'trial'",
        "frontier": f"{_tagged(name)} and Metric('JobType') = '{sweep_run.JOB_TYPE}'",
        "failed": f"{_tagged(name)} and {FAILED}",
    }
    blocks: list[Any] = [wr.MarkdownBlock(text) for text in (answers(numbers) if numbers else [])]
    for part in parts(entity):
        runset = wr.Runset(name=part.which, filters=runsets[part.which])
        if signed_in:
            runset.entity, runset.project = entity, project
        blocks += [
            wr.H2(part.title),
            wr.P(part.words),
            wr.PanelGrid(runsets=[runset], panels=_laid_out(part.panels)),
        ]
    blocks.append(wr.H1(NOTES))
    return wr.Report(
        project=project, entity=entity, title=f"Sweep {name}", description=_about(numbers), blocks=blocks, width="fluid"
    )


def _tagged(name: str) -> str:
    return f"Tags() in {json.dumps([client.tag(name)])}"


def _about(numbers: Report | None) -> str:
    return numbers.counts_text if numbers else "not collected yet"


def _laid_out(panels: list[Any]) -> list[Any]:
    """Two panels in a row of a report's 24 columns."""
    for place, panel in enumerate(panels):
        panel.layout = wr.Layout(x=12 * (place % 2), y=9 * (place // 2), w=12, h=9)
    return panels


def answers(numbers: Report) -> list[str]:
    """The report's numbers as Markdown: warnings, the law, the approaches to the frontier, compute-optimal N and D."""
    texts = ["\n".join(f"- **{warning}**" for warning in numbers.warnings)] if numbers.warnings else []
    if fit := numbers.fit:
        rows = [[row.name, _number(row.value, row.interval), row.meaning] for row in fit.rows]
        texts.append(
            f"`{fit.formula}`, fitted to {fit.n_rows} runs of {fit.n_families} families\n\n"
            + _table(["", "90% interval", ""], rows)
        )
        approaches = [
            [row.label, _number(row.a, row.a_interval), _number(row.b, row.b_interval), row.note]
            for row in fit.approaches
        ]
        texts.append(_table(["approach to the frontier", "a (N ∝ C^a)", "b (D ∝ C^b)", ""], approaches))
    if numbers.budgets:
        rows = [
            [
                power(row.flops, 3),
                f"{row.times_largest}×",
                _counted(row.N, row.N_interval),
                _counted(row.D, row.D_interval),
                with_interval(row.loss_nats, row.loss_nats_interval, 4),
            ]
            for row in numbers.budgets
        ]
        texts.append(_table(["C (FLOPs)", "× largest run", "N", "D", NATS], rows))
    return texts


def _counted(value: float, interval: Interval | None) -> str:
    return short(value) + (f" [{short(interval[0])}, {short(interval[1])}]" if interval else "")


def _number(value: float | None, interval: Interval | None) -> str:
    return with_interval(value, interval) if value is not None else "–"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _numbers(sweep: SweepDir) -> Report | None:
    return sweep_run.read_report(sweep) if (sweep.path / sweep_run.REPORT).is_file() else None


def export(sweep: SweepDir, section: WandbSection, out: Path) -> list[Path]:
    """Write workspace.json, report.json and the chart's chart.json: what `save` would send."""
    entity = section.entity or ANYBODY
    written = report(sweep.name, entity, section.project, _numbers(sweep))
    models = {
        "workspace": workspace(sweep.name, entity, section.project)._to_model().spec,
        "report": written._to_model().spec,
    }
    contents = {name: model.model_dump_json(by_alias=True, exclude_none=True) for name, model in models.items()}
    contents = {name: json.loads(text) for name, text in contents.items()} | {"chart": files.read_json(CHART_SPEC)}
    for name, content in contents.items():
        files.write_json(out / f"{name}.json", content)
    return [out / f"{name}.json" for name in contents]


def save(sweep: SweepDir, section: WandbSection, account: Account) -> list[str]:
    """Make both, or change those that were made before; lines that say so. UserError where W&B refuses."""
    remembered, numbers = sweep_run.Remembered.of(sweep), _numbers(sweep)
    written = report(sweep.name, account.entity, section.project, numbers, signed_in=True)
    laid_out = workspace(sweep.name, account.entity, section.project)
    lines: list[str] = []
    try:
        lines += filter(None, [_keep_chart(account)])
        shown, was_there = _current(laid_out, remembered.workspace, _over_workspace)
        shown.save()
        remembered = replace(remembered, workspace=shown.url)
        remembered.keep(sweep)
        lines.append(f"workspace {'brought up to date' if was_there else 'made'}: {shown.url}")
        shown, was_there = _current(written, remembered.report, _over_report)
        shown.save()
        replace(remembered, report=shown.url).keep(sweep)
        lines.append(f"report {'brought up to date' if was_there else 'made'}: {shown.url}")
    except account.errors as error:
        raise UserError(f"W&B, {account.entity}/{section.project}: {accounts.explain(error)}") from error
    if numbers is None:
        lines.append(f"without numbers: run `python -m sweep collect {sweep.name}`, fit and report, then this again")
    return lines


def _keep_chart(account: Account) -> str:
    """Make the custom chart, which W&B lets nobody change or look up; the line where there is no making it."""
    try:
        account.api.create_custom_chart(
            account.entity, CHART, "Scaling frontier", "vega2", "private", CHART_SPEC.read_text()
        )
    except account.errors as error:
        return f"custom chart {account.entity}/{CHART}: is there already, or cannot be made ({accounts.explain(error)})"
    return ""


def _current(new: Any, url: str | None, lay_over: Callable[[Any, Any], None]) -> tuple[Any, bool]:
    """(what is there at `url` with the new content, True), or (the new one, False) where it is gone or never was."""
    if not url:
        return new, False
    try:
        old = type(new).from_url(url)
    except (ValueError, TypeError):  # how the library says that there is nothing
        return new, False
    lay_over(old, new)
    return old, True


def _over_workspace(old: ws.Workspace, new: ws.Workspace) -> None:
    ours = {section.name for section in new.sections}
    old.sections = [*new.sections, *(section for section in old.sections if section.name not in ours)]
    old.settings, old.runset_settings = new.settings, new.runset_settings


def _over_report(old: wr.Report, new: wr.Report) -> None:
    places = [place for place, block in enumerate(old.blocks) if _is_notes(block)]
    notes = old.blocks[places[0] :] if places else []
    ours = [block for block in new.blocks if not _is_notes(block)] if notes else new.blocks
    old.blocks = [*ours, *notes]
    old.title, old.description = new.title, new.description


def _is_notes(block: Any) -> bool:
    return isinstance(block, wr.H1) and block.text in (NOTES, [NOTES])
