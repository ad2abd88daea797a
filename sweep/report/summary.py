"""The report in one screenful of terminal."""

from pathlib import Path

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from sweep.common.units import duration, short
from sweep.report import answers
from sweep.report.answers import BudgetAnswer
from sweep.report.format import dollars, power, significant, with_interval
from sweep.report.report_file import BestRun, Compute, FitTables, Report

WARNINGS_SHOWN = 5


def summary(report: Report, out: Path) -> RenderableType:
    """What report.json says, in about 30 lines; `out` is where the report was written."""
    parts: list[RenderableType] = [Text(f"{report.name}: {report.counts_text}", style="bold")]
    parts += [_compute(report.compute), *_best(report.best), *_warnings(report.warnings)]
    if report.fit:
        parts += [_params(report.fit), _approaches(report.fit)]
        parts += [_budgets(report)] if report.budgets else []
        parts += [Text(line) for line in answers.extrapolation(report.fit.holdout)]
    files = [f"{what:9}{out / name}" for what, name in (("page", "report.html"), ("numbers", "report.json"))]
    parts.append(Text("\n".join([*files, f"{'figures':9}{out / 'figures'}/*.png, *.svg"])))
    return Group(*parts)


def _compute(compute: Compute) -> Text:
    text = f"{power(compute.flops)} FLOPs"
    if compute.device_hours is not None:
        text += f", {duration(3600 * compute.device_hours)} of device time"
    if compute.dollars is not None:
        text += f", {dollars(compute.dollars)}"
    if compute.share_saved:
        text += f"; shared trunks saved {100 * compute.share_saved:.0f}% of the FLOPs of training each trial alone"
    if compute.efficiency is not None:
        text += f"; sweep efficiency {significant(100 * compute.efficiency, 2)}% of the devices' matrix products"
    return Text(text)


def _best(best: BestRun | None) -> list[Text]:
    if best is None:
        return []
    model = f"{short(best.N)} parameters on {short(best.D)} tokens"
    return [Text(f"best run: {best.loss_nats:.3f} nats per token, {model}")]


def _warnings(warnings: list[str]) -> list[Text]:
    lines = [Text(f"! {warning}", style="red") for warning in warnings[:WARNINGS_SHOWN]]
    if len(warnings) > WARNINGS_SHOWN:
        lines.append(Text(f"! {len(warnings) - WARNINGS_SHOWN} more warnings are on the page", style="red"))
    return lines


def _params(fit: FitTables) -> Text:
    values = [
        f"{row.name} = {with_interval(row.value, row.interval)}"
        for row in fit.rows
        if row.kind == "law" and row.value is not None
    ]
    return Text(f"\n{fit.formula}, fitted to {fit.counted}\n{'   '.join(values)}")


def _approaches(fit: FitTables) -> RenderableType:
    table = Table("approach to the frontier", "a (N ∝ C^a)", "b (D ∝ C^b)", "optima", box=None, padding=(0, 2, 0, 0))
    for row in fit.approaches:
        if row.a is None or row.b is None:
            table.add_row(row.label, "refused:", Text(row.note, overflow="ellipsis", no_wrap=True), "")
            continue
        a, b = with_interval(row.a, row.a_interval), with_interval(row.b, row.b_interval)
        table.add_row(row.label, a, b, str(row.n_optima))
    return Padding(table, (1, 0, 0, 0), expand=False)


def _budgets(report: Report) -> RenderableType:
    costs = [*(["device-hours"] if report.timed else []), *(["dollars"] if report.priced else [])]
    table = Table("C (FLOPs)", "× largest run", *costs, "N", "D", "loss (nats)", box=None, padding=(0, 2, 0, 0))
    for row in report.budgets:
        paid = {
            "device-hours": "–" if row.device_hours is None else significant(row.device_hours, 2),
            "dollars": "–" if row.dollars is None else dollars(row.dollars),
        }
        ends = row.loss_nats_interval
        loss = f"{row.loss_nats:.3f}" + (f" [{ends[0]:.3f}, {ends[1]:.3f}]" if ends else "")
        cells = [power(row.flops, 3), f"{row.times_largest}×", *(paid[cost] for cost in costs)]
        table.add_row(*cells, _starred(row, "N"), _starred(row, "D"), loss)
    note = [Text("*: outside of what was trained")] if any(row.outside for row in report.budgets) else []
    return Padding(Group(table, *note), (1, 0, 1, 0), expand=False)


def _starred(row: BudgetAnswer, name: str) -> str:
    return short({"N": row.N, "D": row.D}[name]) + ("*" if name in row.outside else "")
