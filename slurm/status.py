"""How a sweep stands: the state of every trial, from run directories, then the queue, then accounting. Reads only.

What is on disk counts first: a record, a claim that is renewed, the attempts. Slurm is asked once for all jobs of the
sweep; where it does not answer, or there is none, the rest is shown all the same. Metrics are not read.

A trial is `finished` or `diverged` (it has a record), `running`, `queued` (Slurm has it, or its family is being
trained), `failed` (for a reason of its own, or with its job), `lost` (its attempt or job ended without a word), or
`missing` (nobody trains it).
"""

import json
import os
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slurm import commands
from slurm.queue_state import Asked, ask
from slurm.submission import PREPARED
from sweep.common.errors import UserError
from sweep.common.units import duration
from sweep.runs import attempt_log, claim
from sweep.runs.attempt_log import GIVEN_UP, Attempt
from sweep.runs.claim import Held, Job
from sweep.runs.rundir import Failure, RunDir
from sweep.runs.sweepdir import SweepDir

STATES = ("finished", "diverged", "running", "queued", "failed", "lost", "missing")
FAILED_JOB = ("FAILED", "OUT_OF_MEMORY")  # Slurm's words for what starting it again would not mend
START_SECONDS = 30.0  # that a node's clock may be behind when an element's start is compared with its attempts
UNSEEN_SECONDS = 60.0  # without a heartbeat, before it is worth saying


@dataclass
class TrialStatus:
    """One trial; `note` says why it is in its state, `where` the node or host, and the job."""

    trial_id: str
    family_id: str
    state: str
    note: str = ""
    where: str = ""
    step: int | None = None
    steps: int | None = None
    tokens_per_second: float | None = None
    seconds_left: float | None = None


@dataclass
class Status:
    sweep: str
    trials: list[TrialStatus]
    asked: Asked

    def counts(self) -> Counter[str]:
        return Counter(trial.state for trial in self.trials)


@dataclass
class Family:
    """A family that has trials without a record: who holds it now, and what came before."""

    family_id: str
    held: Held | None = None  # by who trains it
    last: Attempt | None = None
    damage: str | None = None


def look(sweep: SweepDir) -> Status:
    """The state of every trial of a sweep, in the order of its plan."""
    runs = sweep.settings()["paths"]["runs"]
    asked = ask(sweep)
    begun, trunks = _names(runs), _names(f"{runs}/trunks")
    at_work = _at_work(Path(runs), asked)
    families: dict[str, Family] = {}
    trials = []
    for line in sweep.planned():
        trial_id, family_id = line["trial_id"], line["family_id"]
        ended = _ended(trial_id, family_id, f"{runs}/{trial_id}/record.json") if trial_id in begun else None
        if ended is None:
            if family_id not in families:
                there = family_id in trunks
                families[family_id] = _family(runs, family_id, asked) if there else Family(family_id)
            ended = _without_record(line["facts"], families[family_id], runs, asked, at_work)
        trials.append(ended)
    return Status(sweep.name, trials, asked)


def _names(folder: str) -> set[str]:
    try:
        return set(os.listdir(folder))
    except FileNotFoundError:
        return set()


