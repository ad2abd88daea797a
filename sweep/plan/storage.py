"""A plan and its folder: `plan.jsonl`, which only grows, and `sweep.json`."""

from dataclasses import asdict

from sweep.common import files
from sweep.common.errors import UserError
from sweep.plan.plan import Plan
from sweep.plan.trial import Trial, TrialConfig
from sweep.runs.settings import SweepSettings
from sweep.runs.sweepdir import MEND, SweepDir, launch_command


def save(plan: Plan, sweep: SweepDir, overrides: list[str], extend: bool = False) -> None:
    """Write a plan to its sweep's folder. Trials that the folder holds already stay in it. UserError as `additions`."""
    there = planned_trials(sweep) if sweep.plan.exists() else []
    new = additions(plan, sweep, extend)
    trials = [*there, *(trial for family in plan.families() for trial in family if trial.trial_id in new)]
    files.write_json_lines(sweep.plan, (trial.to_json() for trial in trials))
    config = plan.config
    settings = SweepSettings(
        name=sweep.name,
        command=launch_command(overrides, extend),
        overrides=overrides,
        device=plan.device,
        run=config.run,
        cluster=config.cluster,
        wandb=config.wandb,
        paths=config.paths,
        excluded=plan.excluded,
    )
    files.write_json(sweep.path / "sweep.json", asdict(settings))


def additions(plan: Plan, sweep: SweepDir, extend: bool) -> set[str]:
    """The ids of trials that the sweep's folder does not hold yet. UserError where the folder holds another grid and
    the person does not ask to `extend` it."""
    wanted = {trial.trial_id for trial in plan.trials}
    if not sweep.plan.exists():
        return wanted
    there = planned_trials(sweep)
    new = wanted - {trial.trial_id for trial in there}
    if new and not extend:
        first = next(trial for trial in plan.trials if trial.trial_id in new)
        raise UserError(
            f"sweep.name={sweep.name}: {sweep.plan} holds another grid, of {len(there)} trials; {len(new)} of the "
            f"{len(wanted)} asked for are not in it ({first.trial_id} differs in {_difference(first, there)}); give "
            "another sweep.name=NAME, or add them: launch with --extend"
        )
    return new


def planned_trials(sweep: SweepDir) -> list[Trial]:
    """The trials of a sweep's plan, the longest family first. UserError names a line that is damaged."""
    return [Trial.decode(line, where, mend=MEND) for where, line in sweep.lines()]


def _difference(trial: Trial, others: list[Trial]) -> str:
    """The values in which a trial differs from the one of `others` that is nearest to it."""
    wanted = _values(trial.config)
    differing = [
        {key: value for key, value in _values(other.config).items() if wanted[key] != value} for other in others
    ]
    return ", ".join(f"{key}={wanted[key]}, there {old}" for key, old in min(differing, key=len).items())


def _values(config: TrialConfig) -> dict[str, object]:
    """section.key → value."""
    values: dict[str, object] = {}
    for name, value in asdict(config).items():
        values |= {f"{name}.{key}": one for key, one in value.items()} if isinstance(value, dict) else {name: value}
    return values
