"""Propose the trials that most shrink the intervals of N_opt and loss at a target compute, within a budget.

  python -m sweep next default --budget 3e12
  python -m sweep next default --budget 3e12 --target 1e14

Candidates are the sweep's own sizes and the next rungs of its ladder, at the sweep's budgets and beyond, as far as its
conditions and data allow. What a family's trunk has trained already costs nothing. The commands at the end run them.
"""

import argparse

from sweep.names import add_sweep

HELP = "which trials to run next, as commands"
LARGER_RUNGS = 4
BUDGET_STEP = 2**0.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_sweep(parser, about="a fitted sweep's name or folder")
    parser.add_argument("--budget", required=True, metavar="C", help="training FLOPs to spend, e.g. 3e12")
    parser.add_argument("--target", metavar="C", help="the compute asked about (default: 10 times the dearest run)")


def run(args: argparse.Namespace) -> int:
    import numpy as np

    from sweep.fitting import design, fit
    from sweep.quantity import parse_quantity, scientific, short
    from sweep.sweepdir import SweepDir

    sweep = SweepDir.find(args.sweep, args.sweeps)
    budget = parse_quantity("--budget", args.budget)
    fitted = fit.read(sweep.path)
    dearest = max(row["C"] for row in fitted["residuals"])
    target = parse_quantity("--target", args.target) if args.target else 10 * dearest
    plan = candidates(sweep, budget)
    N_M = np.array([float(trial.facts()[fitted["columns"]["N"]]) for trial in plan.trials])
    D_M = np.array([float(trial.tokens) for trial in plan.trials])
    choices = design.propose(
        design.questions(fitted, target),
        design.outcomes(fitted, N_M, D_M),
        noise_variance=float(np.var(fitted["deviations"])),
        cost=trunk_cost(plan.trials, sweep),
        budget_flops=budget,
    )
    if not choices:
        print(f"no candidate costs at most {scientific(budget)} FLOPs and tells anything new; raise --budget")
        return 1
    print(f"at {scientific(target)} FLOPs, in the order of what they tell per FLOP:")
    for choice in choices:
        trial = plan.trials[choice.index]
        N, D = short(trial.params_non_embedding), short(trial.tokens)
        what = f"N={N:>6} D={D:>6}  {scientific(choice.flops):>7} FLOPs"
        left_N, left_loss = 100 * choice.left_Q
        print(f"  {what}  intervals left: N_opt {left_N:.0f}%, loss {left_loss:.0f}%")
    spent = sum(choice.flops for choice in choices)
    print(f"{scientific(spent)} of {scientific(budget)} FLOPs; to run them, in {sweep.name}:")
    for command in commands(sweep, plan, [plan.trials[choice.index] for choice in choices]):
        print(f"  {command}")
    return 0


def base_overrides(sweep) -> list[str]:
    """The overrides that the sweep was launched with, less its axes of size and budget."""
    given = [word for word in sweep.settings()["command"][4:] if not word.startswith("-")]
    return [word for word in given if not word.startswith(("model.params=", "budget.", "sweep.name="))]


def candidates(sweep, budget: float):
    """A plan of everything that could be run next."""
    from sweep.config import compose
    from sweep.errors import UserError
    from sweep.plan import planned_trials
    from sweep.quantity import parse_quantity
    from sweep.verbs.plan import plan_here

    written = [trial.written for trial in planned_trials(sweep)]
    if any(config["model"]["params"] is None for config in written):
        raise UserError(f"{sweep.name}: its models are given by shape; next proposes along model.params")
    keys = {name for config in written for name, value in config["budget"].items() if value is not None}
    if len(keys) != 1:
        raise UserError(f"{sweep.name}: its budgets are given as {', '.join(sorted(keys))}; next needs one of them")
    (name,) = keys
    sizes = sorted({trial.params_non_embedding for trial in planned_trials(sweep)})
    amounts = sorted({parse_quantity(f"budget.{name}", config["budget"][name]) for config in written})
    while amounts[-1] * BUDGET_STEP <= budget or len(amounts) < 2:
        amounts.append(amounts[-1] * BUDGET_STEP)
    base = base_overrides(sweep)
    sizes += larger_rungs(compose([word for word in base if "," not in word]), sizes[-1])
    axes = [f"model.params={_listed(sizes)}", f"budget.{name}={_listed(float(f'{x:.3g}') for x in amounts)}"]
    plan = plan_here([*base, f"sweep.name={sweep.name}", *axes])
    there = {trial.trial_id for trial in planned_trials(sweep)}
    plan.trials = [trial for trial in plan.trials if trial.trial_id not in there]
    return plan


def larger_rungs(config, largest: int) -> list[int]:
    """Sizes of the next rungs of the ladder."""
    from dataclasses import replace

    from models.count import params_non_embedding
    from models.section import resolve

    shapes = [replace(config.model, params=None, depth=d, width=w, heads=h) for d, w, h in config.model.ladder]
    sizes = [params_non_embedding(resolve(shape, vocab_size=512, seq_len=config.seq_len)) for shape in shapes]
    return [size for size in sorted(sizes) if size > largest][:LARGER_RUNGS]


def trunk_cost(trials, sweep):
    """FLOPs that a candidate adds: its cooldown, and what its family's trunk does not reach yet."""
    from sweep.plan import planned_trials

    planned: dict[str, int] = {}
    for trial in planned_trials(sweep):
        planned[trial.family_id] = max(planned.get(trial.family_id, 0), trial.config.branch_step)

    def cost(index: int, chosen: list[int]) -> float:
        trial = trials[index]
        same = [trials[j].config.branch_step for j in chosen if trials[j].family_id == trial.family_id]
        reached = min(trial.config.branch_step, max([planned.get(trial.family_id, 0), *same]))
        return trial.flops * (1 - reached / trial.config.steps)

    return cost


def commands(sweep, plan, trials) -> list[str]:
    """What launches these trials and no others: one command for those that differ in their budget only."""
    import shlex

    axes = {override.partition("=")[0] for override in plan.points[trials[0].trial_id]}
    fixed = [word for word in base_overrides(sweep) if word.partition("=")[0] not in axes]
    groups: dict[tuple[str, ...], list[str]] = {}
    for trial in trials:
        point = plan.points[trial.trial_id]
        rest = tuple(override for override in point if not override.startswith("budget."))
        (amount,) = set(point) - set(rest)
        groups.setdefault(rest, []).append(amount)
    start = ["python", "-m", "sweep", "launch", "--extend", *fixed, f"sweep.name={sweep.name}"]
    return [shlex.join([*start, *rest, _axis(amounts)]) for rest, amounts in groups.items()]


def _axis(assignments: list[str]) -> str:
    """budget.flops=1e12 and budget.flops=2e12 as budget.flops=1e12,2e12."""
    key = assignments[0].partition("=")[0]
    return f"{key}={','.join(text.partition('=')[2] for text in assignments)}"


def _listed(values) -> str:
    return ",".join(str(value) for value in values)
