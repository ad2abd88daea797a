"""The attempts at training a family: `attempts.jsonl` in its trunk's folder, which only this file reads and writes.

One line for each event:

  start           before training. `attempt` is its number, that of its claim; `time`; `family_id`; who trains, as the
                  claim's holder: `host`, `boot_id`, `pid_namespace`, `pid`, `started` (the process, not the attempt),
                  `nonce`, `job`; `worker_since`, when that process began to count as one that uses its device;
                  `device_share`, how much of it; `standing`, what was saved of the family at that moment; `trials`, ids
                  of all that it is to train; `log`, the file that its worker writes to; `last_beat`, the newest
                  heartbeat then, which is the end of the attempt before it if that was killed
  out of memory   went on with fewer sequences at a time: `attempt`, `micro_batch_sequences`, `device_model`
  end             `attempt`, `time`, `outcome`, `error` in one line. Outcomes: done; stopped; failed; lost, to another
                  worker; let go, by a stack that could not go on; given up
  retry           a person wants it tried again: `time`

An attempt without an end was killed. Attempts that began with the same things saved made no progress, and after some of
them a family is given up until a person says `retry`.
"""

import time
from dataclasses import asdict, dataclass
from typing import Any, Literal

from sweep.common.files import append_json, read_json_lines
from sweep.runs.claim import Claim
from sweep.runs.rundir import RunDir

GIVEN_UP: Literal["given up"] = "given up"


@dataclass
class Attempt:
    """What the file tells of one attempt. Times are in seconds since the epoch."""

    number: int
    started: float  # when the attempt began
    host: str
    pid: int
    process_started: float | None  # with host and pid, which process it was
    worker_since: float | None  # when that process began to use its device
    device_share: float
    job: dict[str, Any] | None  # Slurm's: id, name, restart, cluster, node
    saved: dict[str, Any] | None  # what there was of the family when it began
    trials: list[str]
    log: str | None  # the file that its worker wrote to, where that is known
    ended: float | None = None
    last_beat: float | None = None  # of one that was killed, as far as the next one knew
    outcome: str | None = None  # None: running, or killed
    error: str | None = None

    def made_no_progress_from(self, saved: dict[str, Any]) -> bool:
        """Whether this attempt speaks against trying again from there. A person's Ctrl-C does not, nor does what befell
        its stack: alone it may go well."""
        if self.outcome in ("lost", "let go", GIVEN_UP) or (self.outcome == "stopped" and self.job is None):
            return False
        return self.saved == saved


# ---- writing ----


def begin(
    trunk: RunDir,
    held: Claim,
    trials: list[str],
    saved: dict[str, Any],
    worker_since: float,
    device_share: float,
    log: str | None,
    last_beat: float | None,
) -> None:
    """An attempt at a claimed family begins."""
    row = {
        "attempt": held.generation,
        "time": time.time(),
        "family_id": trunk.path.name,
        **asdict(held.holder),
        "worker_since": worker_since,
        "standing": saved,
        "trials": trials,
        "log": log,
        "device_share": device_share,
        "last_beat": last_beat,
    }
    _append(trunk, "start", row)


def out_of_memory(trunk: RunDir, held: Claim, micro_batch_sequences: int, device_model: str) -> None:
    """The attempt goes on with so many sequences at a time, because more did not fit."""
    row = {
        "attempt": held.generation,
        "micro_batch_sequences": micro_batch_sequences,
        "device_model": device_model,
    }
    _append(trunk, "out of memory", row)


def end(trunk: RunDir, held: Claim, outcome: str, error: str | None) -> None:
    """The attempt is over."""
    _append(trunk, "end", {"time": time.time(), "attempt": held.generation, "outcome": outcome, "error": error})


def retry(trunk: RunDir) -> None:
    """Let a family that was given up be tried again."""
    _append(trunk, "retry", {"time": time.time()})


def _append(trunk: RunDir, event: str, row: dict[str, Any]) -> None:
    append_json(trunk.attempts, {"event": event, **row})


# ---- reading ----


def read(trunk: RunDir) -> list[Attempt]:
    """All attempts at a family, in order."""
    return _attempts(read_json_lines(trunk.attempts))


def without_progress(trunk: RunDir, saved: dict[str, Any]) -> list[Attempt]:
    """The last attempts, back to progress or a person's `retry`, that began with exactly this saved."""
    rows = read_json_lines(trunk.attempts)
    last_retry = max((index for index, row in enumerate(rows) if row["event"] == "retry"), default=-1)
    attempts = _attempts(rows[last_retry + 1 :])
    progress = max((i for i, one in enumerate(attempts) if one.saved != saved), default=-1)
    return [attempt for attempt in attempts[progress + 1 :] if attempt.made_no_progress_from(saved)]


def is_given_up(trunk: RunDir) -> bool:
    """Whether a person has to say `retry` before this family is tried again."""
    rows = read_json_lines(trunk.attempts)
    return bool(rows) and rows[-1].get("outcome") == GIVEN_UP


def trials_in_training(trunk: RunDir) -> set[str]:
    """The trials that the last attempt began for: one of another sweep may miss budgets that this one wants."""
    tried = read(trunk)
    return set(tried[-1].trials) if tried else set()


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
    """Older files lack some keys of a start."""
    found: dict[int, Attempt] = {}
    before: Attempt | None = None
    for row in rows:
        if row["event"] == "start":
            if before is not None and before.ended is None:
                before.last_beat = row.get("last_beat")
            before = found[row["attempt"]] = Attempt(
                number=row["attempt"],
                started=row["time"],
                host=row.get("host", ""),
                pid=row.get("pid", 0),
                process_started=row.get("started"),
                worker_since=row.get("worker_since"),
                device_share=row.get("device_share", 1.0),
                job=row.get("job"),
                saved=row.get("standing"),
                trials=row.get("trials", []),
                log=row.get("log"),
            )
        elif row["event"] == "end" and row["attempt"] in found:
            attempt = found[row["attempt"]]
            attempt.ended, attempt.outcome, attempt.error = row["time"], row["outcome"], row["error"]
    return list(found.values())
