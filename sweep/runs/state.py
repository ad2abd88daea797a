"""How a trial stands, and a family: the one answer that every verb, table and worker uses. Reads only.

What is on disk counts first: a trial's record, then its family's claim, then the queue, then launches that are alive on
a machine, then how the last attempt ended. The queue's view (`Queue`) and the launches are handed in.

  finished, diverged   it has a record
  damaged              it has a record that cannot be read, which keeps it from being trained
  running              its family is claimed, and it is the one that is trained
  waiting              its turn has not come: its family, job or launch trains something else first
  queued               its job is in the queue; the reason is the scheduler's
  stalled              its family is claimed, but the claim has been silent for long
  failed               for a reason of its own, or with its family or job
  given up             after attempts without progress; a person has to say `retry`
  lost                 its attempt or job exited without reporting a result
  missing              nobody trains it: never started, stopped, cancelled, or not reached
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, get_args

from sweep.common.errors import UserError
from sweep.common.units import duration
from sweep.runs import attempt_log, claim
from sweep.runs.attempt_log import Attempt
from sweep.runs.claim import Held, Job
from sweep.runs.launches import Launch
from sweep.runs.record import Record
from sweep.runs.rundir import Failure, RunDir

Kind = Literal[
    "finished", "diverged", "running", "waiting", "queued", "stalled", "failed", "given up", "damaged", "lost",
    "missing",
]  # fmt: skip
KINDS: tuple[Kind, ...] = get_args(Kind)
WITH_RECORD: tuple[Kind, ...] = ("finished", "diverged", "damaged")  # nobody trains these
MAY_CHANGE: tuple[Kind, ...] = ("running", "waiting", "queued", "stalled")  # without anybody launching again
START_SECONDS = 30.0  # that a node's clock may be behind when a job's start is compared with its attempts


@dataclass(frozen=True)
class QueuedJob:
    """A job, or array element, that is in the queue and is to train a family."""

    job_id: str
    state: str  # the scheduler's word
    reason: str  # why it waits, in the scheduler's word too
    node: str
    run_seconds: float  # since it was started last

    @property
    def is_running(self) -> bool:
        return self.state == "RUNNING"

    @property
    def where(self) -> str:
        return _place(self.node, self.job_id)


@dataclass(frozen=True)
class SubmittedJob:
    """A job, or array element, that was submitted for a family; it may have left the queue."""

    job_id: str
    submitted: float  # seconds since the epoch


@dataclass(frozen=True)
class NotTrained:
    """What became of a job that ended before training began."""

    kind: Kind
    reason: str


class Queue(Protocol):
    """What the scheduler says of a sweep's jobs; `slurm/queue_state.py` fills it."""

    def job_is_gone(self, job: Job) -> bool | None:
        """For claims: None where nothing is known."""

    def job_in_queue(self, family_id: str) -> QueuedJob | None:
        """The newest job in the queue that is to train a family."""

    def last_job(self, family_id: str) -> SubmittedJob | None:
        """The newest job that was ever submitted for a family."""

    def families_of(self, job_id: str) -> list[str]:
        """All families that a job is to train."""

    def not_trained(self, job_id: str) -> NotTrained:
        """Why a job that is not in the queue ended before training began."""

    def how_ended(self, job_id: str) -> str | None:
        """The scheduler's word for how a job ended, or None where it does not know."""


class NoQueue:
    """The view of a sweep that no scheduler knows of."""

    def job_is_gone(self, job: Job) -> bool | None:
        return None

    def job_in_queue(self, family_id: str) -> QueuedJob | None:
        return None

    def last_job(self, family_id: str) -> SubmittedJob | None:
        return None

    def families_of(self, job_id: str) -> list[str]:
        return []

    def not_trained(self, job_id: str) -> NotTrained:
        return NotTrained("missing", "")

    def how_ended(self, job_id: str) -> str | None:
        return None


@dataclass(frozen=True)
class FamilyState:
    """What is known of a family before any one of its trials is looked at."""

    family_id: str
    held: Held | None = None  # the claim on it that counts
    queued: QueuedJob | None = None
    job_trains: bool = False  # whether the queued job runs, and has begun a family since it was started
    launch: Launch | None = None  # one that is alive and has not come to the family yet
    under_way: Launch | None = None  # one that is alive and about the family, whether it will come to it or has
    never_began: SubmittedJob | None = None  # its last job, if that trained nothing of the family
    last: Attempt | None = None
    log: Path | None = None  # the file that the newest attempt which named one writes to
    is_given_up: bool = False
    damage: str = ""  # what is wrong with its claim or attempts


@dataclass(frozen=True)
class TrialState:
    """One trial: of which kind its state is, why, and where."""

    trial_id: str
    family_id: str
    kind: Kind
    reason: str = ""  # in one line, for a person
    where: str = ""  # the node or host, and the job: of who trains it, will train it, or tried it last
    held: Held | None = None  # the claim of who trains its family now
    record: Record | None = None

    @property
    def has_record(self) -> bool:
        """Whether there is a record, readable or not."""
        return self.kind in WITH_RECORD


