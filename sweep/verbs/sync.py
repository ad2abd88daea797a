"""Upload a sweep's W&B files, and the sweep itself as a run, and say what is up and what is not.

  python -m sweep sync default
  python -m sweep sync default --parallel 8
  python -m sweep sync default --no-upload      no account needed: for `wandb leet runs/wandb`

Training without a key or a network leaves its W&B runs as files under runs/wandb/, and what was trained with
wandb.mode=off is written there first. They are uploaded with `wandb sync`: each trial's attempts in order, several
trials at a time; a server that is too busy is asked again later. Ctrl-C, or a lost network, is no harm: the same
command goes on. After `collect`, `fit` and `report` the sweep itself is a run too (job_type frontier): its table,
figures, fit, and the frontier as a chart.

Exit status: 0 all is up, 1 something is not.
"""

import argparse
import shlex

from sweep.common.errors import UserError
from sweep.config.schema import WandbSection
from sweep.runs.lookup import add_sweep
from sweep.runs.sweepdir import SweepDir
from sweep.tracking.account import sign_in


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_sweep(parser)
    parser.add_argument("--parallel", type=int, default=4, metavar="N", help="runs to upload at a time (default: 4)")
    parser.add_argument("--no-upload", action="store_true", help="only write what is missing, offline")


def run(args: argparse.Namespace) -> int:
    from sweep.tracking.sync import catch_up, sync  # plotting

    if args.parallel < 1:
        raise UserError(f"--parallel {args.parallel}: must be at least 1")
    sweep = SweepDir.find(args.sweep, args.sweeps)
    section = sweep.settings().wandb
    if args.no_upload:
        catch_up(sweep)
        print(_frontier(sweep, section))
        return 0
    account = sign_in(section)
    catch_up(sweep)
    print(_frontier(sweep, section))
    tally = sync(sweep, section, account, args.parallel, lambda line: print(line, flush=True))
    print(f"up: {len(tally.up)} runs, in {account.entity}/{section.project}")
    for why in dict.fromkeys(tally.not_up.values()):
        print(f"not up: {why}: {listed([name for name, reason in tally.not_up.items() if reason == why])}")
    if tally.without:
        print(f"nothing to upload yet: {listed(tally.without)}")
    if tally.not_up:
        print(f"to go on: {shlex.join(['python', '-m', 'sweep', 'sync', args.sweep])}")
    return 1 if tally.not_up else 0


def listed(names: list[str], at_most: int = 5) -> str:
    more = f" and {len(names) - at_most} more" if len(names) > at_most else ""
    return ", ".join(names[:at_most]) + more


def _frontier(sweep: SweepDir, section: WandbSection) -> str:
    """Write the sweep's own run; the line that says so, or why there is none."""
    from sweep.tracking import sweep_run  # plotting

    try:
        return sweep_run.refresh(sweep, section)
    except UserError as error:  # the trials can be uploaded all the same
        return f"no run of the sweep itself: {error}"
