"""Free disk space: list what can go, and remove it when told to.

  python -m sweep clean                 list leftovers: states of finished trials, replaced trunk checkpoints
  python -m sweep clean --trunks --yes  also the trunks' last checkpoints: larger budgets then start from step 0
  python -m sweep clean --claims --yes  release families whose worker has given no sign of life for two minutes

Records, metrics and samples are never touched.
"""

import argparse
import sys
from pathlib import Path

from slurm.queue_state import job_is_gone
from sweep.common.errors import UserError
from sweep.common.units import format_bytes
from sweep.runs import claim
from sweep.runs.claim import Holder
from sweep.runs.cleanup import removable, stuck_claims


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", default="runs", help="the folder of runs (default: runs)")
    parser.add_argument("--trunks", action="store_true", help="also the trunks' last checkpoints")
    parser.add_argument("--weights", action="store_true", help="also final weights (model.pt)")
    parser.add_argument("--claims", action="store_true", help="release silent claims instead of freeing disk")
    parser.add_argument("--yes", action="store_true", help="do it, do not ask")


def run(args: argparse.Namespace) -> int:
    runs = Path(args.runs)
    if not runs.is_dir():
        raise UserError(f"--runs={runs}: no such folder")
    if args.claims:
        stuck = stuck_claims(runs)
        for trunk in stuck:
            print(f"{trunk.name}: {claim.holder_of(trunk)}{_slurm_says(claim.current_holder(trunk))}")
        if stuck and _agreed(args, f"release {len(stuck)} claims?"):
            for trunk in stuck:
                claim.force_release(trunk)
        elif not stuck:
            print("no silent claims")
        return 0
    found = removable(runs, args.trunks, args.weights)
    for item in found:
        print(f"{format_bytes(item.bytes):>10}  {item.path}  {item.why}")
    print(f"{format_bytes(sum(item.bytes for item in found))} in {len(found)} files")
    if found and _agreed(args, "remove them?"):
        for item in found:
            item.path.unlink(missing_ok=True)
        print("removed")
    return 0


def _slurm_says(holder: Holder | None) -> str:
    """What Slurm knows of the job that a silent claim belongs to, in words."""
    if holder is None or holder.job is None:
        return ""
    gone = job_is_gone(holder.job)
    known = "does not answer" if gone is None else "has no such job any more" if gone else "has that job still"
    return f"; Slurm {known}"


def _agreed(args: argparse.Namespace, question: str) -> bool:
    if args.yes:
        return True
    if not sys.stdin.isatty():
        print("nothing was changed: add --yes")
        return False
    return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
