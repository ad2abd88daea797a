"""What share of the devices' time a sweep turned into useful FLOPs: what it trained, over what its devices could do.

The time of a device is that of the worker processes on it, from their start to the end of their last family, so that
compiling, waiting, validation, failures and what was trained twice all count against it.
"""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from sweep.files import read_json_lines
from sweep.rundir import RunDir

Process = tuple[str | None, int | None, float | None]  # host, pid, and when it started


def worker_seconds(runs: Path, family_ids: Iterable[str]) -> float:
    """Of all processes that trained these families, each times its share of a device. An attempt that was killed counts
    up to its last known moment."""
    spans: dict[Process, tuple[float, float]] = {}
    shares: dict[Process, float] = {}
    for family_id in family_ids:
        process: Process | None = None
        for row in read_json_lines(RunDir.of_trunk(runs, family_id).attempts):
            if row["event"] == "start":
                process = (row.get("host"), row.get("pid"), row.get("started"))
                shares[process] = row.get("device_share", 1.0)
            if process is not None and "time" in row:
                first, last = spans.get(process, (row.get("worker_since") or row["time"], row["time"]))
                spans[process] = first, max(last, row["time"])
    return sum(shares[process] * (last - first) for process, (first, last) in spans.items())


def efficiency(useful_flops: float, seconds: float, table: pd.DataFrame) -> float | None:
    """None where no ceiling was measured. Where devices differ, the median of the trials' counts."""
    if "flops_ceiling" not in table:
        return None
    ceiling = pd.to_numeric(table["flops_ceiling"]).median()
    return float(useful_flops / (seconds * ceiling)) if seconds > 0 and ceiling > 0 else None
