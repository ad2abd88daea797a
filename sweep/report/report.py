"""The report of a sweep: one interactive page, a JSON of every number in it, figures for papers.

Everything is made from one plain dict (`numbers`), which is report.json: `page.py` and `summary.py` show
nothing else.
"""

import json
import math
import platform
import shlex
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from sweep.common import files
from sweep.common.plain import plain
from sweep.common.units import short
from sweep.fit import laws
from sweep.fit.fit import rows_and_families
from sweep.report import answers, page, render
from sweep.report.figure_parts import ROADS, refusals, with_ids
from sweep.report.figure_spec import Figure, LeftOut
from sweep.report.figures import describe
from sweep.report.format import significant
from sweep.report.results import Results
from sweep.runs.state import KINDS

MEANINGS = {
    "E": "floor: the loss that no compute crosses (nats per token)",
    "A": "coefficient of the size term",
    "B": "coefficient of the tokens term",
    "alpha": "exponent of size (4/d by Sharma and Kaplan 2020, d the intrinsic dimension of the data)",
    "beta": "exponent of tokens",
    "a": "exponent of the optimal size, N ∝ C^a",
    "b": "exponent of the optimal tokens, D ∝ C^b",
}
TRIAL_COLUMNS = [  # key in the table, heading, how a cell is written
    ("trial_id", "trial", "text"),
    ("status", "status", "text"),
    ("reason", "reason", "text"),
    ("params_non_embedding", "N (non-embedding)", "count"),
    ("params_total", "N (total)", "count"),
    ("tokens", "tokens D", "count"),
    ("flops", "FLOPs", "power"),
    ("tokens_per_param", "D / N", "count"),
    ("unique_tokens", "unique tokens", "count"),
    ("epochs", "epochs", "number"),
    ("loss_nats", "loss (nats per token)", "loss"),
    ("best_loss_nats", "best loss", "loss"),
    ("train_loss_nats", "training loss", "loss"),
    ("bits_per_byte", "bits per byte", "number"),
    ("lr", "learning rate", "number"),
    ("lr_multiplier", "lr multiplier", "number"),
    ("seed", "seed", "text"),
    ("shape", "depth × width × heads", "text"),
    ("device_seconds", "device time", "duration"),
    ("mfu", "MFU", "number"),
    ("device", "device", "text"),
    ("code_hash", "code", "text"),
    ("execution_class", "execution class", "text"),
]


def write(results: Results, out: Path) -> dict[str, Any]:
    """Write `out/report.html`, `out/report.json` and `out/figures/`; returns the dict that report.json holds."""
    figures = describe(results)
    report = numbers(results, figures)
    drawn = [figure for figure in figures if isinstance(figure, Figure)]
    (out / "figures").mkdir(parents=True, exist_ok=True)
    as_json = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    _write(out / "report.html", page.render(report, {figure.key: render.plotly(figure) for figure in drawn}))
    _write(out / "report.json", as_json)
    for figure in figures:
        if isinstance(figure, Figure):
            render.save(figure, out / "figures")
        else:  # an earlier report may have had the data for it
            render.remove(figure.key, out / "figures")
    return report


def _write(path: Path, text: str) -> None:
    files.write(path, lambda file: file.write(text.encode()))


def numbers(results: Results, figures: list[Figure | LeftOut]) -> dict[str, Any]:
    """Everything that the report shows, as JSON can hold it: unknown numbers are null, none is NaN or infinite."""
    counts = results.table["status"].value_counts().to_dict()
    report = {
        "name": results.name,
        "refused": results.refused,
        "counts": counts,
        "counts_text": _counts_text(counts),
        "warnings": warnings(results),
        "device": _words(results.meta.get("device") or ""),
        "bytes_per_token": _positive(results.meta.get("bytes_per_token")),
        "reference_lines": results.reference_lines,
        "compute": _compute(results),
        "best": _best(results),
        "no_answers": answers.fitted(results) if isinstance(answers.fitted(results), str) else "",
        "priced": "dollars_per_device_hour" in results.meta,
        "timed": answers.flops_per_device_hour(results) is not None,
        "next_nats": answers.NEXT_NATS,
        "budgets": answers.budgets(results),
        "costs": answers.costs(results, answers.round_losses(results)),
        "calculator": _calculator(results),
        "fit": _fit(results),
        "figures": [plain(figure) for figure in figures if isinstance(figure, Figure)],
        "left_out": [plain(figure) for figure in figures if isinstance(figure, LeftOut)],
        "samples": _samples(results),
        **_trials(results),
        "excluded": _excluded(results),
        "made": _made(results),
    }
    return plain(report)


