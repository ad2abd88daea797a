"""Submits what a sweep lacks to Slurm: arrays, the job that prepares their data, and the job that collects and reports.

It decides everything, writes it down, then calls sbatch once per job and notes each id. Nothing depends on this process
afterwards. If it is killed on its way, the next launch finds the jobs that arrived by their names.
"""

import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from slurm import code_snapshot, commands
from slurm.draft import Draft, Limits, draft
from slurm.pending import Missing, adopt, missing
from slurm.provisional import is_provisional, tokens_or_stand_in, up_to_date
from slurm.shared_folders import check_folders
from slurm.submission import JobRef, Submission, exclusive, submissions
from sweep.common.errors import UserError
from sweep.common.exits import say
from sweep.plan.plan import Plan, absolute_paths, make_plan
from sweep.plan.storage import additions, save
from sweep.plan.trial import Trial
from sweep.runs.claim import Claim
from sweep.runs.sweepdir import launch_command

ARRAY_SIZE = 1001  # Slurm's own default of MaxArraySize, for scripts shown where there is no Slurm to ask


@dataclass(frozen=True)
class Submitted:
    """What a launch handed to Slurm."""

    plan: Plan  # as it was when it was submitted; data may have come since the launch began
    missing: Missing  # the families that were to be trained, and those that were left alone
    draft: Draft | None  # the submission; None where there was nothing to submit


def planned(overrides: list[str], only: Collection[str] = ()) -> Plan:
    """The plan to submit, of these families if any are named. Data need not be there yet."""
    return absolute_paths(make_plan(overrides, tokens_or_stand_in, only))


def preview(plan: Plan, overrides: list[str], report: bool) -> Draft:
    """What a launch would submit now, without asking Slurm about anything that it holds already."""
    code = code_snapshot.take(plan.sweep.path / "code", copy=False)
    slurm = plan.config.cluster.slurm
    limits = Limits(slurm.max_array_size or ARRAY_SIZE, slurm.max_submitted or float("inf"))
    return draft(plan, plan.left(), launch_command(overrides), overrides, code, limits, report)


def submit(plan: Plan, overrides: list[str], extend: bool = False, report: bool = True) -> Submitted:
    """Submit what is missing of a plan. UserError where it cannot be done.

    Then nothing is in the queue. But if Slurm took some arrays and refused another, those that it took stay, and the
    error says how to go on.
    """
    if not commands.available():
        raise UserError(
            "sbatch is not on PATH: jobs cannot be submitted from this machine; log in to one of the cluster, or use "
            "cluster=local (--dry-run shows the scripts anywhere)"
        )
    tokens_are_there = not any(map(is_provisional, plan.trials))
    check_folders(
        vars(plan.config.paths),
        plan.config.cluster.slurm.paths_are_shared,
        only_read=("tokens",) if tokens_are_there else (),
    )
    sweep = plan.sweep
    with exclusive(sweep) as lock:
        earlier = submissions(sweep)
        for line in adopt(earlier):
            say(line)
        plan = up_to_date(plan, overrides, earlier)
        additions(plan, sweep, extend)
        left = missing(plan, earlier)
        check_budget(plan, left.families)
        if not left.families and not (report and left.queued and not _collector_waits(earlier)):
            save(plan, sweep, overrides, extend)
            return Submitted(plan, left, None)
        code = code_snapshot.take(sweep.path / "code")
        made = draft(plan, left.families, launch_command(overrides, extend), overrides, code, _limits(plan), report)
        first = not sweep.plan.exists()
        save(plan, sweep, overrides, extend)
        _write(made, code)
        try:
            _submit_jobs(made.submission, plan, earlier, lock)
        except UserError:
            if first and not lock.lost and not submissions(sweep):  # nothing was submitted: the name is free again
                sweep.plan.unlink()
                (sweep.path / "sweep.json").unlink()
            raise
    return Submitted(plan, left, made)


def check_budget(plan: Plan, families: list[list[Trial]]) -> None:
    """Raise UserError where these families would cost more than cluster.slurm allows."""
    slurm, rate = plan.config.cluster.slurm, plan.config.cluster.dollars_per_device_hour
    hours = sum(plan.family_seconds(family) for family in families) / 3600
    limits = (("max_device_hours", hours, slurm.max_device_hours), ("max_dollars", hours * rate, slurm.max_dollars))
    for key, needed, limit in limits:
        if limit is not None and needed > limit:
            raise UserError(
                f"cluster.slurm.{key}={limit:g}: this launch needs about {hours:,.3g} device-hours, "
                f"${hours * rate:,.3g} at ${rate:.2f} each; raise the limit, or plan less (nothing was submitted)"
            )