def _ended(trial_id: str, family_id: str, record: str) -> TrialStatus | None:
    """What a record says; None without one."""
    try:
        with open(record, "rb") as file:
            status = json.loads(file.read())["status"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        return TrialStatus(trial_id, family_id, "failed", f"{record}: damaged; delete it to train the trial again")
    return TrialStatus(trial_id, family_id, status)


def _family(runs: str, family_id: str, asked: Asked) -> Family:
    trunk = RunDir.of_trunk(Path(runs), family_id)
    try:
        held = claim.held_by(trunk.path, asked.job_is_gone)
        tries = attempt_log.read(trunk)
    except UserError as error:
        return Family(family_id, damage=str(error))
    return Family(family_id, held, tries[-1] if tries else None)


def _without_record(facts: dict[str, Any], family: Family, runs: str, asked: Asked, at_work: set[str]) -> TrialStatus:
    trial = TrialStatus(facts["trial_id"], family.family_id, "missing")
    last, elements = family.last, asked.elements_of[family.family_id]
    failure = RunDir.of_trial(Path(runs), trial.trial_id).failure() if last else None
    if family.damage:
        trial.state, trial.note = "failed", family.damage
    elif family.held is not None:
        _held(trial, facts, family, family.held, failure)
    elif (entry := asked.element_now(family.family_id)) is not None:
        _in_queue(trial, entry, last, failure, at_work)
    elif elements and (last is None or last.started < asked.submission_of[elements[0]].time):
        _never_began(trial, elements[0], asked)
    elif last is not None:
        _ended_attempt(trial, last, failure.line if failure else None, asked)
    return trial


def _held(trial: TrialStatus, facts: dict[str, Any], family: Family, held: Held, failure: Failure | None) -> None:
    """Somebody trains the family: this trial, or another one of it first."""
    beat, holder = held.heartbeat, held.holder
    trial.where = _where(holder.host, holder.job)
    if beat.trial_id != trial.trial_id:
        trial.state, trial.note = "queued", "its family is being trained"
        if failure is not None and family.last is not None and failure.time > family.last.started:
            trial.state, trial.note = "failed", failure.line
        return
    trial.state = "running"
    trial.step, trial.steps = beat.step, facts["steps"]
    trial.tokens_per_second = beat.tokens_per_second
    if trial.tokens_per_second:
        trial.seconds_left = (facts["steps"] - beat.step) * facts["batch_tokens"] / trial.tokens_per_second
    age = beat.age_seconds
    if age > UNSEEN_SECONDS:
        trial.note = f"no heartbeat for {duration(age)}, and nobody here can tell whether its process lives"


def _in_queue(
    trial: TrialStatus, entry: commands.Job, last: Attempt | None, failure: Failure | None, at_work: set[str]
) -> None:
    """The family is part of an element that waits, or that runs and trains another family now, or none yet."""
    element = entry.element
    trial.where = _place(entry.node, element)
    if entry.state == "RUNNING" and last and last.job and last.job.id == element and _has_failed(last):
        trial.state, trial.note = "failed", failure.line if failure else last.error or ""
        return
    trial.state = "queued"
    if entry.state == "RUNNING":
        trains = element in at_work
        trial.note = "its element runs, and trains another family" if trains else "its element is starting"
    else:
        trial.note = entry.reason if entry.state == "PENDING" else entry.state


def _at_work(runs: Path, asked: Asked) -> set[str]:
    """The elements that run and have begun something since their (re)start."""
    running = [one for one in asked.in_queue.values() if one.state == "RUNNING" and one.element in asked.families_of]
    return {one.element for one in running if _has_begun(one, runs, asked)}


def _has_begun(entry: commands.Job, runs: Path, asked: Asked) -> bool:
    """Whether any family of an element has an attempt of its present run."""
    since = time.time() - entry.run_seconds - START_SECONDS
    for family_id in asked.families_of[entry.element]:
        try:
            tries = attempt_log.read(RunDir.of_trunk(runs, family_id))
        except UserError:  # damaged: said of its own trials
            continue
        if any(one.job and one.job.id == entry.element and one.started >= since for one in tries):
            return True
    return False


def _ended_attempt(trial: TrialStatus, last: Attempt, failure: str | None, asked: Asked) -> None:
    """Nobody has the family any more: how its last attempt ended says why."""
    trial.where = _where(last.start.host, last.job)
    if _has_failed(last):
        trial.state = "failed"
        trial.note = (last.error if last.outcome == GIVEN_UP else failure or last.error) or ""
    elif last.outcome is None:
        trial.state = "lost"
        trial.note = f"its attempt of {_when(last.started)} ended without a word"
        if last.job and (how := asked.ended(last.job.id)) is not None:
            trial.note += f": {how.state} by Slurm"
    elif last.outcome == "stopped":
        trial.note = f"stopped {_when(last.ended)}, saved"
    elif failure is not None:
        trial.state, trial.note = "failed", failure


def _never_began(trial: TrialStatus, element: str, asked: Asked) -> None:
    """Submitted, not in the queue, and no attempt: its job ended before it trained, or Slurm does not answer."""
    trial.where = _place("", element)
    if not asked.answers:
        trial.state, trial.note = "queued", "submitted; Slurm does not answer"
        return
    how, log = asked.ended(element), asked.log(element)
    if (failed := _preparing_failed(asked, element)) is not None:
        trial.state, trial.note = "failed", failed
        return
    if how is not None and how.state == "CANCELLED":
        trial.note = "its job was cancelled"
        return
    trial.state = "failed" if how and how.state in FAILED_JOB else "lost"
    ended = f" ({how.state}{f', exit status {how.exit_code}' if how.exit_code else ''})" if how else ""
    said = _last_line(log) if log.exists() else "it left no log"
    trial.note = f"its job ended{ended} before training began: {said}"


def _preparing_failed(asked: Asked, element: str) -> str | None:
    """Why an element's data was not prepared, if its submission has a job for that, which ended without doing it."""
    submission = asked.submission_of[element]
    job = submission.prepare
    if job is None or str(job.job_id) in asked.in_queue or (submission.folder / PREPARED).exists():
        return None
    log = submission.folder / "logs" / f"prepare-{job.job_id}.log"
    return f"its data was not prepared: {_last_line(log) if log.exists() else 'the job left no log'}"


def _has_failed(last: Attempt) -> bool:
    return last.outcome in ("failed", GIVEN_UP)


def _where(host: str, job: Job | None) -> str:
    return _place(job.node or host, job.id) if job else host


def _place(node: str, job_id: str) -> str:
    return " ".join(filter(None, (node, f"job {job_id}")))


def _when(seconds: float | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def _last_line(path: Path) -> str:
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 4096))
        lines = file.read().decode(errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "its log is empty")