def has_record(runs: Path, trial_id: str) -> bool:
    """Whether a trial has a record, readable or not: then nobody trains it again."""
    return RunDir.of_trial(runs, trial_id).record.exists()


@dataclass
class States:
    """Answers for the trials in a runs folder. Each family is read once: make a new one to look again."""

    runs: Path
    queue: Queue = field(default_factory=NoQueue)
    launches: Iterable[Launch] = ()
    _families: dict[str, FamilyState] = field(default_factory=dict)
    _working: dict[str, bool] = field(default_factory=dict)  # by job: see FamilyState.job_trains

    def trial(self, trial_id: str, family_id: str) -> TrialState:
        """How a trial stands."""
        run = RunDir.of_trial(self.runs, trial_id)
        return _recorded(run, trial_id, family_id) or self._without_record(run, trial_id, self.family(family_id))

    def family(self, family_id: str) -> FamilyState:
        """What is known of a family."""
        if family_id not in self._families:
            self._families[family_id] = self._read(family_id)
        return self._families[family_id]

    def held(self, family_id: str) -> Held | None:
        """The claim on a family that counts now; UserError where it is damaged."""
        return claim.held_by(RunDir.of_trunk(self.runs, family_id).path, self.queue.job_is_gone)

    def _read(self, family_id: str) -> FamilyState:
        trunk = RunDir.of_trunk(self.runs, family_id)
        try:
            held = self.held(family_id)
            events = attempt_log.events(trunk)
        except UserError as error:
            return FamilyState(family_id, damage=str(error))
        attempts = attempt_log.attempts(events)
        last = attempts[-1] if attempts else None
        queued, submitted = self.queue.job_in_queue(family_id), self.queue.last_job(family_id)
        came_to_it = submitted is not None and last is not None and last.started >= submitted.submitted
        return FamilyState(
            family_id,
            held=held,
            queued=queued,
            job_trains=queued is not None and queued.is_running and self._trains(queued),
            launch=next((one for one in self.launches if _will_come(one, family_id, last)), None),
            under_way=next((one for one in self.launches if one.includes(family_id)), None),
            never_began=None if came_to_it else submitted,
            last=last,
            log=next((Path(one.start.log) for one in reversed(attempts) if one.start.log), None),
            is_given_up=attempt_log.says_given_up(events),
        )

    def _trains(self, job: QueuedJob) -> bool:
        """Whether any family of a running job has an attempt since the job was started, or started anew."""
        if job.job_id not in self._working:
            since = time.time() - job.run_seconds - START_SECONDS
            families = self.queue.families_of(job.job_id)
            self._working[job.job_id] = any(self._has_attempt(family_id, job, since) for family_id in families)
        return self._working[job.job_id]

    def _has_attempt(self, family_id: str, job: QueuedJob, since: float) -> bool:
        try:
            tried = attempt_log.read(RunDir.of_trunk(self.runs, family_id))
        except UserError:  # damaged, which is said of its own trials
            return False
        return any(one.job is not None and one.job.id == job.job_id and one.started >= since for one in tried)

    def _without_record(self, run: RunDir, trial_id: str, family: FamilyState) -> TrialState:
        """The first of the sources that knows the trial says how it stands."""
        found = (
            _damaged(trial_id, family)
            or _held(trial_id, family, run)
            or _queued(trial_id, family, run)
            or _given_up(trial_id, family)
            or _launched(trial_id, family)
            or self._never_began(trial_id, family)
        )
        return found or self._after_last_attempt(trial_id, family, run.failure())

    def _never_began(self, trial_id: str, family: FamilyState) -> TrialState | None:
        job = family.never_began
        if job is None:
            return None
        became = self.queue.not_trained(job.job_id)
        return TrialState(trial_id, family.family_id, became.kind, became.reason, _place("", job.job_id))

    def _after_last_attempt(self, trial_id: str, family: FamilyState, failure: Failure | None) -> TrialState:
        """Nobody trains the trial, nor will: how the last attempt at its family ended says why."""
        last = family.last
        if family.held is not None:
            return TrialState(trial_id, family.family_id, "missing", "its family is being trained for other budgets")
        if last is None:
            if failure is not None:
                return TrialState(trial_id, family.family_id, "failed", failure.line)
            return TrialState(trial_id, family.family_id, "missing", "never started")
        kind, reason = _ended(last, failure, family.under_way)
        if kind == "lost" and last.job is not None and (how := self.queue.how_ended(last.job.id)) is not None:
            reason += f": {how}"
        return TrialState(trial_id, family.family_id, kind, reason, _where(last.start.host, last.job))


# ---- one source each; None where it says nothing of the trial ----


