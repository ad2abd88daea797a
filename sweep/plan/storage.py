"""A plan and its folder: `plan.jsonl`, which only grows, and `sweep.json`."""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from sweep.common import files
from sweep.common.errors import UserError
from sweep.plan.plan import Plan
from sweep.plan.trial import Trial
from sweep.runs.sweepdir import SweepDir, launch_command


def save(plan: Plan, sweep: SweepDir, overrides: list[str], extend: bool = False) -> None:
    """Write the plan to its sweep's folder; what the folder holds already stays in it (see `additions`)."""
    there = planned_trials(sweep) if sweep.plan.exists() else []
    new = additions(plan, sweep, extend)
    trials = [*there, *(trial for family in plan.families() for trial in family if trial.trial_id in new)]
    files.write_json_lines(sweep.plan, (trial.to_json() for trial in trials))
    settings = {
        "name": sweep.name,
        "command": launch_command(overrides, extend),
        "overrides": overrides,
        "device": plan.device,
        "run": asdict(plan.config.run),
        "cluster": asdict(plan.config.cluster),
        "wandb": asdict(plan.config.wandb),
        "paths": asdict(plan.config.paths),
        "excluded": [asdict(excluded) for excluded in plan.excluded],
    }
    files.write_json(sweep.path / "sweep.json", settings)


def additions(plan: Plan, sweep: SweepDir, extend: bool) -> set[str]:
    """The trials that the sweep's folder does not hold yet. Adding to another grid is refused unless it is meant."""
    wanted = {trial.trial_id for trial in plan.trials}
    if not sweep.plan.exists():
        return wanted
    there = {line["trial_id"]: line for line in sweep.planned()}
    new = wanted - there.keys()
    if new and not extend:
        first = next(trial for trial in plan.trials if trial.trial_id in new)
        differs = f"{first.trial_id} differs in {_difference(first, there.values())}"
        raise UserError(
            f"sweep.name={sweep.name}: {sweep.plan} holds another grid, of {len(there)} trials; {len(new)} of the "
            f"{len(wanted)} asked for are not in it ({differs}); give another sweep.name=NAME, or add "
            "them: launch with --extend"
        )
    return new


def _difference(trial: Trial, others: Iterable[dict[str, Any]]) -> str:
    """What is not the same in a trial and in the nearest to it of a plan's lines."""
    wanted = _dotted(asdict(trial.config))
    differing = [
        {key: old.get(key) for key, value in wanted.items() if old.get(key) != value}
        for old in (_dotted(line["config"]) for line in others)
    ]
    return ", ".join(f"{key}={wanted[key]}, there {old}" for key, old in min(differing, key=len).items())


def _dotted(config: dict[str, Any]) -> dict[str, Any]:
    """section.key → value of a trial's config."""
    sections = ((name, value if isinstance(value, dict) else {"": value}) for name, value in config.items())
    return {f"{name}.{key}".rstrip("."): value for name, keys in sections for key, value in keys.items()}


def planned_trials(sweep: SweepDir) -> list[Trial]:
    """The trials of a sweep's plan."""
    return [Trial.from_json(line, sweep.plan) for line in sweep.planned()]
