"""Launching before the data is there: stand-ins for it, and the real ids once a job has prepared it.

A trial's id holds its data's fingerprint, so before the data there are no ids. A submission then plans with stand-ins,
which fixes how many elements there are and which points of the grid each trains; the job that the arrays wait for
prepares the data, plans again, and writes the real ids to `plan.jsonl` and `tasks.jsonl`. So everything is in the queue
at once, nothing is submitted from inside a job (which many sites forbid), and elements never know the difference.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from slurm.submission import PREPARED, ArrayTask, Submission, exclusive
from sweep.common import files
from sweep.data.placeholder import Unprepared, is_stand_in, stand_in
from sweep.data.prepare import DataConfig, find, prepare
from sweep.data.tokens import Tokens
from sweep.plan.plan import Plan, absolute_paths, make_plan
from sweep.plan.storage import planned_trials
from sweep.plan.trial import Trial
from sweep.runs.sweepdir import SweepDir

LOCK_SECONDS = 300


def tokens_or_stand_in(config: DataConfig, root: Path) -> Tokens | Unprepared:
    """What this config was prepared to, or a stand-in that no other config has."""
    return find(config, root) or stand_in(config)


def one_look() -> Callable[[DataConfig, Path], Tokens | Unprepared]:
    """`tokens_or_stand_in` for several plans that must agree: data that comes between them is not there for any."""
    seen: dict[str, Tokens | Unprepared] = {}

    def look(config: DataConfig, root: Path) -> Tokens | Unprepared:
        key = f"{root} {config}"
        if key not in seen:
            seen[key] = tokens_or_stand_in(config, root)
        return seen[key]

    return look


def is_provisional(trial: Trial) -> bool:
    """Whether a trial was planned before its data was there, so that its ids will change."""
    return is_stand_in(trial.config.data.fingerprint)


def finish(submission: Submission) -> Plan:
    """Prepare the data of a submission and write the real ids of its trials. Doing it twice does no harm."""
    plan = absolute_paths(make_plan(submission.overrides, prepare))
    with exclusive(SweepDir(Path(submission.sweep)), patience_seconds=LOCK_SECONDS):
        _write_ids(submission, plan)
    return plan


def up_to_date(plan: Plan, overrides: list[str], earlier: list[Submission]) -> Plan:
    """The plan as it is now, for who has the right to submit: its data may have come since it was made.

    Earlier submissions get the real ids of data that is there too, if its job has not written them (it waits for us,
    is still at other data, or was killed).
    """
    look = one_look()
    if any(map(is_provisional, plan.trials)):
        plan = absolute_paths(make_plan(overrides, look, plan.only))
    for submission in earlier:
        if submission.unprepared and not (submission.folder / PREPARED).exists():
            theirs = absolute_paths(make_plan(submission.overrides, look))
            if not all(map(is_provisional, theirs.trials)):
                _write_ids(submission, theirs)
    return plan


def _write_ids(submission: Submission, plan: Plan) -> None:
    _write_plan(submission, plan)
    submission.write_tasks(real_tasks(submission.tasks(), plan))
    if not any(map(is_provisional, plan.trials)):
        files.write_json(submission.folder / PREPARED, {"time": time.time()})


def real_tasks(tasks: list[ArrayTask], plan: Plan) -> list[ArrayTask]:
    """The elements with the families that their points of the grid really are, each family in one element.

    A point that a condition excludes, now that the data is known, is in none.
    """
    family_at = {" ".join(plan.points[trial.trial_id]): trial.family_id for trial in plan.trials}
    taken: set[str] = set()
    made = []
    for task in tasks:
        asked = dict.fromkeys(family_at[point] for point in task.points if point in family_at)
        families = [family for family in asked if family not in taken]
        taken.update(families)
        made.append(replace(task, families=families))
    return made


def _write_plan(submission: Submission, plan: Plan) -> None:
    """Real trials in the place of this submission's provisional ones; what else the sweep's plan holds stays."""
    sweep = SweepDir(Path(submission.sweep))
    before = make_plan(submission.overrides, lambda config, root: stand_in(config))
    provisional = {trial.trial_id for trial in before.trials}
    kept = [trial for trial in planned_trials(sweep) if trial.trial_id not in provisional]
    there = {trial.trial_id for trial in kept}
    new = [trial for family in plan.families() for trial in family if trial.trial_id not in there]
    files.write_json_lines(sweep.plan, (trial.to_json() for trial in [*kept, *new]))
    settings = sweep.settings()
    settings["excluded"] = [asdict(excluded) for excluded in plan.excluded]
    files.write_json(sweep.path / "sweep.json", settings)