def _limits(plan: Plan) -> Limits:
    slurm = plan.config.cluster.slurm
    array_size = slurm.max_array_size or int(commands.limits()["MaxArraySize"])
    if slurm.max_submitted is None:
        return Limits(array_size)
    room = slurm.max_submitted - commands.count_of_user()
    if room < 3:  # the job that prepares data, one element, the collector
        raise UserError(
            f"cluster.slurm.max_submitted={slurm.max_submitted}: {slurm.max_submitted - room} jobs of yours are in the "
            "queue; launch again when there is room for more"
        )
    return Limits(array_size, room)


def _write(made: Draft, code: code_snapshot.Snapshot) -> None:
    """Write the submission's folder. It is complete before the first job exists."""
    folder = made.submission.folder
    if folder.exists():  # a launch was killed before it had anything to submit
        shutil.rmtree(folder)
    (folder / "logs").mkdir(parents=True)  # Slurm fails a job whose log it cannot open, and says nothing
    made.submission.write_tasks(made.tasks)
    for name, text in made.scripts.items():
        (folder / name).write_text(text)
    if code.diff:
        (folder / "dirty.diff").write_bytes(code.diff)
    made.submission.write()


def _submit_jobs(submission: Submission, plan: Plan, earlier: list[Submission], lock: Claim) -> None:
    """Submit every job, and note its id at once."""
    slurm = plan.config.cluster.slurm
    passed_on = [name for name, value in slurm.environment.items() if value is None]

    def hand_in(job: JobRef, *arguments: str) -> None:
        if lock.lost:
            raise UserError(f"{submission.folder}: another launch took over; nothing more was submitted")
        job.job_id = commands.submit(submission.folder / job.script, job.name, arguments, passed_on)
        submission.write()

    before = [older.prepare.name for older in earlier if older.prepare is not None]
    try:
        waits: list[str] = []
        if submission.prepare is not None:
            others = [str(job.job_id) for job in commands.queued(before)]  # they may prepare the same data
            hand_in(submission.prepare, *([f"--dependency=afterany:{':'.join(others)}"] if others else []))
            waits = [f"--dependency=afterok:{submission.prepare.job_id}", "--kill-on-invalid-dep=yes"]
        for chunk in submission.chunks:
            hand_in(chunk, *waits)
    except UserError as error:
        raise _half_way(submission, error) from error
    if submission.collector is not None:
        # It waits for earlier arrays, to report the whole sweep, and for earlier collectors, which could otherwise end
        # after it and leave an older report.
        names = [job.name for older in earlier for job in (*older.chunks, older.collector) if job is not None]
        still = {str(job.job_id) for job in commands.queued(names)}
        before_it = sorted(still | {str(chunk.job_id) for chunk in submission.chunks})
        try:
            hand_in(submission.collector, *([f"--dependency=afterany:{':'.join(before_it)}"] if before_it else []))
        except commands.Refused as error:
            raise UserError(
                f"{error}; the arrays are in the queue and go on, but the job that collects, fits and reports is not; "
                "launch again to submit it"
            ) from error


def _collector_waits(earlier: list[Submission]) -> bool:
    """Whether the queue holds a job that will report. A launch that was killed may have left arrays without one."""
    return bool(commands.queued(older.collector.name for older in earlier if older.collector is not None))


def _half_way(submission: Submission, error: UserError) -> UserError:
    """Undo a submission that has no array yet. Otherwise say which arrays stay, and how to end or complete them."""
    sweep = Path(submission.sweep).name
    taken = [chunk for chunk in submission.chunks if chunk.job_id is not None]
    if isinstance(error, commands.NotAnswering):
        return UserError(
            f"{error}; when Slurm answers, launch again: what has arrived is found and not submitted twice"
        )
    if taken:
        ids = ", ".join(str(chunk.job_id) for chunk in taken)
        return UserError(
            f"{error}; {len(taken)} of {len(submission.chunks)} arrays are in the queue (job {ids}) and go on; launch "
            f"again to submit the rest, or end them: python -m sweep cancel {sweep}"
        )
    if submission.prepare is not None and submission.prepare.job_id is not None:
        commands.cancel([str(submission.prepare.job_id)])
    shutil.rmtree(submission.folder)
    return UserError(f"{error}; nothing was submitted")
