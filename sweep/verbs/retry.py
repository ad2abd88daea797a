"""Try runs again that failed, were lost, or were given up: clear their failures, then launch them.

  python -m sweep retry SWEEP          all runs of the sweep that have no record and that nobody trains
  python -m sweep retry SWEEP RUN…     only these, with the rest of their families

`launch` tries failed runs again too, until their family is given up: after a few attempts in a row that began from
the same saved state (cluster.slurm.max_attempts_without_progress), so that a broken trial does not waste the cluster.
Correct what is wrong, then `retry`. Runs resume from their checkpoints. The sweep is launched as it was launched last.
"""

import argparse
import shlex
import sys
from pathlib import Path

from slurm.queue_state import ask
from sweep.common.errors import UserError
from sweep.runs import attempt_log
from sweep.runs.lookup import add_sweep
from sweep.runs.rundir import RunDir
from sweep.runs.state import States, has_record
from sweep.runs.sweepdir import SweepDir, launch_command
from sweep.verbs import launch


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_sweep(parser)
    parser.add_argument(
        "runs", nargs="*", default=[], metavar="RUN", help="ids or unique prefixes (default: all that are missing)"
    )


def run(args: argparse.Namespace) -> int:
    sweep = SweepDir.find(args.sweep, args.sweeps)
    families = forget(sweep, args.runs)
    if not families:
        print("nothing to retry: every run asked for has a record")
        return 0
    overrides = sweep.overrides()
    print(f"{len(families)} families: {shlex.join(launch_command(overrides))}", file=sys.stderr)
    return launch.launch(launch.Request(overrides, only=frozenset(families)))


def forget(sweep: SweepDir, names: list[str]) -> list[str]:
    """Clear the failures of families that lack records and that nobody trains; the ids of these families."""
    runs = Path(sweep.settings().paths.runs)
    missing: dict[str, list[RunDir]] = {}
    for line in sweep.chosen(names):
        if not has_record(runs, line.trial_id):
            missing.setdefault(line.family_id, []).append(RunDir.of_trial(runs, line.trial_id))
    states = States(runs, ask(sweep))
    for family_id, trials in list(missing.items()):
        family = states.family(family_id)
        if family.damage:
            raise UserError(family.damage)
        if family.held is not None:
            print(f"{family_id}: is being trained, left alone: {family.held}", file=sys.stderr)
            del missing[family_id]
        elif family.last is not None:
            attempt_log.retry(RunDir.of_trunk(runs, family_id))
            for trial in trials:
                trial.error.unlink(missing_ok=True)
    return list(missing)