def _recorded(run: RunDir, trial_id: str, family_id: str) -> TrialState | None:
    try:
        record = Record.read(run.record)
        if record.trial_id != trial_id:
            raise UserError(f"{run.record}: is the record of {record.trial_id}; delete it to train the trial again")
    except UserError as error:
        return TrialState(trial_id, family_id, "damaged", str(error)) if run.record.exists() else None
    reason = f"loss not finite at step {record.steps_done}" if record.status == "diverged" else ""
    kind: Kind = "diverged" if record.status == "diverged" else "finished"
    return TrialState(trial_id, family_id, kind, reason, record=record)


def _damaged(trial_id: str, family: FamilyState) -> TrialState | None:
    return TrialState(trial_id, family.family_id, "failed", family.damage) if family.damage else None


def _held(trial_id: str, family: FamilyState, run: RunDir) -> TrialState | None:
    """Somebody trains the family: this trial, another one of it first, or not this trial at all."""
    held, last = family.held, family.last
    if held is None:
        return None
    kind: Kind
    failure = run.failure(since=last.started) if last is not None else None  # what failed before may go well now
    if held.heartbeat.trial_id == trial_id:
        kind, reason = ("stalled", _silence(held)) if held.is_silent else ("running", "")
    elif failure is not None:
        kind, reason = "failed", failure.line
    elif last is not None and not last.includes(trial_id):
        return None
    else:
        kind, reason = ("stalled", _silence(held)) if held.is_silent else ("waiting", "its family is being trained")
    return TrialState(trial_id, family.family_id, kind, reason, _where(held.holder.host, held.holder.job), held)


def _queued(trial_id: str, family: FamilyState, run: RunDir) -> TrialState | None:
    """Its job waits, or runs and trains another family now, or none yet."""
    job, last = family.queued, family.last
    if job is None:
        return None
    if not job.is_running:
        return TrialState(trial_id, family.family_id, "queued", job.reason, job.where)
    if last is not None and last.job is not None and last.job.id == job.job_id and last.has_failed:
        return _given_up(trial_id, family) or TrialState(
            trial_id, family.family_id, *_ended(last, run.failure(), family.under_way), job.where
        )
    reason = "its job runs, and trains another family" if family.job_trains else "its job is starting"
    return TrialState(trial_id, family.family_id, "waiting", reason, job.where)


def _given_up(trial_id: str, family: FamilyState) -> TrialState | None:
    last = family.last
    if last is None or not family.is_given_up:
        return None
    return TrialState(trial_id, family.family_id, "given up", last.error or "", _where(last.start.host, last.job))


def _launched(trial_id: str, family: FamilyState) -> TrialState | None:
    if family.launch is None:
        return None
    where = _where(family.launch.process.host, family.launch.process.job)
    return TrialState(trial_id, family.family_id, "waiting", "its launch has not come to it yet", where)


def _ended(last: Attempt, failure: Failure | None, under_way: Launch | None) -> tuple[Kind, str]:
    """What an attempt left of a trial that has no record, and that may have failed in it or before."""
    go_on = _go_on(under_way)
    if failure is not None and (failure.time > last.started or last.outcome in ("done", "failed", "lost", "let go")):
        return "failed", failure.line
    if last.outcome == attempt_log.GIVEN_UP:
        return "missing", f"its family was given up, and then set free by `retry`; {go_on}"
    if last.outcome == "failed":
        return "failed", last.error or ""
    if last.outcome is None:
        lost = f"its attempt of {_when(last.started)} exited without reporting a result"
        return "lost", f"{lost}; {go_on}" if under_way else lost
    if last.outcome == "stopped":
        return "missing", f"stopped with everything saved; {go_on}"
    return "missing", f"not reached; {go_on}"


def _go_on(under_way: Launch | None) -> str:
    """What makes a family go on after its attempt has ended: another launch, but not beside one that is alive."""
    if under_way is None:
        return "launch again to go on"
    return f"its launch ({under_way}) still runs; once that has ended, launch again for what has no record"


def _will_come(launch: Launch, family_id: str, last: Attempt | None) -> bool:
    """Whether a launch that is alive has a family still ahead of it: no attempt, or one that goes on in another way."""
    begun = last is not None and last.started >= launch.began and last.outcome != "let go"
    return launch.includes(family_id) and not launch.stopping and not begun


# ---- words ----


def _silence(held: Held) -> str:
    age = duration(held.heartbeat.age_seconds)
    if held.is_alive:
        return f"no heartbeat for {age}, though its process is there"
    return f"no heartbeat for {age}, and nobody here can tell whether its process lives; see `clean --claims`"


def _where(host: str, job: Job | None) -> str:
    return _place(job.node or host, job.id) if job else host


def _place(node: str, job_id: str) -> str:
    return " ".join(filter(None, (node, f"job {job_id}")))


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
