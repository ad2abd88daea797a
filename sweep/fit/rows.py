"""The rows of a table that a fit may use, and for every other row the reason why not.

Any two of N (parameters), D (tokens) and C (training FLOPs) give the third by C = 6 N D.

Shape suffixes: n rows of the table.
"""

import hashlib
import shlex
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from sweep.common import expressions
from sweep.common.errors import UserError
from sweep.common.units import counted
from sweep.fit import table_units
from sweep.fit.table import find_columns, numbers

# Words of a status column, in lower case and with spaces; no word at all says nothing, and the row is used.
FINISHED = ("finished", "completed", "complete", "done", "success", "successful", "succeeded", "ok", "nan", "none", "")
UNFINISHED = (  # ours, then those of W&B, MLflow, SEML, Optuna and Slurm
    *("running", "waiting", "queued", "stalled", "failed", "given up", "damaged", "lost", "missing", "stopped"),
    *(
        "crashed",
        "killed",
        "pending",
        "preempting",
        "preempted",
        "scheduled",
        "staged",
        "interrupted",
        "pruned",
        "fail",
    ),
    *("boot fail", "cancelled", "canceled", "completing", "configuring", "deadline", "launch failed", "node fail"),
    *("out of memory", "oom", "reconfig fail", "requeued", "requeue fed", "requeue hold", "resizing", "resv del hold"),
    *("revoked", "signaling", "special exit", "stage out", "suspended", "timeout", "timed out", "error", "errored"),
    *("aborted", "paused", "unfinished", "incomplete", "in progress", "submitted", "starting", "planned"),
)
DIVERGED = ("diverged", "nan loss")
REQUIRED = ("N", "D", "C", "loss")
NUMERIC_ROLES = (*REQUIRED, "unique_tokens", "steps", "lr", "weight")
N_CONVENTIONS = {"non_embedding": "params_non_embedding", "total": "params_total"}
C_CONVENTIONS = ("exact", "6nd")
SAME_SIZE = 1.01  # N of one run may differ by so much, since it may be made of rounded C and D
EXTRA = {"S": "steps", "U": "unique_tokens"}


class FitError(UserError):
    """The data cannot carry this fit: one line that says why, better than a number that only looks like a fit."""


@dataclass(frozen=True)
class Dropped:
    """A row (its position in the table) that a fit does not use. `reason` is one of REASONS."""

    row: int
    reason: str
    detail: str

    @property
    def shown(self) -> str:
        """The reason, with the condition where it was the user's own."""
        return f"{self.reason} ({self.detail})" if self.reason == "outside_range" else self.reason


REASONS = {
    "diverged": "the run's loss became infinite or not a number",
    "unfinished": "the run failed, is still running, or was never started",
    "unknown_status": "its status is no word that says whether the run has finished",
    "not_finite": "N, D, C or loss is missing or not finite",
    "not_positive": "N, D, C, loss or the weight is zero or negative",
    "mid_decay": "a point of a curve before its run's end, at another learning rate than the final one",
    "mid_run": "an earlier evaluation of a run of which a later row is there",
    "duplicate": "the same run, or the same N, D, C and loss, as an earlier row",
    "worse_lr": "another learning rate gave a lower loss for the same N and D",
    "undertuned": "the best learning rate is at the edge of those tried",
    "outside_range": "not in the range asked for with --where",
}


@dataclass(frozen=True)
class Convention:
    """How parameters and FLOPs are counted: N non_embedding or total, C exact (the table's) or 6nd; and the units of
    the table's columns where they are not ones and nats per token (`table_units.py`)."""

    N: str
    C: str
    units: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Rows:
    """The rows that a fit uses (arrays of shape (n,)), those that it does not, and where they come from."""

    row: np.ndarray  # position in the table
    N: np.ndarray
    D: np.ndarray
    C: np.ndarray
    loss: np.ndarray
    weight: np.ndarray  # of each row in the objective; 1 where the table has none
    family: np.ndarray  # any label; rows with the same label are not independent of each other
    extra: dict[str, np.ndarray]  # "S" optimizer steps, "U" unique tokens, where the table has them
    columns: dict[str, str]
    dropped: list[Dropped]
    unused: dict[str, np.ndarray]  # N, D, C, loss, extra and row of dropped rows that have the first four
    data_sha256: str
    convention: Convention
    warnings: list[str] = field(default_factory=list)

    def variables(self) -> dict[str, np.ndarray]:
        """Every variable that the forms may ask for and these rows have."""
        return {"N": self.N, "D": self.D, "C": self.C, "M": self.D / self.N} | self.extra

    @property
    def n_families(self) -> int:
        return len(np.unique(self.family.astype(str)))

    @property
    def dropped_by_reason(self) -> dict[str, int]:
        return dict(Counter(d.shown for d in self.dropped))