def _counts_text(counts: dict[str, int]) -> str:
    parts = [f"{counts[kind]} {kind}" for kind in KINDS if counts.get(kind)]
    return f"{sum(counts.values())} trials, {', '.join(parts)}"


def _positive(value: Any) -> float | None:
    return float(value) if value and math.isfinite(value) and value > 0 else None


def warnings(results: Results) -> list[str]:
    """What must be read before any number is trusted, most serious first."""
    found = [f"There is no fit: {results.refused}."] if results.refused else []
    if results.outdated:
        found.append(f"The fit was made of another table than this one: run `python -m sweep fit {results.name}`.")
    found += [*results.fit.get("disagreements", []), *answers.false_confidence(results.fit.get("holdout", []))]
    found += results.fit.get("warnings", [])
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
            f"{above} finished trials end above the unigram line: they know less than how often each token occurs, and "
            f"probably blew up; to fit without them: --where 'loss < {unigram:.4g}'."
        )
    others = results.table["status"].value_counts().drop("finished", errors="ignore")
    if len(others):
        listed = ", ".join(f"{count} {status}" for status, count in others.items())
        found.append(f"{others.sum()} of {len(results.table)} trials have no final loss: {listed}.")
    return found


def _compute(results: Results) -> dict[str, Any]:
    finished = results.table[results.table["status"] == "finished"]
    alone = float(finished["flops"].sum())
    saved = _positive(results.meta.get("flops_saved")) if alone else None
    hours = answers.training_seconds(results) / 3600
    rate = results.meta.get("dollars_per_device_hour")
    return {
        "flops": alone - (saved or 0),
        "flops_alone": alone,
        "flops_saved": saved,
        "share_saved": saved / alone if saved else None,
        "device_hours": hours or None,
        "dollars": hours * rate if hours and rate is not None else None,
        "efficiency": results.meta.get("efficiency"),
    }


def _best(results: Results) -> dict[str, Any] | None:
    rows = results.finished
    if rows.empty:
        return None
    best = rows.loc[rows["loss"].idxmin()]
    return {
        "trial_id": best["trial_id"],
        "N": best["N"],
        "D": best["D"],
        "flops": best["C"],
        "loss_nats": best["loss"],
        "bits_per_byte": best["bits_per_byte"],
    }


def _calculator(results: Results) -> dict[str, Any] | None:
    """What the page's calculator needs: the fit's parameters and the measured rates."""
    fit = answers.fitted(results)
    if isinstance(fit, str) or results.fit["form"] != "additive":
        return None  # the page has the closed form of this one only
    return {
        "params": results.fit["params"],
        "flops_model": results.fit["flops_model"],
        "largest_flops": results.finished["C"].max(),
        "flops_per_device_hour": answers.flops_per_device_hour(results),
        "dollars_per_device_hour": results.meta.get("dollars_per_device_hour"),
        "bytes_per_token": _positive(results.meta.get("bytes_per_token")),
        "replicates": fit.replicates or None,
        "widening": (results.fit["bootstrap"] or {}).get("widening"),
    }


def _fit(results: Results) -> dict[str, Any] | None:
    """The fit as the page's tables show it."""
    fit = results.fit
    if not fit:
        return None
    intervals = fit["intervals"] or {}
    values = fit["params"] | fit["exponents"]
    return {
        "form": fit["form"],
        "formula": laws.law_named(fit["form"]).formula,
        "objective": f"{fit['objective']}, δ = {fit['delta']:g}; value {significant(fit['objective_value'])}",
        "columns": results.columns,
        "n_rows": fit["n_rows"],
        "n_families": fit["n_families"],
        "counted": rows_and_families(fit),
        "flops_model": fit["flops_model"],
        "rows": [
            {
                "name": name,
                "value": value,
                "interval": intervals.get(name),
                "meaning": MEANINGS.get(name, ""),
                "kind": "law" if name in fit["params"] else "frontier",
            }
            for name, value in values.items()
        ],
        "roads": [_road(name, road) for name, road in fit["roads"].items()],
        "certificate": [[name.replace("_", " "), _words(value)] for name, value in fit["certificate"].items()],
        "dropped": with_ids(results, fit["dropped"]),
        "bootstrap": fit["bootstrap"],
        "seed_noise": fit["seed_noise"],
        "floors": fit["floors"],
        "crossing": fit["crossing"],
        "dimension": fit["dimension"],
        "leave_out": _left_out(results, fit["leave_out"]),
        "effect_of_drops": fit["effect_of_drops"],
        "conventions": fit["conventions"],
        "extrapolation": answers.extrapolation(fit["holdout"]),
        "holdout": [{key: value for key, value in cut.items() if key != "rows"} for cut in fit["holdout"]],
    }


