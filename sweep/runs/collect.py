"""From run directories to a sweep's table: every planned trial one row, whatever became of it.

Reads `plan.jsonl`, records, metrics and samples; needs neither torch nor the models. Records never change, so rows
whose record was read before are taken from the last `table.parquet`.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from sweep.common import artefacts, files
from sweep.common.errors import UserError
from sweep.runs import launches
from sweep.runs.efficiency import efficiency, worker_seconds
from sweep.runs.metrics import MetricsRow, Sample, Scale
from sweep.runs.planned import Facts
from sweep.runs.rundir import RunDir
from sweep.runs.settings import Excluded, SweepSettings
from sweep.runs.state import NoQueue, Queue, States, TrialState
from sweep.runs.sweepdir import SweepDir

RESULTS = (  # fields of the record that are columns of the table under the same name
    "loss_nats",
    "best_loss_nats",
    "best_tokens",
    "train_loss_nats",
    "bits_per_byte",
    "intrinsic_dimension",
    "dimension_points",
    "tokens_per_second",
    "mfu",
    "flops_ceiling",
    "wall_seconds",
    "shared_steps",
    "device",
    "execution_class",
    "code_hash",
)
OWN_SECONDS = "device_seconds"  # what the record's `own_seconds` is called in the table


Row = dict[str, Any]  # of the table: column → value


@dataclass(frozen=True)
class History:
    """A table of what runs wrote along the way: a row for each line of each run's file."""

    table: str
    file: str
    line: type[MetricsRow] | type[Sample]
    of_trial: tuple[str, ...]  # columns that come from the trial's row
    of_line: tuple[str, ...]  # columns that come from the line


@dataclass(frozen=True)
class Meta:
    """What the report says about a sweep beside its table: `meta.json`. Older files may lack anything."""

    name: str = ""
    command: list[str] = field(default_factory=list)
    collected_at: float = 0.0  # seconds since the epoch
    device: list[str] = field(default_factory=list)
    dollars_per_device_hour: float | None = None
    flops_total: float = 0.0  # of all finished trials, each with its trunk
    flops_saved: float = 0.0  # because families share a trunk
    worker_seconds: float | None = None
    efficiency: float | None = None  # useful FLOPs over what the workers' devices could have done
    excluded: list[Excluded] = field(default_factory=list)
    reference_lines: dict[str, float] = field(default_factory=dict)  # nats per token, by name
    bytes_per_token: float | None = None


CURVES = History(
    "curves",
    "metrics.jsonl",
    MetricsRow,
    ("trial_id", "family_id", "params_non_embedding"),
    (
        "phase",
        "step",
        "tokens",
        "flops",
        "lr",
        "train_loss_nats",
        "val_loss_nats",
        "grad_norm",
        "tokens_per_second",
        "mfu",
    ),
)
SAMPLES = History("samples", "samples.jsonl", Sample, ("trial_id",), ("step", "tokens", "prompt", "text"))


@dataclass
class Collected:
    """The three tables of a sweep, and how many runs had to be read for them."""

    table: pd.DataFrame
    curves: pd.DataFrame
    samples: pd.DataFrame
    read: int


def collect(sweep: SweepDir, ask_queue: Callable[[], Queue] = NoQueue) -> Collected:
    """Collect a sweep and write its parquet files and `meta.json`. The queue is asked only if records are missing."""
    folder, settings = sweep.path, sweep.settings()
    runs = Path(settings.paths.runs)
    before, planned = _before(folder), sweep.planned()
    stamps = {facts.trial_id: _stamp(RunDir.of_trial(runs, facts.trial_id).record) for facts in planned}
    queue = ask_queue() if None in stamps.values() else NoQueue()
    states = States(runs, queue, launches.alive(folder))
    rows, fresh = [], []
    for facts in planned:
        row, stamp = before.get(facts.trial_id), stamps[facts.trial_id]
        if row is None or stamp is None or row["record_stamp"] != stamp:
            row = _row(facts, states, stamp)
            fresh.append(row)
        rows.append(row)
    kept = {row["trial_id"] for row in rows} - {row["trial_id"] for row in fresh}
    curves = _history(CURVES, folder, kept, fresh, runs)
    samples = _history(SAMPLES, folder, kept, fresh, runs)
    table = pd.DataFrame(rows)
    if fresh or not before:
        for name, frame in (("table", table), ("curves", curves), ("samples", samples)):
            _write(folder / f"{name}.parquet", frame)
    seconds = _worker_seconds(folder / "meta.json", runs, table, changed=bool(fresh))
    files.write_json(folder / "meta.json", asdict(_meta(folder.name, settings, table, seconds)))
    return Collected(table, curves, samples, read=len(fresh))


