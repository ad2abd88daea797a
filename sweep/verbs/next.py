"""Propose the trials that most shrink the intervals of N_opt and loss at a target compute, within a budget.

  python -m sweep next default --budget 3e12
  python -m sweep next default --budget 3e12 --target 1e14

Candidates are the sweep's own sizes and the next rungs of its ladder, at the sweep's budgets and beyond, as far as its
conditions and data allow: none sees its data more often than the sweep's own trials do, or than once. What a family's
trunk has trained already costs nothing. The commands at the end run them.
"""

import argparse
from dataclasses import replace

import numpy as np

from sweep.common.errors import UserError
from sweep.common.units import parse_quantity, scientific, short
from sweep.plan import candidates
from sweep.plan.plan import Plan
from sweep.plan.storage import planned_trials
from sweep.runs.lookup import add_sweep
from sweep.runs.sweepdir import SweepDir
from sweep.verbs.plan import plan_here


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_sweep(parser, about="a fitted sweep's name or folder")
    parser.add_argument("--budget", required=True, metavar="C", help="training FLOPs to spend, e.g. 3e12")
    parser.add_argument(
        "--target", metavar="C", help="the compute asked about, in FLOPs (default: 10 times that of the largest run)"
    )


def run(args: argparse.Namespace) -> int:
    from sweep.fit import fit_file, next_trials  # scipy
    from sweep.fit.table import OutputPaths

    sweep = SweepDir.find(args.sweep, args.sweeps)
    budget = parse_quantity("--budget", args.budget)
    fit = fit_file.read(OutputPaths(sweep.name, sweep.path))
    largest = max(row.C for row in fit.residuals)
    target = parse_quantity("--target", args.target) if args.target else 10 * largest
    plan = _candidates(sweep, budget)
    N_M = np.array([float(vars(trial.facts)[fit.columns["N"]]) for trial in plan.trials])
    D_M = np.array([float(trial.tokens) for trial in plan.trials])
    choices = next_trials.propose(
        next_trials.questions(fit.law, target),
        next_trials.outcomes(fit.law, N_M, D_M),
        noise_variance=float(np.var(fit.law.deviation_n)),
        cost=candidates.trunk_cost(plan.trials, sweep),
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
    for command in candidates.commands(sweep, plan, [plan.trials[choice.index] for choice in choices]):
        print(f"  {command}")
    return 0


def _candidates(sweep: SweepDir, budget: float) -> Plan:
    """A plan of everything that could be run next."""
    plan = plan_here(candidates.candidates(sweep, budget))
    there = planned_trials(sweep)
    known, epochs = {trial.trial_id for trial in there}, max(1.0, *(trial.epochs for trial in there))
    trials = [trial for trial in plan.trials if trial.trial_id not in known and trial.epochs <= epochs]
    if not trials:
        raise UserError(f"{sweep.name}: every other candidate would see its data over {epochs:.3g} times")
    return replace(plan, trials=trials)
