"""The report of a sweep: one interactive page, a JSON of every number in it, figures for papers.

Everything is made from one typed value, the `Report` that report.json holds: `page.py` and `summary.py` show nothing
else.
"""

import json
import math
import platform
import shlex
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pandas as pd

from sweep.common import files
from sweep.common.plain import plain
from sweep.common.units import short
from sweep.report import answers, matplotlib_figures, page
from sweep.report.figure_spec import Figure, LeftOut
from sweep.report.figures import describe
from sweep.report.fit_tables import fit_tables
from sweep.report.plotly_figures import plotly
from sweep.report.report_file import BestRun, Calculator, Compute, ExcludedGroup, Report, Sample, SampleRun, TrialColumn
from sweep.report.results import Results
from sweep.runs.state import KINDS

TRIAL_COLUMNS = [
    TrialColumn("trial_id", "trial", "text"),
    TrialColumn("status", "status", "text"),
    TrialColumn("reason", "reason", "text"),
    TrialColumn("params_non_embedding", "N (non-embedding)", "count"),
    TrialColumn("params_total", "N (total)", "count"),
    TrialColumn("tokens", "tokens D", "count"),
    TrialColumn("flops", "FLOPs", "power"),
    TrialColumn("tokens_per_param", "D / N", "count"),
    TrialColumn("unique_tokens", "unique tokens", "count"),
    TrialColumn("epochs", "epochs", "number"),
    TrialColumn("loss_nats", "loss (nats per token)", "loss"),
    TrialColumn("best_loss_nats", "best loss", "loss"),
    TrialColumn("train_loss_nats", "training loss", "loss"),
    TrialColumn("bits_per_byte", "bits per byte", "number"),
    TrialColumn("lr", "learning rate", "number"),
    TrialColumn("lr_multiplier", "lr multiplier", "number"),
    TrialColumn("seed", "seed", "text"),
    TrialColumn("shape", "depth × width × heads", "text"),
    TrialColumn("device_seconds", "device time", "duration"),
    TrialColumn("mfu", "MFU", "number"),
    TrialColumn("device", "device", "text"),
    TrialColumn("code_hash", "code", "text"),
    TrialColumn("execution_class", "execution class", "text"),
]


def write(results: Results, out: Path) -> Report:
    """Write `out/report.html`, `out/report.json` and `out/figures/`; returns what report.json holds."""
    figures = describe(results)
    report = numbers(results, figures)
    (out / "figures").mkdir(parents=True, exist_ok=True)
    _write(out / "report.html", page.render(report, {figure.key: plotly(figure) for figure in report.figures}))
    _write(out / "report.json", to_json(report))
    for figure in report.figures:
        matplotlib_figures.save(figure, out / "figures")
    for left_out in report.left_out:  # an earlier report may have had the data for it
        matplotlib_figures.remove(left_out.key, out / "figures")
    return report


