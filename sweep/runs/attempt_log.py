"""The attempts at training a family: `attempts.jsonl` in its trunk's folder, which only this file reads and writes.

One line for each event, each a dataclass below: an attempt starts; it goes on with fewer sequences at a time because
device memory was full; it ends; a person asks for a retry. An attempt without an end was killed, or is running.
Attempts that began from the same saved state made no progress, and after some of them in a row a family is given up
until a person says `retry`.
"""

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Literal

from pydantic import AliasChoices, Field

from sweep.common import artefacts
from sweep.common.files import append_json
from sweep.runs.claim import Claim, Job
from sweep.runs.rundir import RunDir

GIVEN_UP: Literal["given up"] = "given up"


@dataclass(frozen=True)
class SavedState:
    """What there was of a family when an attempt began. Any training that is saved changes it."""

    records: int = 0  # of its trials
    trunk_steps: list[int] = field(default_factory=list)  # the step of the trunk's last checkpoint
    trial_steps: dict[str, int | None] = field(default_factory=dict)  # by trial id, of its checkpoint; None: damaged


# ---- the events, as lines of the file; fields with a default came later than the first files ----


@dataclass(frozen=True)
class Start:
    """An attempt begins. Of the holder of its claim: host, boot_id, pid_namespace, pid, started, nonce, job."""

    attempt: int  # the number of its claim
    time: float  # seconds since the epoch
    family_id: str = ""
    host: str = ""
    boot_id: str = ""
    pid_namespace: str = ""
    pid: int = 0
    started: float | None = None  # seconds since the epoch, of the process
    nonce: str = ""
    job: Job | None = None
    worker_since: float | None = None  # seconds since the epoch: when the process began to use its device
    device_share: float = 1.0  # of one device
    # Files of before 2026-12 call it `standing`.
    saved_state: Annotated[SavedState | None, Field(validation_alias=AliasChoices("saved_state", "standing"))] = None
    trials: list[str] = field(default_factory=list)  # ids of all that it is to train
    log: str | None = None  # the file that the worker writes to
    last_beat: float | None = None  # seconds since the epoch: where the attempt before was killed, its last heartbeat
    event: Literal["start"] = "start"


@dataclass(frozen=True)
class OutOfMemory:
    """The attempt goes on with fewer sequences at a time, because more did not fit in device memory."""

    attempt: int
    micro_batch_sequences: int
    device_model: str
    event: Literal["out of memory"] = "out of memory"


@dataclass(frozen=True)
class End:
    """The attempt is over. Outcomes: done; stopped, by a signal; failed; lost, to another worker; let go, by a stack
    that could not go on; given up, without training."""

    attempt: int
    time: float  # seconds since the epoch
    outcome: str
    error: str | None = None  # in one line
    event: Literal["end"] = "end"


@dataclass(frozen=True)
class Retry:
    """A person wants the family tried again."""

    time: float  # seconds since the epoch
    event: Literal["retry"] = "retry"


Event = Annotated[Start | OutOfMemory | End | Retry, Field(discriminator="event")]


@dataclass(frozen=True)
class Attempt:
    """One attempt, put together from its events. Times are in seconds since the epoch."""

    start: Start
    end: End | None = None  # None: it is running, or was killed
    last_beat: float | None = None  # of one that was killed, as far as the next attempt knew

    @property
    def number(self) -> int:
        return self.start.attempt

    @property
    def started(self) -> float:
        return self.start.time

    @property
    def ended(self) -> float | None:
        return self.end.time if self.end else None

    @property
    def outcome(self) -> str | None:
        return self.end.outcome if self.end else None

    @property
    def error(self) -> str | None:
        return self.end.error if self.end else None

    @property
    def job(self) -> Job | None:
        return self.start.job

    @property
    def has_failed(self) -> bool:
        return self.outcome in ("failed", GIVEN_UP)

    def includes(self, trial_id: str) -> bool:
        """Whether it is to train a trial: an attempt of another sweep may leave out budgets that this one wants."""
        return not self.start.trials or trial_id in self.start.trials

    def made_no_progress_from(self, saved: SavedState) -> bool:
        """Whether this attempt speaks against trying again from there. One that a person ended with Ctrl-C does not,
        nor one that ended because of its stack: alone the family may train well."""
        if self.outcome in ("lost", "let go", GIVEN_UP) or (self.outcome == "stopped" and self.job is None):
            return False
        return self.start.saved_state == saved