def prepare(
    table: pd.DataFrame,
    *,
    columns: Mapping[str, str] | None = None,
    where: str | None = None,
    n_convention: str = "non_embedding",
    c_convention: str = "exact",
    units: Mapping[str, str] | None = None,
    keep_undertuned: bool = False,
) -> Rows:
    """Check every row and keep those that a fit may use. UserError for a table that no fit can read."""
    if n_convention not in N_CONVENTIONS or c_convention not in C_CONVENTIONS:
        raise UserError(
            f"convention N={n_convention}, C={c_convention}: N is one of {', '.join(N_CONVENTIONS)}, "
            f"C one of {', '.join(C_CONVENTIONS)}"
        )
    if not len(table):
        raise UserError("the table has no rows")
    names = find_columns(table, columns or {}, n_convention)
    read = {role: numbers(table, names[role], role) for role in NUMERIC_ROLES if role in names}
    values = table_units.convert(read, units or {})
    _third(values, c_convention)
    check = _checked(table, names, values, where, keep_undertuned)
    used = np.flatnonzero(check.used_n)
    family_n, warnings = _families(table, names)
    warnings += [f"no column for {role}: C = 6 N D was assumed" for role in "NDC" if role not in names]
    warnings += _unknown_statuses(check) + check.warnings
    warnings += table_units.doubts(names, {role: values[role][used] for role in REQUIRED}, units or {})
    return Rows(
        row=used,
        **{role: values[role][used] for role in REQUIRED},
        weight=values["weight"][used] if "weight" in values else np.ones(len(used)),
        family=family_n[used],
        extra=_extra(values, used),
        columns=names,
        dropped=sorted(check.dropped, key=lambda d: d.row),
        unused=_unused(values, check.used_n),
        data_sha256=_fingerprint(values, family_n),
        convention=Convention(n_convention, c_convention if "C" in names else "6nd", dict(units or {})),
        warnings=warnings,
    )


def alternatives(
    table: pd.DataFrame,
    chosen: Rows,
    *,
    columns: Mapping[str, str] | None = None,
    where: str | None = None,
    keep_undertuned: bool = False,
) -> list[Rows]:
    """The same table under the other conventions for N and C that it has columns for; the options are as for
    `prepare`."""
    sizes = [n for n, column in N_CONVENTIONS.items() if column in table.columns and "N" not in (columns or {})]
    found = []
    for n_convention in sizes or [chosen.convention.N]:
        for c_convention in C_CONVENTIONS if "C" in chosen.columns else ("6nd",):
            if (n_convention, c_convention) != (chosen.convention.N, chosen.convention.C):
                found.append(
                    prepare(
                        table,
                        columns=columns,
                        where=where,
                        n_convention=n_convention,
                        c_convention=c_convention,
                        units=chosen.convention.units,
                        keep_undertuned=keep_undertuned,
                    )
                )
    return found


class _Check:
    """The rows still in use, and the reasons of the others; of several reasons the first is kept."""

    def __init__(self, n: int) -> None:
        self.used_n = np.ones(n, dtype=bool)
        self.dropped: list[Dropped] = []
        self.warnings: list[str] = []

    def drop(self, which_n: np.ndarray, reason: str, detail: str | Callable[[int], str] = "") -> None:
        assert reason in REASONS
        for row in np.flatnonzero(which_n & self.used_n).tolist():
            text = detail if isinstance(detail, str) else detail(row)
            self.dropped.append(Dropped(row, reason, text or REASONS[reason]))
        self.used_n &= ~which_n


def _checked(
    table: pd.DataFrame,
    names: Mapping[str, str],
    values: Mapping[str, np.ndarray],
    where: str | None,
    keep_undertuned: bool,
) -> _Check:
    """Every check on every row, in the order of the reasons. FitError where no row is left."""
    check = _Check(len(table))
    if where is not None:
        known = _with_roles(table, names, values)
        inside_n = expressions.mask(expressions.parse(where, [str(c) for c in known.columns]), known)
        check.drop(~inside_n, "outside_range", f"--where {shlex.quote(where.strip())}")
    _check_status(check, table, names, values)
    _check_numbers(check, values)
    if "weight" in values:
        check.drop(~(values["weight"] > 0), "not_positive", lambda row: f"weight is {values['weight'][row]:g}")
    _check_curves(check, table, names, values)
    check.warnings = _earlier_evaluations(check) + _check_duplicates(check, table, names, values)
    _check_learning_rates(check, values, keep_undertuned)
    if not check.used_n.any():
        if unknown := _unknown_statuses(check):
            raise FitError(f"no usable row among {len(table)}: {unknown[0]}")
        counts = pd.Series([d.shown for d in check.dropped]).value_counts()
        raise FitError(f"no usable row among {len(table)}: " + ", ".join(f"{v} {k}" for k, v in counts.items()))
    return check


