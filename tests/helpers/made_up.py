"""Run folders, claims, submissions and a queue made up by hand, for tests of how trials stand."""

import time
from dataclasses import asdict, replace

import pytest

from slurm import commands
from slurm.submission import ArrayTask, Chunk, JobRef, Submission
from sweep.common import files
from sweep.config.schema import SlurmSection
from sweep.runs.claim import Holder, Job
from sweep.runs.record import Record
from sweep.runs.rundir import RunDir
from tests.helpers import tiny


def family_of(plan, number=0):
    """(short trial, long trial, trunk) of one of the families."""
    short, long = sorted(plan.families()[number], key=lambda trial: trial.tokens)
    return short, long, RunDir.of_trunk(plan.runs, short.family_id)


def record(plan, trial, status="finished"):
    """A record that says nothing but how the trial ended."""
    loss = 4.0 if status == "finished" else None
    made = Record(
        trial.trial_id, trial.family_id, status, {}, trial.params_non_embedding, trial.params_total, trial.tokens,
        trial.flops, 1.0, trial.config.steps, loss, loss, None, loss, None, 0, 1.0, 1.0, None, "cpu", "class",
        ["class"], "code", 0.0,
    )  # fmt: skip
    files.write_json(RunDir.of_trial(plan.runs, trial.trial_id).record, asdict(made))


def start(trunk, number=1, age=600.0, job=None, **more):
    row = {"attempt": number, "time": time.time() - age, "host": "h", "pid": 1, "job": job and asdict(job), **more}
    tiny.attempt(trunk, "start", **row)


def end(trunk, outcome, number=1, age=300.0, error=None):
    tiny.attempt(trunk, "end", attempt=number, time=time.time() - age, outcome=outcome, error=error)


def hold(trunk, holder, number=1, age=1.0, **progress):
    files.create_json(trunk.path / f"claim.{number:06d}.json", asdict(holder))
    files.write_json(trunk.path / "heartbeat.json", {"time": time.time() - age, **progress})


def submission(plan, sweep, number=1, age=60.0, job_id=7):
    """One element that holds both families."""
    folder = sweep.path / "slurm" / f"{number:03d}"
    chunk = Chunk(f"small.{number:03d}.0-ab", "array-0.sbatch", job_id, "30m", (0, 0))
    collector = JobRef(f"small.{number:03d}.collector-ab", "collector.sbatch", job_id and job_id + 1)
    made = Submission(
        number, "ab", time.time() - age, str(sweep.path), [], [], "/code", None, False, False, SlurmSection(), [chunk],
        None, collector, folder=folder,
    )  # fmt: skip
    (folder / "logs").mkdir(parents=True)
    made.write()
    made.write_tasks([ArrayTask(0, "30m", [family[0].family_id for family in plan.families()], 1, 9.0)])
    return made


def element(state="PENDING", reason="Priority", job_id=7, number=1):
    return commands.Job(job_id, 0, f"small.{number:03d}.0-ab", state, reason, "n1" if state == "RUNNING" else "", 0)


def elsewhere(restart=0):
    return replace(Holder.here(), host="n1", job=Job("7_0", "small.001.0-ab", restart, "c", "n1"), boot_id="another")


def answer(monkeypatch: pytest.MonkeyPatch, *jobs, ended=None, answers=True):
    """Slurm's queue holds these jobs, and accounting knows of those that ended."""

    def queued(names, patience_seconds=0):
        if not answers:
            raise commands.NotAnswering("squeue: Unable to contact slurm controller (connect failure)")
        return [job for job in jobs if job.name in set(names)]

    monkeypatch.setattr(commands, "available", lambda: True)
    monkeypatch.setattr(commands, "queued", queued)
    monkeypatch.setattr(commands, "ended", lambda ids, since: ended)
    monkeypatch.setattr(commands, "limits", lambda patience_seconds=0: {"ClusterName": "c", "MaxArraySize": "1001"})
