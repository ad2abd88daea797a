"""Launch a sweep: plan it, train what is missing, collect, fit and report.

  python -m sweep launch sweep=default
  python -m sweep launch sweep=default sweep.name=tuned optim.lr_multiplier=0.5,1,2
  python -m sweep launch sweep=default --dry-run
  python -m sweep launch sweep=ladder_cluster cluster=slurm      on a Slurm cluster: submits arrays and returns

The same command again trains only what is missing; what failed is tried again, until it is given up (see `retry`).
Where a shape has much to train, a launch on this machine first measures whether several trials at a time are faster
(run.stack=off does without). Ctrl-C stops with everything saved.

Exit status: 0 all trials have a record (on a cluster: what is missing is in the queue), 1 some failed, 75 stopped,
launch again.
"""

import argparse
import shlex
import sys

HELP = "run a sweep, from the grid to the report"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", default=[], help="Hydra overrides: sweep=NAME, key=value, key=a,b,c")
    parser.add_argument("--dry-run", action="store_true", help="show the plan and its price, run nothing")
    parser.add_argument("--extend", action="store_true", help="add this grid's trials to the sweep of the same name")
    parser.add_argument("--no-report", action="store_true", help="only train; collect, fit and report later")
    parser.add_argument("--only", metavar="FAMILY,…", help=argparse.SUPPRESS)  # for `retry`


def run(args: argparse.Namespace) -> int:
    from pathlib import Path

    from rich.console import Console

    from sweep.exits import EXIT_AGAIN
    from sweep.plan import additions, save
    from sweep.sweepdir import SweepDir
    from sweep.training import local
    from sweep.verbs.plan import plan_here, price, show

    command = ["python", "-m", "sweep", "launch", *args.overrides, *(["--extend"] if args.extend else [])]
    if scheduler(args.overrides) == "slurm":
        return _on_slurm(args, command)
    console = Console(stderr=True)
    only = _families(args)
    plan = plan_here(args.overrides, download=not args.dry_run, only=only)
    sweep = SweepDir(Path(plan.config.paths.sweeps) / plan.name)
    additions(plan, sweep, args.extend)
    if args.dry_run:
        show(plan)
        return 0
    local.check(plan)
    _refuse_damaged(plan)
    local.listen()
    try:
        if local.calibrate_where_it_pays(plan.restricted(), console):
            plan = plan_here(args.overrides, only=only)
    except KeyboardInterrupt:
        print("stopped before any training; launch again", file=sys.stderr)
        return EXIT_AGAIN
    save(plan, sweep, command, extend=args.extend)
    plan = plan.restricted()
    workers = local.worker_count(plan)
    on = f"{plan.device}, {workers} worker{'s' if workers > 1 else ''}" if workers else plan.device
    console.print(f"sweep {plan.name} on {on}: {price(plan, plan.done())}", highlight=False)
    outcome = local.launch(plan, sweep, console)
    return _end(args, plan, sweep, command, outcome, console)


def _families(args: argparse.Namespace) -> list[str]:
    """Those that a launch is about; all if none is named."""
    return args.only.split(",") if args.only else []


def scheduler(overrides: list[str]) -> str:
    """`cluster.scheduler` of the grid's first point."""
    from sweep.grid import grid

    return next((point.config.cluster.scheduler for point in grid(overrides)), "local")


def _refuse_damaged(plan) -> None:
    """A record that cannot be read would pass for a finished trial."""
    from sweep.errors import UserError
    from sweep.training import local

    if damaged := local.damaged_records(plan):
        raise UserError(damaged[0] + (f" (and {len(damaged) - 1} more records)" if damaged[1:] else ""))


def _on_slurm(args: argparse.Namespace, command: list[str]) -> int:
    """Submit what is missing, and return. Data that is not there yet is prepared by a job."""
    from pathlib import Path

    from slurm import describe, submit
    from slurm.unprepared import tokens_or_stand_in
    from sweep.plan import absolute_paths, additions, make_plan
    from sweep.sweepdir import SweepDir
    from sweep.verbs.plan import price, show

    plan = absolute_paths(make_plan(args.overrides, tokens_or_stand_in, _families(args)))
    sweep = SweepDir(Path(plan.config.paths.sweeps) / plan.name)
    report = not args.no_report
    if args.dry_run:
        additions(plan, sweep, args.extend)
        preview = submit.preview(plan, sweep, command, args.overrides, report)
        show(plan)
        for name, text in preview.scripts.items():
            print(f"\n# ---- {name}\n{text}")
        print(describe.submission(preview))
        _warn_of_folders(plan)
        submit.check_budget(plan, plan.left())
        return 0
    _refuse_damaged(plan)
    made, left, plan = submit.launch(plan, sweep, command, args.overrides, args.extend, report, _say)
    done = plan.done()
    to_train = {family[0].family_id for family in left.families}
    others = {trial.trial_id for trial in plan.trials if trial.family_id not in to_train}
    nothing = f"{len(done)} of {len(plan.trials)} trials have a record; nothing more to submit"
    print(f"sweep {plan.name}: {price(plan, done | others) if left.families else nothing}")
    for line in describe.left_alone(left, plan):
        print(line)
    if made is None:
        if report and not left.queued and not left.held:
            _report(sweep)
        return 1 if left.given_up else 0
    print(describe.submission(made))
    print(describe.how_it_goes(sweep.name))
    return 0


def _warn_of_folders(plan) -> None:
    """A dry run may be typed on a machine that does not see the cluster's folders, so it is no error there."""
    from slurm.folders import check_seen
    from sweep.errors import UserError

    try:
        check_seen(vars(plan.config.paths), plan.config.cluster.slurm.paths_are_shared)
    except UserError as error:
        _say(f"a launch would be refused: {error}")


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _end(args: argparse.Namespace, plan, sweep, command: list[str], outcome, console) -> int:
    """Say how it went and how to go on; then collect, fit and report."""
    from sweep.exits import EXIT_AGAIN
    from sweep.quantity import duration
    from sweep.training import local

    done = len(plan.done())
    after = duration(outcome.seconds)
    console.print(f"{done} of {len(plan.trials)} trials have a record, after {after}", highlight=False)
    status = outcome.status or (0 if done == len(plan.trials) else EXIT_AGAIN)
    for held in local.held_elsewhere(plan):
        console.print(f"being trained by another launch: {held}", highlight=False, soft_wrap=True)
    if status:
        print(f"exit status {status}; logs are in {sweep.logs}; to go on:\n  {shlex.join(command)}", file=sys.stderr)
    if done and not args.no_report and outcome.status != EXIT_AGAIN:
        _report(sweep)
    return status


def _report(sweep) -> None:
    """collect → fit → report, as the verbs do it. A refused fit is said, and the report shows the data."""
    from sweep.cli import main

    for verb in ("collect", "fit", "report"):
        print(f"— {verb} {sweep.name}", file=sys.stderr)
        main([verb, str(sweep.path)])