def _extra(values: Mapping[str, np.ndarray], rows: np.ndarray) -> dict[str, np.ndarray]:
    return {name: values[role][rows] for name, role in EXTRA.items() if role in values}


def _unused(values: Mapping[str, np.ndarray], used_n: np.ndarray) -> dict[str, np.ndarray]:
    """Of the rows that are not used but have N, D, C and loss."""
    whole_n = np.all([np.isfinite(values[role]) & (values[role] > 0) for role in REQUIRED], axis=0)
    rows = np.flatnonzero(~used_n & whole_n)
    return {role: values[role][rows] for role in REQUIRED} | _extra(values, rows) | {"row": rows}


def _third(values: dict[str, np.ndarray], c_convention: str) -> None:
    """Any two of N, D, C give the third by C = 6 N D."""
    with np.errstate(all="ignore"):
        if "C" not in values or (c_convention == "6nd" and {"N", "D"} <= set(values)):
            values["C"] = 6 * values["N"] * values["D"]
        elif "N" not in values:
            values["N"] = values["C"] / (6 * values["D"])
        elif "D" not in values:
            values["D"] = values["C"] / (6 * values["N"])


def _unknown_statuses(check: _Check) -> list[str]:
    unknown = Counter(d.detail for d in check.dropped if d.reason == "unknown_status")
    return [
        f"{word} in {counted(count, 'row', 'rows')}, and no word for a run that has finished or has not: not fitted; "
        "write finished or failed"
        for word, count in unknown.items()
    ]


