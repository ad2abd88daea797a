"""A table of runs: where it is read from, what its columns are called, and where what is made of it goes.

A table is a sweep's own (`sweeps/<name>/table.parquet`) or any CSV, parquet or JSONL file with columns for two of N
(parameters), D (tokens) and C (training FLOPs), and one for the loss. `rows.py` checks its rows.
"""

import csv
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from sweep.common.errors import UserError
from sweep.runs.sweepdir import SweepDir

# What each role is called in the tables that we write, then in other people's. The first found is taken.
ROLE_COLUMNS: dict[str, tuple[str, ...]] = {
    "N": ("params_non_embedding", "N", "n_params", "params", "parameters"),
    "D": ("tokens", "D", "n_tokens", "training_tokens"),
    "C": ("flops", "C", "training_flops"),
    "loss": ("loss_nats", "loss", "L", "val_loss", "final_loss"),
    "run": ("trial_id", "run_id", "run"),
    "family": ("family_id", "family"),
    "unique_tokens": ("unique_tokens",),
    "steps": ("steps",),
    "lr": ("lr_multiplier",),
    "weight": ("weight",),
    "status": ("status",),
    "phase": ("phase",),
}


@dataclass(frozen=True)
class OutputPaths:
    """Where what is made of a table goes: into a sweep's folder, or beside a file, named after it, so that the files of
    one folder keep apart (runs.csv: runs.fit.json, runs.report, runs.predictions)."""

    source: str  # what `fit` is given
    folder: Path
    prefix: str = ""  # of the names; empty for a sweep

    @property
    def is_sweep(self) -> bool:
        return not self.prefix

    def path(self, name: str) -> Path:
        return self.folder / f"{self.prefix}{name}"


def read(source: str, sweeps: Path = Path("sweeps")) -> tuple[pd.DataFrame, pd.DataFrame | None, OutputPaths]:
    """(table, curves or None, where results go) for a sweep's name or a file. UserError where there is no such thing
    or it cannot be read."""
    path = Path(source)
    is_folder = path.is_dir() or (sweeps / source).is_dir()  # a sweep's name may hold a dot
    if not path.is_file() and (is_folder or not path.suffix):
        try:
            folder = SweepDir.find(source, sweeps, collected=True).path
        except UserError as error:
            raise UserError(f"{error}, or give a file") from None
        curves = folder / "curves.parquet"
        table = read_collected(folder / "table.parquet")
        return table, read_collected(curves) if curves.is_file() else None, OutputPaths(source, folder)
    if not path.is_file():
        raise UserError(f"{source}: no such file")
    return _read_file(path), None, OutputPaths(source, path.parent, f"{path.stem}.")


def read_collected(path: Path) -> pd.DataFrame:
    """A parquet file that `collect` wrote into a sweep's folder. UserError where it is damaged."""
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:  # pyarrow's errors for damaged files derive from these
        why, again = str(error).splitlines()[0], f"python -m sweep collect {path.parent.name}"
        raise UserError(f"{path}: damaged ({why}); delete it and run `{again}`") from None


def _read_file(path: Path) -> pd.DataFrame:
    readers: dict[str, Callable[[Path], pd.DataFrame]] = {
        ".csv": pd.read_csv,
        ".parquet": pd.read_parquet,
        ".jsonl": lambda p: pd.read_json(p, lines=True),
    }
    if path.suffix not in readers:
        raise UserError(f"{path}: cannot read {path.suffix or 'this kind of'} file; give .csv, .parquet or .jsonl")
    try:
        table = readers[path.suffix](path)
    except (ValueError, OSError) as error:  # every parser's own error is one of these
        raise UserError(f"{path}: not a readable {path.suffix[1:]} file: {str(error).splitlines()[0]}") from None
    table.attrs["file"] = str(path)
    return table


def place(table: pd.DataFrame, row: int) -> str:
    """Where a person finds a row: for a CSV its line as an editor counts, the header and empty lines too."""
    path = Path(table.attrs.get("file", "the table"))
    if path.suffix != ".csv":
        return f"row {row} of {path.name}"
    with open(path, newline="") as file:
        reader = csv.reader(file)
        lines = (reader.line_num for record in reader if len(record) > 1 or "".join(record).strip())
        return f"{path.name} line {next(itertools.islice(lines, row + 1, None))}"


def read_activations(path: str) -> np.ndarray:
    """A two-dimensional array from a .npy file; no pickles."""
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"--activations {path}: not a readable .npy file: {str(error).splitlines()[0]}") from None


def parse_columns(text: str) -> dict[str, str]:
    """`N=params,loss=val` -> {"N": "params", "loss": "val"}. UserError names a role that does not exist."""
    columns = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        role, equals, column = part.partition("=")
        if not equals or not column or role not in ROLE_COLUMNS:
            raise UserError(f"--columns {part!r}: write ROLE=COLUMN, ROLE one of {', '.join(ROLE_COLUMNS)}")
        columns[role] = column
    return columns


def find_columns(table: pd.DataFrame, asked: Mapping[str, str], n_convention: str) -> dict[str, str]:
    """Role -> column of this table: as asked for, else by the usual names. UserError says what is there."""
    have = [str(c) for c in table.columns]
    for role, column in asked.items():
        if column not in have:
            raise UserError(f"--columns {role}={column}: no such column; there is {', '.join(have)}")
    usual = dict(ROLE_COLUMNS)
    if n_convention == "total":
        usual["N"] = ("params_total", *usual["N"][1:])
    found = {role: next((c for c in names if c in have), None) for role, names in usual.items()}
    columns = {role: column for role, column in found.items() if column is not None} | dict(asked)
    missing = "loss" if "loss" not in columns else None
    if missing is None and len({"N", "D", "C"} & set(columns)) < 2:
        missing = "two of N, D, C"
    if missing:
        raise UserError(f"the table has no column for {missing}; name it with --columns; there is {', '.join(have)}")
    return columns


def numbers(table: pd.DataFrame, column: str, role: str) -> np.ndarray:
    numbers = pd.to_numeric(table[column], errors="coerce")
    bad = table[column].notna() & numbers.isna() & (table[column].astype(str).str.lower() != "nan")
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise UserError(
            f"{place(table, row)}, column {column!r} ({role}): {table[column].iloc[row]!r} is not a number; "
            "correct it, or leave the cell empty"
        )
    return numbers.to_numpy(dtype=float, na_value=np.nan)
