"""Trials that a sweep could be extended by: which there are, what each would cost, and the commands that run them."""

import shlex
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from models.count import params_non_embedding
from models.section import resolve
from sweep.config import Config, compose
from sweep.errors import UserError
from sweep.plan import Plan, planned_trials
from sweep.quantity import parse_quantity
from sweep.sweepdir import SweepDir, launch_command
from sweep.trial import Trial

LARGER_RUNGS = 4
BUDGET_STEP = 2**0.5


def candidates(sweep: SweepDir, budget: float) -> list[str]:
    """The overrides of a grid of everything that could be run next: the sweep's sizes and the next rungs of its ladder,
    at its budgets and beyond. UserError for a sweep that has no such axes."""
    trials = planned_trials(sweep)
    written = [trial.written for trial in trials]
    if any(config["model"]["params"] is None for config in written):
        raise UserError(f"{sweep.name}: its models are given by shape; next proposes along model.params")
    keys = {name for config in written for name, value in config["budget"].items() if value is not None}
    if len(keys) != 1:
        raise UserError(f"{sweep.name}: its budgets are given as {', '.join(sorted(keys))}; next needs one of them")
    (name,) = keys
    sizes = sorted({trial.params_non_embedding for trial in trials})
    amounts = sorted({parse_quantity(f"budget.{name}", config["budget"][name]) for config in written})
    while amounts[-1] * BUDGET_STEP <= budget or len(amounts) < 2:
        amounts.append(amounts[-1] * BUDGET_STEP)
    base = _without_axes(sweep)
    sizes += _larger_rungs(compose([word for word in base if "," not in word]), sizes[-1])
    axes = [f"model.params={_listed(sizes)}", f"budget.{name}={_listed(float(f'{x:.3g}') for x in amounts)}"]
    return [*base, f"sweep.name={sweep.name}", *axes]


def trunk_cost(trials: list[Trial], sweep: SweepDir) -> Callable[[int, list[int]], float]:
    """FLOPs that a candidate adds: its cooldown, and what its family's trunk does not reach yet."""
    planned: dict[str, int] = {}
    for trial in planned_trials(sweep):
        planned[trial.family_id] = max(planned.get(trial.family_id, 0), trial.config.branch_step)

    def cost(index: int, chosen: list[int]) -> float:
        trial = trials[index]
        same = [trials[j].config.branch_step for j in chosen if trials[j].family_id == trial.family_id]
        reached = min(trial.config.branch_step, max([planned.get(trial.family_id, 0), *same]))
        return trial.flops * (1 - reached / trial.config.steps)

    return cost


def commands(sweep: SweepDir, plan: Plan, trials: list[Trial]) -> list[str]:
    """What launches these trials and no others: one command for those that differ in their budget only."""
    axes = {override.partition("=")[0] for override in plan.points[trials[0].trial_id]}
    fixed = [word for word in _without_axes(sweep) if word.partition("=")[0] not in axes]
    groups: dict[tuple[str, ...], list[str]] = {}
    for trial in trials:
        point = plan.points[trial.trial_id]
        rest = tuple(override for override in point if not override.startswith("budget."))
        (amount,) = set(point) - set(rest)
        groups.setdefault(rest, []).append(amount)
    start = [*fixed, f"sweep.name={sweep.name}"]
    return [
        shlex.join(launch_command([*start, *rest, _axis(amounts)], extend=True)) for rest, amounts in groups.items()
    ]


def _without_axes(sweep: SweepDir) -> list[str]:
    """The overrides that the sweep was launched with, less its axes of size and budget."""
    return [word for word in sweep.overrides() if not word.startswith(("model.params=", "budget.", "sweep.name="))]


def _larger_rungs(config: Config, largest: int) -> list[int]:
    """Sizes of the next rungs of the ladder."""
    shapes = [replace(config.model, params=None, depth=d, width=w, heads=h) for d, w, h in config.model.ladder]
    sizes = [params_non_embedding(resolve(shape, vocab_size=512, seq_len=config.seq_len)) for shape in shapes]
    return [size for size in sorted(sizes) if size > largest][:LARGER_RUNGS]


def _axis(assignments: list[str]) -> str:
    """budget.flops=1e12 and budget.flops=2e12 as budget.flops=1e12,2e12."""
    key = assignments[0].partition("=")[0]
    return f"{key}={_listed(text.partition('=')[2] for text in assignments)}"


def _listed(values: Iterable[Any]) -> str:
    return ",".join(str(value) for value in values)
