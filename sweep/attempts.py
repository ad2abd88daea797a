"""The attempts at training a family, as `attempts.jsonl` in its trunk's folder tells them.

  {"event": "start", "attempt": n, "time", "job", "host", "pid", …, "standing", "trials", "log"}    before training
  {"event": "out of memory", "attempt": n, "micro_batch_sequences", "device_model"}       went on with a smaller one
  {"event": "end", "attempt": n, "time", "outcome", "error"}       outcome: done, stopped, failed, lost, given up
  {"event": "retry", "time"}                                       a person wants it tried again

An attempt without an end was killed. `standing` is what was there when it began; attempts that began from the same
standing made no progress, and after some of them a family is given up until a person says `retry`.
"""

import time
from dataclasses import dataclass
from typing import Any

from sweep.files import read_json_lines
from sweep.rundir import RunDir

GIVEN_UP = "given up"


@dataclass
class Attempt:
    number: int
    started: float  # seconds since the epoch
    host: str
    pid: int
    job: dict[str, Any] | None  # id, restart, cluster, node: of Slurm
    standing: dict[str, Any] | None
    log: str | None  # the file that its worker wrote to, where that is known
    ended: float | None = None
    outcome: str | None = None  # None: running, or killed
    error: str | None = None

    def made_no_progress_from(self, standing: dict[str, Any]) -> bool:
        """Whether this attempt speaks against trying again from there. A person's Ctrl-C does not."""
        if self.outcome in ("lost", GIVEN_UP) or (self.outcome == "stopped" and self.job is None):
            return False
        return self.standing == standing


def read(trunk: RunDir) -> list[Attempt]:
    """All attempts at a family, in order."""
    return _attempts(read_json_lines(trunk.attempts))


def without_progress(trunk: RunDir, standing: dict[str, Any]) -> list[Attempt]:
    """The last attempts, back to progress or a person's `retry`, that began from this very standing."""
    rows = read_json_lines(trunk.attempts)
    last_retry = max((index for index, row in enumerate(rows) if row["event"] == "retry"), default=-1)
    attempts = _attempts(rows[last_retry + 1 :])
    progress = max((i for i, one in enumerate(attempts) if one.standing != standing), default=-1)
    return [attempt for attempt in attempts[progress + 1 :] if attempt.made_no_progress_from(standing)]


def is_given_up(trunk: RunDir) -> bool:
    """Whether a person has to say `retry` before this family is tried again."""
    rows = read_json_lines(trunk.attempts)
    return bool(rows) and rows[-1].get("outcome") == GIVEN_UP


def retry(trunk: RunDir) -> None:
    """Let a family that was given up be tried again."""
    trunk.attempt("retry", time=time.time())


def trials_in_training(trunk: RunDir) -> set[str]:
    """The trials that the last attempt began for: one of another sweep may miss budgets that this one wants."""
    starts = [row for row in read_json_lines(trunk.attempts) if row["event"] == "start"]
    return set(starts[-1].get("trials", ())) if starts else set()


def micro_batch_that_fits(trunk: RunDir, device_model: str) -> int | None:
    """What an attempt on such a device went on with when its memory was full; None where it never was."""
    rows = read_json_lines(trunk.attempts)
    sizes = [
        row["micro_batch_sequences"]
        for row in rows
        if row["event"] == "out of memory" and row["device_model"] == device_model
    ]
    return sizes[-1] if sizes else None


def _attempts(rows: list[dict[str, Any]]) -> list[Attempt]:
    found: dict[int, Attempt] = {}
    for row in rows:
        if row["event"] == "start":
            known = {key: row.get(key) for key in ("host", "pid", "job", "standing", "log")}
            found[row["attempt"]] = Attempt(number=row["attempt"], started=row["time"], **known)  # type: ignore[arg-type]
        elif row["event"] == "end" and row["attempt"] in found:
            attempt = found[row["attempt"]]
            attempt.ended, attempt.outcome, attempt.error = row["time"], row["outcome"], row["error"]
    return list(found.values())