# ---- writing ----


def begin(
    trunk: RunDir,
    held: Claim,
    trials: list[str],
    saved: SavedState,
    worker_since: float,
    device_share: float,
    log: str | None,
    last_beat: float | None,
) -> None:
    """Write down that an attempt at a claimed family begins."""
    start = Start(
        attempt=held.generation,
        time=time.time(),
        family_id=trunk.path.name,
        **vars(held.holder),
        worker_since=worker_since,
        device_share=device_share,
        saved_state=saved,
        trials=trials,
        log=log,
        last_beat=last_beat,
    )
    _append(trunk, start)


def out_of_memory(trunk: RunDir, held: Claim, micro_batch_sequences: int, device_model: str) -> None:
    """Write down that the attempt goes on with so many sequences at a time, because more did not fit."""
    _append(trunk, OutOfMemory(held.generation, micro_batch_sequences, device_model))


def end(trunk: RunDir, held: Claim, outcome: str, error: str | None) -> None:
    """Write down that the attempt is over, and how it went."""
    _append(trunk, End(held.generation, time.time(), outcome, error))


def retry(trunk: RunDir) -> None:
    """Let a family that was given up be tried again."""
    _append(trunk, Retry(time.time()))


def _append(trunk: RunDir, event: Start | OutOfMemory | End | Retry) -> None:
    append_json(trunk.attempts, asdict(event))


# ---- reading ----


def events(trunk: RunDir) -> list[Event]:
    """Every event of a family, in order; UserError names a damaged line."""
    return artefacts.read_lines(Event, trunk.attempts)  # type: ignore[arg-type]


def read(trunk: RunDir) -> list[Attempt]:
    """All attempts at a family, in order."""
    return attempts(events(trunk))


def attempts(of: Iterable[Event]) -> list[Attempt]:
    """The attempts that events tell of, in order."""
    found: dict[int, Attempt] = {}
    before: Attempt | None = None
    for event in of:
        if isinstance(event, Start):
            if before is not None and found[before.number].end is None:
                found[before.number] = replace(before, last_beat=event.last_beat)
            before = found[event.attempt] = Attempt(event)
        elif isinstance(event, End) and event.attempt in found:
            found[event.attempt] = replace(found[event.attempt], end=event)
    return list(found.values())


def without_progress(trunk: RunDir, saved: SavedState) -> list[Attempt]:
    """The last attempts, back to progress or a person's `retry`, that began from exactly this saved state."""
    found = events(trunk)
    last_retry = max((index for index, event in enumerate(found) if isinstance(event, Retry)), default=-1)
    since = attempts(found[last_retry + 1 :])
    progress = max((index for index, one in enumerate(since) if one.start.saved_state != saved), default=-1)
    return [attempt for attempt in since[progress + 1 :] if attempt.made_no_progress_from(saved)]


def is_given_up(trunk: RunDir) -> bool:
    """Whether a person has to say `retry` before this family is tried again."""
    return says_given_up(events(trunk))


def says_given_up(of: list[Event]) -> bool:
    """The same from a family's events."""
    return bool(of) and isinstance(of[-1], End) and of[-1].outcome == GIVEN_UP


def micro_batch_that_fits(trunk: RunDir, device_model: str) -> int | None:
    """The micro-batch (sequences) that an attempt on such a device went on with when its memory was full; None where
    that never happened."""
    fitting = [
        event.micro_batch_sequences
        for event in events(trunk)
        if isinstance(event, OutOfMemory) and event.device_model == device_model
    ]
    return fitting[-1] if fitting else None