def to_json(report: Report) -> str:
    """report.json: unknown numbers are null, none is NaN or infinite."""
    return json.dumps(plain(report), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _write(path: Path, text: str) -> None:
    files.write(path, lambda file: file.write(text.encode()))


def numbers(results: Results, figures: list[Figure | LeftOut]) -> Report:
    """Everything that the report shows."""
    counts = {str(status): int(count) for status, count in results.table["status"].value_counts().items()}
    law, columns = answers.fitted_law(results), _trial_columns(results)
    return Report(
        name=results.name,
        refused=results.refused,
        counts=counts,
        counts_text=_counts_text(counts),
        warnings=warnings(results),
        device=", ".join(results.meta.device),
        bytes_per_token=_positive(results.meta.bytes_per_token),
        reference_lines=results.reference_lines,
        compute=_compute(results),
        best=_best(results),
        no_answers=law if isinstance(law, str) else "",
        priced=results.meta.dollars_per_device_hour is not None,
        timed=answers.flops_per_device_hour(results) is not None,
        next_nats=answers.NEXT_NATS,
        budgets=answers.budgets(results),
        costs=answers.costs(results, answers.round_losses(results)),
        calculator=_calculator(results),
        fit=fit_tables(results),
        figures=[figure for figure in figures if isinstance(figure, Figure)],
        left_out=[figure for figure in figures if isinstance(figure, LeftOut)],
        samples=_samples(results),
        trial_columns=columns,
        trials=plain(_trials(results)[[column.key for column in columns]].to_dict("records")),
        excluded=_excluded(results),
        made=_made(results),
    )


def _counts_text(counts: dict[str, int]) -> str:
    parts = [f"{counts[kind]} {kind}" for kind in KINDS if counts.get(kind)]
    return f"{sum(counts.values())} trials, {', '.join(parts)}"


def _positive(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) and value > 0 else None


def warnings(results: Results) -> list[str]:
    """What must be read before any number is trusted, most serious first."""
    found = [f"There is no fit: {results.refused}."] if results.refused else []
    if results.outdated:
        found.append(f"The fit was made of another table than this one: run `python -m sweep fit {results.name}`.")
    if (fit := results.fit) is not None:
        found += [*fit.disagreements, *answers.false_confidence(fit.holdout), *fit.warnings]
    finished = results.table[results.table["status"] == "finished"]
    for column, what in (
        ("code_hash", "versions of the training code"),
        ("execution_class", "execution classes (device, libraries, backend, micro-batch)"),
        ("data_fingerprint", "data sets"),
        ("precision", "precisions"),
    ):
        groups = finished[column].dropna().astype(str).value_counts() if column in finished else pd.Series()
        if len(groups) > 1:
            listed = ", ".join(f"{name}: {count}" for name, count in groups.items())
            found.append(f"Records come from {len(groups)} {what} ({listed}); their losses may not compare.")
    unigram = results.reference_lines.get("unigram", math.inf)
    if above := int((finished["loss_nats"] > unigram).sum()):
        found.append(
            f"{above} finished trials end above the unigram line: they predict worse than token frequencies alone, and "
            f"probably diverged; to fit without them: --where 'loss < {unigram:.4g}'."
        )
    others = results.table["status"].value_counts().drop("finished", errors="ignore")
    if len(others):
        listed = ", ".join(f"{count} {status}" for status, count in others.items())
        found.append(f"{others.sum()} of {len(results.table)} trials have no final loss: {listed}.")
    return found


def _compute(results: Results) -> Compute:
    finished = results.table[results.table["status"] == "finished"]
    alone = float(finished["flops"].sum())
    saved = _positive(results.meta.flops_saved) if alone else None
    hours = answers.training_seconds(results) / 3600
    rate = results.meta.dollars_per_device_hour
    return Compute(
        flops=alone - (saved or 0),
        flops_alone=alone,
        flops_saved=saved,
        share_saved=saved / alone if saved else None,
        device_hours=_positive(hours),
        dollars=hours * rate if hours and rate is not None else None,
        efficiency=results.meta.efficiency,
    )


def _best(results: Results) -> BestRun | None:
    rows = results.finished
    if rows.empty:
        return None
    best = rows.loc[rows["loss"].idxmin()]
    bits_per_byte = None if pd.isna(best["bits_per_byte"]) else float(best["bits_per_byte"])
    return BestRun(
        str(best["trial_id"]), float(best["N"]), float(best["D"]), float(best["C"]), float(best["loss"]), bits_per_byte
    )


def _calculator(results: Results) -> Calculator | None:
    """None where there is no fit, or one of another form than the additive: the page has the closed form of that."""
    law, fit = answers.fitted_law(results), results.fit
    if isinstance(law, str) or fit is None or fit.form != "additive":
        return None
    return Calculator(
        params=fit.params,
        flops_model=fit.flops_model,
        largest_flops=float(results.finished["C"].max()),
        flops_per_device_hour=answers.flops_per_device_hour(results),
        dollars_per_device_hour=results.meta.dollars_per_device_hour,
        bytes_per_token=_positive(results.meta.bytes_per_token),
        replicates={name: values_B.tolist() for name, values_B in law.replicates.items()} or None,
        widening=fit.bootstrap.widening if fit.bootstrap else None,
    )


def _samples(results: Results) -> list[SampleRun]:
    """For each size, the samples of its longest trial along training."""
    if results.samples.empty:
        return []
    sizes = results.table[["trial_id", "params_non_embedding"]]
    rows = results.samples.merge(sizes, on="trial_id").sort_values("step")
    runs = []
    for size, of_size in rows.groupby("params_non_embedding"):
        longest = of_size.loc[of_size["tokens"].idxmax(), "trial_id"]
        columns = [name for name in ("step", "tokens", "prompt", "text") if name in of_size]
        points = plain(of_size[of_size["trial_id"] == longest][columns].to_dict("records"))
        runs.append(SampleRun(short(float(size)), str(longest), [Sample(**point) for point in points]))
    return runs


def _trial_columns(results: Results) -> list[TrialColumn]:
    """The columns worth showing: those that hold something."""
    table = _trials(results)
    shown = [column for column in TRIAL_COLUMNS if column.key in table and table[column.key].notna().any()]
    if results.foreign is None:
        return shown
    # How somebody else's table counts its parameters is not known.
    return [replace(column, label="N") if column.key == "params_non_embedding" else column for column in shown]


def _trials(results: Results) -> pd.DataFrame:
    """Every trial, by size and tokens."""
    table = results.table.sort_values(["params_non_embedding", "tokens"])
    table["shape"] = [
        f"{d} × {w} × {h}" for d, w, h in zip(table["depth"], table["width"], table["heads"], strict=True)
    ]
    return table


def _excluded(results: Results) -> list[ExcludedGroup]:
    groups: dict[str, list[str]] = {}
    for point in results.meta.excluded:
        groups.setdefault(point.condition, []).append(f"{' '.join(point.overrides)} ({point.facts})")
    return [ExcludedGroup(condition, points) for condition, points in groups.items()]


def _made(results: Results) -> list[str]:
    """How this page came to be: commands, data, versions."""
    command, fit = results.meta.command, results.fit
    lines = [f"Trained by: {shlex.join(command)}"] if command else []
    if fit is not None:
        lines += [f"Fitted by: {fit.command}"] if fit.command else []
        lines.append(f"Fitted with: {', '.join(f'{name}: {number}' for name, number in fit.versions.items())}")
        lines.append(f"Rows that were fitted (sha256): {fit.data_sha256}")
    libraries = ", ".join(f"{name} {version(name)}" for name in ("numpy", "scipy", "pandas", "matplotlib", "plotly"))
    return [*lines, f"This page was made with: Python {platform.python_version()}, {libraries}"]
