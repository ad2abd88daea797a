"""What a sweep folder holds once its runs are collected and fitted: the input of the figures and the report."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pandas as pd

from sweep.common import artefacts
from sweep.common.errors import UserError
from sweep.fit import fit_file
from sweep.fit.fit_file import Fit, Refusal
from sweep.fit.table import OutputPaths, read_collected
from sweep.runs.collect import Meta

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
    """A sweep's table, curves, samples and fit. Where there is no fit, `refused` says why."""

    name: str
    table: pd.DataFrame
    curves: pd.DataFrame = field(default_factory=NO_CURVES.copy)
    samples: pd.DataFrame = field(default_factory=NO_SAMPLES.copy)
    fit: Fit | None = None
    refused: str = ""
    meta: Meta = field(default_factory=Meta)
    foreign: dict[str, str] | None = None  # role -> column of the file that the table was made from, if no sweep's

    @property
    def columns(self) -> dict[str, str]:
        """The table's columns that stand for N, D, C and the loss: the fit's choice, where there is a fit. A foreign
        table was made with a sweep's own names (`foreign.as_sweep`)."""
        chosen = self.fit.columns if self.fit is not None and self.foreign is None else {}
        return {letter: chosen.get(letter, column) for letter, column in AXIS_COLUMNS.items()}

    @cached_property
    def finished(self) -> pd.DataFrame:
        """Finished trials with their N, D, C and loss also under those four names, smallest N first."""
        rows = self.table[self.table["status"] == "finished"].copy()
        for letter, column in self.columns.items():
            rows[letter] = rows[column].astype(float)
        return rows.dropna(subset=["N", "D", "C", "loss"]).sort_values(["N", "D"])

    @cached_property
    def trial_ids(self) -> dict[int, str]:
        """The trial of each row of the table, by its position: how a fit names rows."""
        return {int(row): str(trial_id) for row, trial_id in self.table["trial_id"].items()}

    @property
    def outdated(self) -> bool:
        """Whether the fit was made of another table than this one: other rows, or other losses in them."""
        if self.fit is None:
            return False
        fitted = {residual.row: residual.loss_nats for residual in self.fit.residuals}
        rows = set(fitted) | {dropped.row for dropped in self.fit.dropped}
        losses = self.table[self.columns["loss"]].astype(float).to_dict()
        return rows != set(losses) or any(abs(losses[row] - loss) > 1e-9 for row, loss in fitted.items())

    @property
    def reference_lines(self) -> dict[str, float]:
        """Name -> nats per token of what the losses are read against (uniform, unigram, bigram, trigram, …)."""
        return {name: nats for name, nats in self.meta.reference_lines.items() if nats}


def load(folder: Path) -> Results:
    """Read a sweep folder, of which only `table.parquet` must be there. UserError names a file that is damaged."""
    table, curves, samples = read_collected(folder / "table.parquet"), NO_CURVES.copy(), NO_SAMPLES.copy()
    if (folder / "curves.parquet").exists():
        curves = read_collected(folder / "curves.parquet")
    if (folder / "samples.parquet").exists():
        samples = read_collected(folder / "samples.parquet")
    path, again = folder / "meta.json", f"delete it and run `python -m sweep collect {folder.name}`"
    meta = artefacts.read(Meta, path, again) if path.exists() else Meta()
    fit, refused = _fit(folder)
    return Results(meta.name or folder.name, table, curves, samples, fit, refused, meta)


def _fit(folder: Path) -> tuple[Fit | None, str]:
    """The fit of a sweep, or the reason why there is none."""
    outputs = OutputPaths(folder.name, folder)
    if not outputs.path("fit.json").is_file():
        return None, f"there is no fit.json yet: make it with `python -m sweep fit {folder.name}`"
    try:
        found = fit_file.load(outputs)
    except UserError as unreadable:  # the data can be shown all the same
        return None, str(unreadable)
    return (None, found.refused or "") if isinstance(found, Refusal) else (found, "")
