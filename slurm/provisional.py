"""Launching before the data is there: the plan uses placeholders, and a job that prepares the data writes the real ids.

A trial's id holds the fingerprint of its data, so there are no ids before the data. A submission then plans with
placeholders, which fixes how many elements there are and which points of the grid each of them trains. The job that the
arrays wait for prepares the data, plans again, and writes the real ids to `plan.jsonl` and `tasks.jsonl`. So everything
is in the queue at once, nothing is submitted from inside a job (which many sites forbid), and elements do not notice.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from slurm.submission import PREPARED, ArrayTask, Submission, exclusive
from sweep.common import files
from sweep.data.placeholder import PlaceholderTokens, is_stand_in, stand_in
from sweep.data.prepare import DataConfig, find, prepare
from sweep.data.tokens import Tokens
from sweep.plan.plan import Plan, absolute_paths, make_plan
from sweep.plan.storage import planned_trials
from sweep.plan.trial import Trial
from sweep.runs.sweepdir import SweepDir

LOCK_SECONDS = 300


def tokens_or_stand_in(config: DataConfig, root: Path) -> Tokens | PlaceholderTokens:
    """The tokens that this config was prepared to, or a placeholder that no other config has."""
    return find(config, root) or stand_in(config)


def one_look() -> Callable[[DataConfig, Path], Tokens | PlaceholderTokens]:
    """`tokens_or_stand_in` for several plans that must agree: data that comes between them counts for none of them."""
    seen: dict[str, Tokens | PlaceholderTokens] = {}

    def look(config: DataConfig, root: Path) -> Tokens | PlaceholderTokens:
        key = f"{root} {config}"
        if key not in seen:
            seen[key] = tokens_or_stand_in(config, root)
        return seen[key]

    return look


def is_provisional(trial: Trial) -> bool:
    """Whether a trial was planned before its data was there, so that its ids will change."""
    return is_stand_in(trial.config.data.fingerprint)


def finish(submission: Submission) -> Plan:
    """Prepare the data of a submission and write the real ids of its trials. It may safely be done twice."""
    plan = absolute_paths(make_plan(submission.overrides, prepare))
    with exclusive(SweepDir(Path(submission.sweep)), patience_seconds=LOCK_SECONDS):
        _write_ids(submission, plan)
    return plan


def up_to_date(plan: Plan, overrides: list[str], earlier: list[Submission]) -> Plan:
    """The plan as it is now, for a launch that has the right to submit; its data may have come since it was made.

    Earlier submissions get real ids too where their data is there but their job has not written the ids: it waits for
    us, still prepares other data, or was killed.
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
    """The elements with the real families of their points of the grid, each family in one element.

    A point that a condition excludes now that the data is known is in no element.
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
    """Replace this submission's provisional trials by the real ones. What else the sweep's plan holds stays."""
    sweep = SweepDir(Path(submission.sweep))
    before = make_plan(submission.overrides, lambda config, root: stand_in(config))
    provisional = {trial.trial_id for trial in before.trials}
    kept = [trial for trial in planned_trials(sweep) if trial.trial_id not in provisional]
    there = {trial.trial_id for trial in kept}
    new = [trial for family in plan.families() for trial in family if trial.trial_id not in there]
    files.write_json_lines(sweep.plan, (trial.to_json() for trial in [*kept, *new]))
    settings = sweep.settings()
    files.write_json(sweep.path / "sweep.json", asdict(replace(settings, excluded=plan.excluded)))
