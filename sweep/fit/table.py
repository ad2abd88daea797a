"""A table of runs: where it is read from, what its columns are called, and where what is made of it goes.

A table is a sweep's own (`sweeps/<name>/table.parquet`) or any file (`table_files.py`) with columns for two of N
(parameters), D (tokens) and C (training FLOPs), and one for the loss. `rows.py` checks its rows.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from sweep.common.errors import UserError
from sweep.common.units import number_or_none
from sweep.fit import table_files
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
    "status": ("status", "state"),
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
    return table_files.read(path), None, OutputPaths(source, path.parent, f"{table_files.name_of(path)}.")


def read_collected(path: Path) -> pd.DataFrame:
    """A parquet file that `collect` wrote into a sweep's folder. UserError where it is damaged."""
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:  # pyarrow's errors for damaged files derive from these
        why, again = str(error).splitlines()[0], f"python -m sweep collect {path.parent.name}"
        raise UserError(f"{path}: damaged ({why}); delete it and run `{again}`") from None


def read_activations(path: str) -> np.ndarray:
    """A two-dimensional array from a .npy file; no pickles."""
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"--activations {path}: not a readable .npy file: {str(error).splitlines()[0]}") from None


def parse_columns(text: str) -> dict[str, str]:
    """`N=params,loss=val` -> {"N": "params", "loss": "val"}; a comma that no ROLE= follows is part of a column's name.
    UserError names a role that does not exist."""
    columns = {}
    another = re.compile(rf",\s*(?=(?:{'|'.join(ROLE_COLUMNS)})\s*=|$)")
    for part in filter(None, (p.strip() for p in another.split(text))):
        role, equals, column = (word.strip() for word in part.partition("="))
        if not equals or not column or role not in ROLE_COLUMNS:
            raise UserError(f"--columns {part!r}: write ROLE=COLUMN, ROLE one of {', '.join(ROLE_COLUMNS)}")
        columns[role] = column
    return columns


def find_columns(table: pd.DataFrame, asked: Mapping[str, str], n_convention: str) -> dict[str, str]:
    """Role -> column of this table: as asked for, else by the usual names. UserError says what is there."""
    have = [str(c) for c in table.columns]
    wanted = {}
    for role, column in asked.items():
        found = _find_name(have, column)
        if found is None:
            raise UserError(f"--columns {role}={column}: no such column; there is {', '.join(have)}")
        wanted[role] = found
    usual = dict(ROLE_COLUMNS)
    if n_convention == "total":
        usual["N"] = ("params_total", *usual["N"][1:])
    first = {
        role: next(filter(None, (_find_name(have, name) for name in names)), None) for role, names in usual.items()
    }
    columns = {role: column for role, column in first.items() if column is not None} | wanted
    missing = "loss" if "loss" not in columns else None
    if missing is None and len({"N", "D", "C"} & set(columns)) < 2:
        missing = "two of N, D, C"
    if missing:
        raise UserError(f"the table has no column for {missing}; name it with --columns; there is {', '.join(have)}")
    return columns


def _find_name(have: list[str], name: str) -> str | None:
    """The column of this name, or the only one that differs in case, spaces and dashes alone. A single letter is taken
    as it is written: d is hardly D, nor l the loss."""
    if name in have:
        return name
    alike = [column for column in have if len(name) > 1 and _plain(column) == _plain(name)]
    return alike[0] if len(alike) == 1 else None


def _plain(name: str) -> str:
    return re.sub(r"[\s\-]+", "_", name.strip()).lower()


def numbers(table: pd.DataFrame, column: str, role: str) -> np.ndarray:
    """A column as floats, empty cells NaN; 1.3B and 7,867,315 are numbers. UserError names the first that is none."""
    numbers = pd.to_numeric(table[column], errors="coerce")
    values = numbers.to_numpy(dtype=float, na_value=np.nan).copy()
    for row in np.flatnonzero(table[column].notna() & numbers.isna()).tolist():
        cell = table[column].iloc[row]
        number = number_or_none(str(cell))
        if number is None:
            raise UserError(
                f"{table_files.place(table, row)}, column {column!r} ({role}): {cell!r} is not a number; "
                "correct it, or leave the cell empty"
            )
        values[row] = number
    return values