def _with_roles(table: pd.DataFrame, names: Mapping[str, str], values: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """The table with columns N, D, C, loss and tokens_per_param, for --where, unless it has others of these names; its
    own columns of numbers as numbers, however they are written."""
    known = {role: values[role] for role in REQUIRED}
    with np.errstate(all="ignore"):
        known["tokens_per_param"] = known["D"] / known["N"]
    read = {names[role]: values[role] for role in NUMERIC_ROLES if role in names}
    return table.assign(**read, **{name: column for name, column in known.items() if name not in table})


def _check_status(
    check: _Check, table: pd.DataFrame, names: Mapping[str, str], values: Mapping[str, np.ndarray]
) -> None:
    if "status" in names:
        column = table[names["status"]].astype(object)
        shown = column.where(column.notna(), "").astype(str)
        # "OUT_OF_MEMORY", "CANCELLED by 1000" and "CANCELLED+" are how Slurm's sacct writes them
        status = (
            shown.str.lower().str.replace(r"[_\-\s]+", " ", regex=True).str.replace(r"( by .*|\+)$", "", regex=True)
        )
        status = status.str.strip()
        check.drop(status.isin(DIVERGED).to_numpy(), "diverged")
        check.drop(status.isin(UNFINISHED).to_numpy(), "unfinished", lambda row: f"status is {shown.iloc[row].lower()}")
        unknown = ~status.isin(FINISHED).to_numpy()
        check.drop(unknown, "unknown_status", lambda row: f"status is {shown.iloc[row]!r}")
    check.drop(np.isinf(values["loss"]), "diverged")


def _check_numbers(check: _Check, values: Mapping[str, np.ndarray]) -> None:
    for role in REQUIRED:

        def shown(row: int, role: str = role) -> str:
            return f"{role} is {values[role][row]:g}"

        check.drop(~np.isfinite(values[role]), "not_finite", shown)
        check.drop(~(values[role] > 0), "not_positive", shown)


def _check_curves(
    check: _Check, table: pd.DataFrame, names: Mapping[str, str], values: Mapping[str, np.ndarray]
) -> None:
    """Several rows of one run are points along its curve: only the last is a decayed loss, and where the run ended in
    another way than it should, none. FitError where the rows of a run have several sizes: it is no run then."""
    if "run" not in names:
        return
    runs = pd.Series(table[names["run"]].to_numpy())
    ended_n = check.used_n.copy()  # rows that say how far their run came, or how it ended
    ended_n[[d.row for d in check.dropped if d.reason in ("diverged", "unfinished", "unknown_status")]] = True
    sizes = pd.Series(values["N"])[check.used_n].groupby(runs[check.used_n]).agg(["min", "max"])
    several = sizes[sizes["max"] > SAME_SIZE * sizes["min"]]
    if len(several):
        run, (least, most) = several.index[0], several.iloc[0]
        raise FitError(
            f"the run {run!r} of column {names['run']!r} has rows of N = {least:g} and of N = {most:g}; a run has one "
            "size; name the column that tells runs apart with --columns run=COLUMN, or rename this one"
        )
    D = pd.Series(values["D"])
    last = D[ended_n].groupby(runs[ended_n]).transform("max").reindex(D.index)
    check.drop((last > D).to_numpy(), "mid_decay" if "phase" in names else "mid_run")


def _earlier_evaluations(check: _Check) -> list[str]:
    count = sum(d.reason == "mid_run" for d in check.dropped)
    if not count:
        return []
    return [f"{counted(count, 'row is', 'rows are')} earlier evaluations of a run: only the last of each run is fitted"]


def _check_duplicates(
    check: _Check, table: pd.DataFrame, names: Mapping[str, str], values: Mapping[str, np.ndarray]
) -> list[str]:
    """Drop what repeats an earlier row; a warning where one run has two losses at the same tokens."""
    keys = pd.DataFrame({role: values[role] for role in ("N", "D", "C", "loss", "lr") if role in values})
    check.drop(_again(keys[check.used_n], len(table)), "duplicate")
    if "run" not in names:
        return []
    both = keys.assign(run=table[names["run"]].to_numpy())
    again_n = _again(both.loc[check.used_n, ["run", "D"]], len(table))
    first = both[check.used_n].groupby(["run", "D"])["loss"].transform("first").reindex(both.index)
    differ = np.flatnonzero(again_n & ~np.isclose(both["loss"], first, rtol=1e-6, atol=0))
    check.drop(again_n, "duplicate", "the same run and tokens as an earlier row")
    if not len(differ):
        return []
    run, loss, other = both["run"].iloc[differ[0]], first.iloc[differ[0]], both["loss"].iloc[differ[0]]
    return [
        f"{counted(len(differ), 'row gives', 'rows give')} a run a second loss at the same tokens "
        f"(run {run}: {loss:g}, then {other:g}): the first is fitted"
    ]


def _again(frame: pd.DataFrame, n: int) -> np.ndarray:
    """Which rows repeat an earlier one, as a mask over all `n` rows of the table."""
    again_n = np.zeros(n, dtype=bool)
    again_n[frame.index[frame.duplicated()]] = True
    return again_n


def _check_learning_rates(check: _Check, values: Mapping[str, np.ndarray], keep_undertuned: bool) -> None:
    """Where a cell (N, D) was trained at several learning rates: keep the best (least mean log loss over its
    replicates); three or more with the best at the edge mean that the cell is undertuned."""
    if "lr" not in values or len(np.unique(values["lr"][check.used_n])) < 2:
        return
    frame = pd.DataFrame({"N": values["N"], "D": values["D"], "lr": values["lr"], "y": np.log(values["loss"])})
    for (_, _), cell in frame[check.used_n].groupby(["N", "D"]):
        mean = cell.groupby("lr")["y"].mean()
        if len(mean) < 2:
            continue
        best = mean.idxmin()
        rows = np.zeros(len(frame), dtype=bool)
        rows[cell.index[cell["lr"] != best]] = True
        check.drop(rows, "worse_lr", f"{best:g} × was better for this size and these tokens")
        if len(mean) >= 3 and best in (mean.index[0], mean.index[-1]) and not keep_undertuned:
            rows = np.zeros(len(frame), dtype=bool)
            rows[cell.index[cell["lr"] == best]] = True
            side = "lowest" if best == mean.index[0] else "highest"
            check.drop(rows, "undertuned", f"the best learning rate, {best:g} ×, is the {side} tried")


def _families(table: pd.DataFrame, names: Mapping[str, str]) -> tuple[np.ndarray, list[str]]:
    for role in ("family", "run"):
        if role in names:
            return table[names[role]].astype(str).to_numpy(dtype=object), []
    warning = "no family or run column: every row is taken as independent of the others"
    return np.arange(len(table)).astype(object), [warning]


def _fingerprint(values: Mapping[str, np.ndarray], family_n: np.ndarray) -> str:
    """sha256 of the numbers that a fit can see, whatever the file's format and the other columns."""
    digest = hashlib.sha256()
    for role in REQUIRED:
        digest.update(np.ascontiguousarray(values[role], dtype="<f8").tobytes())
    digest.update("\0".join(map(str, family_n)).encode())
    return digest.hexdigest()
