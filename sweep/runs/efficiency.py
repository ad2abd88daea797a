"""What share of its devices' time a sweep turned into useful FLOPs: what it trained, over what its devices could do.

A device's time is that of the worker processes on it, from when they began to use it to the end of their last family.
So compiling, waiting, validation, failures, and everything that was trained twice count against it.
"""

from collections.abc import Iterable
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pandas as pd

from sweep.runs import attempt_log, claim
from sweep.runs.attempt_log import Attempt
from sweep.runs.rundir import RunDir

Process = tuple[str, int, float | None]  # host, pid, and when it started


def worker_seconds(runs: Path, family_ids: Iterable[str]) -> float:
    """Device seconds of all processes that trained these families: each one's time, times its share of a device. An
    attempt that was killed counts up to its last heartbeat."""
    spans: dict[Process, tuple[float, float]] = {}
    shares: dict[Process, float] = {}
    for attempt in chain.from_iterable(_attempts(RunDir.of_trunk(runs, name)) for name in family_ids):
        start = attempt.start
        process = start.host, start.pid, start.started
        began = start.worker_since or attempt.started
        known = attempt.ended or attempt.last_beat or attempt.started
        first, last = spans.get(process, (began, known))
        spans[process], shares[process] = (first, max(last, known)), start.device_share
    return sum(shares[process] * (last - first) for process, (first, last) in spans.items())


def _attempts(trunk: RunDir) -> list[Attempt]:
    found = attempt_log.read(trunk)
    if found and found[-1].ended is None:
        found[-1] = replace(found[-1], last_beat=claim.last_beat(trunk.path))
    return found


def efficiency(useful_flops: float, seconds: float, table: pd.DataFrame) -> float | None:
    """The useful FLOPs, as a fraction of what the devices could do in these device seconds; None where nobody measured
    what they can do (`flops_ceiling`, FLOPs per second). Where devices differ, the median over the trials is used."""
    if "flops_ceiling" not in table:
        return None
    ceiling = pd.to_numeric(table["flops_ceiling"]).median()
    return float(useful_flops / (seconds * ceiling)) if seconds > 0 and ceiling > 0 else None
