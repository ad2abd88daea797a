"""Trials that a sweep could be extended by: which there are, what each would cost, and the commands that run them."""

import shlex
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from models.count import params_non_embedding
from models.ladder import nearest_size
from sweep.common.errors import UserError
from sweep.common.units import parse_quantity
from sweep.config.compose import compose
from sweep.config.model import resolve as resolve_model
from sweep.config.schema import Config
from sweep.data.placeholder import PlaceholderTokens
from sweep.plan.plan import Plan
from sweep.plan.resolve import check, resolve
from sweep.plan.storage import planned_trials
from sweep.plan.trial import Trial
from sweep.plan.variant import variant
from sweep.runs.sweepdir import SweepDir, launch_command

LARGER_RUNGS = 4
BUDGET_STEP = 2**0.5


def candidates(sweep: SweepDir, budget: float) -> list[str]:
    """The overrides of a grid of everything that could be run next: the sweep's sizes and the next rungs of its ladder,
    at its budgets and beyond. UserError for a sweep that has no such axes."""
    trials = planned_trials(sweep)
    written = [trial.written for trial in trials]
    if any(config.model.params is None for config in written):
        raise UserError(f"{sweep.name}: its models are given by shape; next proposes along model.params")
    keys = {name for config in written for name, value in vars(config.budget).items() if value is not None}
    if len(keys) != 1:
        raise UserError(f"{sweep.name}: its budgets are given as {', '.join(sorted(keys))}; next needs one of them")
    (name,) = keys
    sizes = sorted({trial.params_non_embedding for trial in trials})
    amounts = sorted({parse_quantity(f"budget.{name}", vars(config.budget)[name]) for config in written})
    while amounts[-1] * BUDGET_STEP <= budget or len(amounts) < 2:
        amounts.append(amounts[-1] * BUDGET_STEP)
    base = _without_axes(sweep)
    rungs = _rung_sizes(compose([word for word in base if "," not in word]))
    sizes += [size for size in rungs if size > sizes[-1]][:LARGER_RUNGS]
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


def one_more(sweep: SweepDir, params: float | str, budget: str) -> tuple[Trial, list[str]]:
    """The trial of a size and a budget (`flops=1e13`) as this sweep would train it, and the command that launches it.

    `params` as people write it means what `model.params` does; a number, the nearest size of the ladder. UserError
    where the sweep trains no such trial.
    """
    known = planned_trials(sweep)
    name = budget.partition("=")[0]
    size = params if isinstance(params, str) else _nearest_rung(variant(known[0], []), params)
    asked = [f"model.params={size}", f"budget.{budget}"]
    tokens = PlaceholderTokens(known[0].config.model.vocab_size)
    trial = resolve(variant(known[0], asked), tokens, device="cpu")
    check(trial, tokens)
    own = {key for one in known for key, value in vars(one.written.budget).items() if value is not None}
    others = [f"budget.{key}=null" for key in sorted(own - {name})]
    # One run that was asked for by name need not meet what the grid's points do.
    words = [*_without_axes(sweep), f"sweep.name={sweep.name}", "sweep.where=[]", *others, *asked]
    return trial, launch_command(words, extend=True)


def _without_axes(sweep: SweepDir) -> list[str]:
    """The overrides that the sweep was launched with, less its axes of size and budget."""
    return [word for word in sweep.overrides() if not word.startswith(("model.params=", "budget.", "sweep.name="))]


def _rung_sizes(config: Config) -> list[int]:
    """The sizes of the ladder, ascending."""
    shapes = [replace(config.model, params=None, depth=d, width=w, heads=h) for d, w, h in config.model.ladder]
    return sorted(params_non_embedding(resolve_model(one, vocab_size=512, seq_len=config.seq_len)) for one in shapes)


def _nearest_rung(config: Config, params: float) -> int:
    """The nearest size of the ladder; beyond its ends, where there is none, the size itself."""
    rungs = _rung_sizes(config)
    if not rungs or not rungs[0] / 2 <= params <= 2 * rungs[-1]:
        return round(params)
    return nearest_size(params, rungs)


def _axis(assignments: list[str]) -> str:
    """budget.flops=1e12 and budget.flops=2e12 as budget.flops=1e12,2e12."""
    key = assignments[0].partition("=")[0]
    return f"{key}={_listed(text.partition('=')[2] for text in assignments)}"


def _listed(values: Iterable[Any]) -> str:
    return ",".join(str(value) for value in values)
