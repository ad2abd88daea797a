"""What a sweep folder holds once its runs are collected and fitted: the input of the figures and the report."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from sweep.common.errors import UserError
from sweep.common.files import read_json
from sweep.fit import fit as fits
from sweep.fit.table import Home, read_collected

# The columns that the figures use, for a sweep without curves or samples.
NO_CURVES = pd.DataFrame(
    columns=[
        "trial_id",
        "family_id",
        "params_non_embedding",
        "step",
        "tokens",
        "flops",
        "train_loss_nats",
        "val_loss_nats",
    ]
)
NO_SAMPLES = pd.DataFrame(columns=["trial_id", "step", "tokens", "text"])
AXIS_COLUMNS = {"N": "params_non_embedding", "D": "tokens", "C": "flops", "loss": "loss_nats"}


@dataclass(frozen=True)
class Results:
    """A sweep's table, curves, samples and fit. `fit` is empty, and `refused` says why, when there is no fit."""

    name: str
    table: pd.DataFrame
    curves: pd.DataFrame = field(default_factory=NO_CURVES.copy)
    samples: pd.DataFrame = field(default_factory=NO_SAMPLES.copy)
    fit: dict[str, Any] = field(default_factory=dict)
    refused: str = ""
    meta: dict[str, Any] = field(default_factory=dict)
    foreign: dict[str, str] | None = None  # by letter, the columns of the table that it was made of, if no sweep's

    @property
    def columns(self) -> dict[str, str]:
        """The table's columns that stand for N, D, C and the loss: the fit's choice, where there is a fit."""
        chosen = self.fit.get("columns", {})
        return {letter: chosen.get(letter, column) for letter, column in AXIS_COLUMNS.items()}

    @cached_property
    def finished(self) -> pd.DataFrame:
        """Finished trials with their N, D, C and loss also under those four names, smallest N first."""
        rows = self.table[self.table["status"] == "finished"].copy()
        for letter, column in self.columns.items():
            rows[letter] = rows[column].astype(float)
        return rows.dropna(subset=["N", "D", "C", "loss"]).sort_values(["N", "D"])

    @property
    def outdated(self) -> bool:
        """Whether the fit was made of another table than this one: other rows, or other losses in them."""
        if not self.fit:
            return False
        fitted = {row["row"]: row["loss_nats"] for row in self.fit["residuals"]}
        rows = set(fitted) | {row["row"] for row in self.fit["dropped"]}
        losses = self.table[self.columns["loss"]].astype(float).to_dict()
        return rows != set(losses) or any(abs(losses[row] - loss) > 1e-9 for row, loss in fitted.items())

    @property
    def reference_lines(self) -> dict[str, float]:
        """Name → nats per token of what the losses are read against (uniform, unigram, bigram, trigram, …)."""
        return {name: float(nats) for name, nats in (self.meta.get("reference_lines") or {}).items() if nats}


def load(folder: Path) -> Results:
    """Read a sweep folder, of which only `table.parquet` must be there. UserError names a file that is damaged."""
    results: dict[str, Any] = {"table": read_collected(folder / "table.parquet")}
    for name in ("curves", "samples"):
        if (folder / f"{name}.parquet").exists():
            results[name] = read_collected(folder / f"{name}.parquet")
    path, again = folder / "meta.json", f"delete it and run `python -m sweep collect {folder.name}`"
    meta = read_json(path, mend=again) if path.exists() else {}
    fit, refused = _fit(folder)
    return Results(name=meta.get("name", folder.name), fit=fit, refused=refused, meta=meta, **results)


def _fit(folder: Path) -> tuple[dict[str, Any], str]:
    """What fit.json holds, or nothing and the reason."""
    home = Home(folder.name, folder)
    if not home.path("fit.json").is_file():
        return {}, f"there is no fit.json yet: make it with `python -m sweep fit {folder.name}`"
    try:
        content = fits.load(home)
    except UserError as unreadable:  # the data can be shown all the same
        return {}, str(unreadable)
    return ({}, content["refused"]) if "refused" in content else (content, "")