def _before(folder: Path) -> dict[str, Row]:
    """Rows of the last table that came from a record."""
    path = folder / "table.parquet"
    if not all((folder / f"{name}.parquet").exists() for name in ("table", "curves", "samples")):
        return {}
    table = _read(path)
    if "record_stamp" not in table:
        return {}
    return {row["trial_id"]: row for row in table[table["record_stamp"] != ""].to_dict("records")}


def _stamp(record: Path) -> str | None:
    """Changes whenever the record file is another one."""
    try:
        stat = record.stat()
    except FileNotFoundError:
        return None
    return f"{stat.st_mtime_ns}-{stat.st_ino}"


def _row(facts: Facts, states: States, stamp: str | None) -> Row:
    """A trial's row of the table: its facts, how it stands and why, and its results."""
    state = states.trial(facts.trial_id, facts.family_id)
    record = state.record
    row = {**vars(facts), "status": state.kind, "reason": _reason(state, facts.steps), "record_stamp": ""}
    if record is None:
        return row | dict.fromkeys((*RESULTS, OWN_SECONDS))
    results = {name: vars(record)[name] for name in RESULTS} | {OWN_SECONDS: record.own_seconds}
    return row | {"record_stamp": stamp or ""} | results


def _reason(state: TrialState, steps: int) -> str | None:
    if state.kind == "running" and state.held is not None:
        return f"step {state.held.heartbeat.step} of {steps}"
    return state.reason or None


def _history(history: History, folder: Path, kept: set[str], fresh: list[Row], runs: Path) -> pd.DataFrame:
    """Rows of all trials: those of unchanged trials from the last table, the others read."""
    data: dict[str, list[Any]] = {key: [] for key in (*history.of_trial, *history.of_line)}
    for row in fresh:
        try:
            lines = _lines(history, RunDir.of_trial(runs, row["trial_id"]).path)
        except UserError as error:  # the result stands; its curve is read again next time
            row |= {"reason": str(error), "record_stamp": ""}
            continue
        for key in history.of_trial:
            data[key] += [row[key]] * len(lines)
        for key in history.of_line:
            data[key] += [line[key] for line in lines]
    frame = pd.DataFrame(data)
    if not kept:
        return frame
    old = _read(folder / f"{history.table}.parquet")
    return old if not fresh else pd.concat([old[old["trial_id"].isin(kept)], frame], ignore_index=True)


def _lines(history: History, run: Path) -> list[Row]:
    """The lines of a run's file."""
    return [vars(line) for line in artefacts.read_lines(history.line, run / history.file)]


def _read(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:  # pyarrow's errors derive from these
        raise UserError(f"{path}: damaged ({error}); delete it and collect again") from error


def _write(path: Path, frame: pd.DataFrame) -> None:
    files.write(path, lambda file: frame.to_parquet(file, index=False))


def _worker_seconds(meta: Path, runs: Path, table: pd.DataFrame, changed: bool) -> float:
    """The time of the sweep's workers, asked of every family's attempts only when a run has changed."""
    known = artefacts.read(Meta, meta).worker_seconds if meta.exists() and not changed else None
    return worker_seconds(runs, table["family_id"].unique()) if known is None else known


def _meta(name: str, settings: SweepSettings, table: pd.DataFrame, seconds: float) -> Meta:
    """What the report says about the sweep beside its table."""
    finished = table[table["status"] == "finished"]
    shared_flops = finished["shared_steps"].fillna(0) * finished["batch_tokens"] * finished["flops_per_token"]
    trunks = shared_flops.groupby(finished["family_id"]).max()
    useful = float(finished["flops"].sum() - shared_flops.sum() + trunks.sum())
    lines, bytes_per_token = _reference(Path(settings.paths.tokens), table)
    return Meta(
        name=name,
        command=settings.command,
        collected_at=time.time(),
        device=sorted(finished["device"].dropna().unique()),
        dollars_per_device_hour=settings.cluster.dollars_per_device_hour,
        flops_total=float(finished["flops"].sum()),
        flops_saved=float(shared_flops.sum() - trunks.sum()),
        worker_seconds=seconds,
        efficiency=efficiency(useful, seconds, finished),
        excluded=settings.excluded,
        reference_lines=lines,
        bytes_per_token=bytes_per_token,
    )


def _reference(tokens: Path, table: pd.DataFrame) -> tuple[dict[str, float], float | None]:
    """The lines that losses are read against; none where the trials are of several data sets."""
    fingerprints = table["data_fingerprint"].unique()
    path = tokens / fingerprints[0] / "meta.json"
    if len(fingerprints) != 1 or not path.exists():
        return {}, None
    scale = artefacts.read(Scale, path)
    return scale.reference_lines, scale.bytes_per_token
