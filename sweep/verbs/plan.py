"""Plan a grid: every trial with its size, tokens, FLOPs, memory, time and price, before anything runs.

  python -m sweep plan sweep=default
  python -m sweep plan sweep=isoflop model.params=1M,3M 'budget.flops=choice(1e15,3e15)' seed='range(3)'

Any key that `python -m sweep config` lists can be overridden; several values make it an axis.
"""

import argparse
import json
import sys
from collections.abc import Collection
from pathlib import Path

from omegaconf import OmegaConf
from rich.console import Console

from sweep.common.units import duration, format_bytes, scientific, short
from sweep.data.hub import HubDataset
from sweep.data.placeholder import PlaceholderTokens, stand_in
from sweep.data.prepare import DataConfig, find, prepare
from sweep.data.tokens import Tokens
from sweep.plan.grid import composed_grid
from sweep.plan.plan import Plan, damaged, make_plan
from sweep.plan.price import price

EXPENDABLE = ("epochs", "memory", "D/N", "C (FLOPs)")  # columns that a narrow terminal has no room for, in this order
GAP = 2  # spaces between columns


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", default=[], help="Hydra overrides: sweep=NAME, key=value, key=a,b,c")
    parser.add_argument("--calibrate", action="store_true", help="measure each shape's speed here first, seconds each")
    parser.add_argument("--json", action="store_true", help="print the trials as JSON lines instead")
    parser.add_argument("--cfg", action="store_true", help="print the resolved config as YAML instead, axes included")


def run(args: argparse.Namespace) -> int:
    if args.cfg:
        print(OmegaConf.to_yaml(composed_grid(args.overrides)), end="")
        return 0
    plan = plan_here(args.overrides, download=args.calibrate)
    if args.calibrate:
        from sweep.workers.calibrate import calibrate  # torch

        calibrate(plan, plan.executions, say=lambda line: print(line, file=sys.stderr))
        plan = plan_here(args.overrides)
    if args.json:
        for trial in plan.trials:
            print(json.dumps(trial.to_json()))
        return 0
    show(plan)
    return 0


def plan_here(overrides: list[str], download: bool = True, only: Collection[str] = ()) -> Plan:
    """The plan for this machine. Data that is not there yet is prepared, from the Hub only where `download`."""

    def prepared(config: DataConfig, root: Path) -> Tokens | PlaceholderTokens:
        if not isinstance(config, HubDataset) or download:
            return prepare(config, root)
        tokens = find(config, root)
        if tokens is None:
            print(f"data {config.path} is not prepared: ids and epochs are not known yet", file=sys.stderr)
        return tokens or stand_in(config)

    return make_plan(overrides, prepared, only)


def show(plan: Plan) -> None:
    """Print the plan as a table, what was left out, and the price."""
    console = Console(soft_wrap=True)  # a terminal wraps by itself, and a pipe has no width
    done = plan.done()
    print(f"sweep {plan.name}: {len(plan.trials)} trials on {plan.device}\n")
    _print_table(columns(plan, done), console.width if console.is_terminal else None)
    for reason, points in plan.excluded_by_condition().items():
        console.print(f"excluded by [bold]{reason}[/]: {len(points)} points", highlight=False)
        for excluded in points:
            console.print(f"  {' '.join(excluded.overrides)}  [dim]{excluded.facts}[/]", highlight=False)
    if plan.repeated:
        console.print(f"{plan.repeated} points of the grid are trials named before")
    console.print(price(plan, done), highlight=False)


def columns(plan: Plan, done: set[str]) -> dict[str, list[str]]:
    """Heading → a cell for each trial."""
    trials, estimates = plan.trials, [plan.estimates[trial.trial_id] for trial in plan.trials]
    unreadable = damaged(plan)
    points = [dict(override.split("=", 1) for override in plan.points[trial.trial_id]) for trial in trials]
    return {
        "trial": [trial.trial_id for trial in trials],
        "N": [short(trial.params_non_embedding) for trial in trials],
        "D": [short(trial.tokens) for trial in trials],
        "C (FLOPs)": [scientific(trial.flops) for trial in trials],
        "D/N": [f"{trial.tokens_per_param:.3g}" for trial in trials],
        "epochs": [f"{trial.epochs:.2g}" for trial in trials],
        **{heading: [point[key] for point in points] for heading, key in other_axes(plan).items()},
        "memory": [format_bytes(plan.memory_bytes(trial)) for trial in trials],
        "time": [duration(one.seconds) + (" guess" if one.source == "guess" else "") for one in estimates],
        "": [_state_word(trial.trial_id, done, unreadable) for trial in trials],
    }


def _state_word(trial_id: str, done: Collection[str], unreadable: Collection[str]) -> str:
    return "damaged" if trial_id in unreadable else "done" if trial_id in done else ""


def _print_table(shown: dict[str, list[str]], width: int | None) -> None:
    """Columns at their own widths; where they are wider than a terminal, without the first of `EXPENDABLE`."""
    widths = {heading: max(map(len, (heading, *cells))) for heading, cells in shown.items()}
    dropped = []
    for heading in EXPENDABLE:
        if width is not None and sum(widths.values()) + GAP * (len(widths) - 1) > width:
            dropped.append(heading)
            del widths[heading]
    rules = ["-" * widths[heading] if heading else "" for heading in widths]
    for row in (list(widths), rules, *zip(*(shown[heading] for heading in widths), strict=True)):
        cells = zip(row, widths.items(), strict=True)
        line = (" " * GAP).join(
            cell.ljust(wide) if heading in ("trial", "") else cell.rjust(wide) for cell, (heading, wide) in cells
        )
        print(line.rstrip())
    print(f"\n(a wider terminal also shows {', '.join(dropped)})\n" if dropped else "")


def other_axes(plan: Plan) -> dict[str, str]:
    """Column heading → key of the axes that a trial's id does not show."""
    keys = {override.split("=", 1)[0] for point in plan.points.values() for override in point}
    shown = sorted(key for key in keys if key not in ("model.params", "seed") and not key.startswith("budget."))
    return {key.rpartition(".")[2]: key for key in shown}