def _left_out(results: Results, changes: list[dict[str, Any]], at_most: int = 8) -> list[dict[str, Any]]:
    """The rows and families whose leaving out moves a the most."""
    ids = results.table["trial_id"].to_dict()
    return [
        {"what": f"trial {ids.get(each['row'], each['row'])}" if "row" in each else f"family {each['family']}"} | each
        for each in changes[:at_most]
    ]


def _road(name: str, road: dict[str, Any]) -> dict[str, Any]:
    intervals = road.get("intervals") or {}
    notes = [road["refused"]] if isinstance(road.get("refused"), str) else []
    notes += [f"refused {reason}" for reason in refusals(road)]
    return {
        "key": name,
        "label": ROADS.get(name, {}).get("label", name),
        "a": road.get("a"),
        "b": road.get("b"),
        "a_interval": intervals.get("a"),
        "b_interval": intervals.get("b"),
        "n_optima": len(road.get("optima", [])),
        "note": "; ".join([*notes, *filter(None, [road.get("note")])]),
    }


def _words(value: Any) -> str:
    """A value of the certificate, which holds numbers, lists and text, as one line."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return significant(value)
    if isinstance(value, dict):
        return ", ".join(f"{key.replace('_', ' ')}: {_words(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(_words(item) for item in value) or "none"
    return str(value)


def _samples(results: Results) -> list[dict[str, Any]]:
    """For each size, the samples of its longest trial along training."""
    if results.samples.empty:
        return []
    sizes = results.table[["trial_id", "params_non_embedding"]]
    rows = results.samples.merge(sizes, on="trial_id").sort_values("step")
    runs = []
    for size, of_size in rows.groupby("params_non_embedding"):
        longest = of_size.loc[of_size["tokens"].idxmax(), "trial_id"]
        columns = [name for name in ("step", "tokens", "prompt", "text") if name in of_size]
        points = of_size[of_size["trial_id"] == longest][columns].to_dict("records")
        runs.append({"label": short(float(size)), "trial_id": longest, "points": points})
    return runs


def _trials(results: Results) -> dict[str, Any]:
    """Every trial, and the columns worth showing: those that hold something."""
    table = results.table.sort_values(["params_non_embedding", "tokens"])
    table["shape"] = [
        f"{d} × {w} × {h}" for d, w, h in zip(table["depth"], table["width"], table["heads"], strict=True)
    ]
    shown = [column for column in TRIAL_COLUMNS if column[0] in table and table[column[0]].notna().any()]
    if results.foreign is not None:  # how it counts its parameters, nobody has said
        shown = [(key, "N" if key == "params_non_embedding" else label, style) for key, label, style in shown]
    return {
        "trial_columns": [
            {"key": k, "label": label, "style": style, "text": style == "text"} for k, label, style in shown
        ],
        "trials": table[[key for key, _, _ in shown]].to_dict("records"),
    }


def _command(command: str | list[str]) -> str:
    return command if isinstance(command, str) else shlex.join(command)


def _excluded(results: Results) -> list[dict[str, Any]]:
    """Points of the grid that were never planned, by the condition that they broke."""
    groups: dict[str, list[str]] = {}
    for point in results.meta.get("excluded") or []:
        overrides = " ".join(map(str, point["overrides"]))
        groups.setdefault(str(point["condition"]), []).append(f"{overrides} ({point['facts']})")
    return [{"condition": condition, "points": points} for condition, points in groups.items()]


def _made(results: Results) -> list[str]:
    """How this page came to be: commands, data, versions."""
    libraries = ", ".join(f"{name} {version(name)}" for name in ("numpy", "scipy", "pandas", "matplotlib", "plotly"))
    lines = [
        f"Trained by: {_command(results.meta['command'])}" if results.meta.get("command") else "",
        f"Fitted by: {results.fit['command']}" if results.fit.get("command") else "",
    ]
    if results.fit:
        lines.append(f"Fitted with: {_words(results.fit['versions'])}")
        lines.append(f"Rows that were fitted (sha256): {results.fit['data_sha256']}")
    lines.append(f"This page was made with: Python {platform.python_version()}, {libraries}")
    return [line for line in lines if line]
