"""Launch a sweep: plan it, train what is missing, collect, fit and report.

  python -m sweep launch sweep=default
  python -m sweep launch sweep=default sweep.name=tuned optim.lr_multiplier=0.5,1,2
  python -m sweep launch sweep=default --dry-run
  python -m sweep launch sweep=ladder_cluster cluster=slurm      on a Slurm cluster: submits arrays and returns

The same command, given again, trains only what is missing. Trials that failed are tried again until they are given up
(see `retry`). Where many trials have the same shape, a launch on this machine first measures whether training several
of them at a time is faster (run.stack=off leaves this out). Ctrl-C stops the launch with everything saved.

Exit status: 0 if all trials have a record (on a cluster: if what is missing is in the queue), 1 if some failed, 75 if
it was stopped and the same command goes on.
"""

import argparse
import shlex
from dataclasses import dataclass

from rich.console import Console

from slurm import messages, submit
from slurm.queue_state import ask
from slurm.shared_folders import check_seen
from slurm.submit import Submitted
from sweep.common.console import open_console
from sweep.common.errors import UserError
from sweep.common.exits import EXIT_AGAIN, say
from sweep.common.units import duration
from sweep.plan.plan import Plan, refuse_damaged, scheduler
from sweep.plan.price import price
from sweep.plan.storage import additions, save
from sweep.runs.sweepdir import SweepDir, launch_command
from sweep.tracking.follow import Task
from sweep.tracking.mirror_process import Sidecar
from sweep.verbs.collect import collect_sweep
from sweep.verbs.plan import plan_here, show
from sweep.verbs.report import report_sweep
from sweep.workers import local
from sweep.workers.local import Launched


@dataclass(frozen=True)
class Request:
    """What a launch shall do."""

    overrides: list[str]
    extend: bool = False
    report: bool = True
    only: frozenset[str] = frozenset()  # family ids; without any, all families


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", default=[], help="Hydra overrides: sweep=NAME, key=value, key=a,b,c")
    parser.add_argument("--dry-run", action="store_true", help="show the plan and its price, and run nothing")
    parser.add_argument(
        "--extend", action="store_true", help="add the trials of this grid to the sweep of the same name"
    )
    parser.add_argument("--no-report", action="store_true", help="only train; collect, fit and report at another time")


def run(args: argparse.Namespace) -> int:
    request = Request(args.overrides, args.extend, report=not args.no_report)
    if not args.dry_run:
        return launch(request)
    if scheduler(request.overrides) == "slurm":
        _preview_on_slurm(request)
    else:
        plan = plan_here(request.overrides, download=False)
        additions(plan, plan.sweep, request.extend)
        show(plan)
    return 0


def launch(request: Request) -> int:
    """Train what is missing, on this machine or by Slurm, then collect, fit and report. Returns the exit status."""
    if scheduler(request.overrides) != "slurm":
        return _on_this_machine(request)
    submitted = on_slurm(request)
    left = submitted.missing
    if submitted.draft is not None:
        return 0
    if request.report and not left.queued and not left.held:
        collect_fit_report(submitted.plan.sweep)
    return 1 if left.given_up else 0


def _on_this_machine(request: Request) -> int:
    """Plan, measure where it pays, train in worker processes, report."""
    local.listen()
    console = open_console(stderr=True)
    plan = plan_here(request.overrides, only=request.only)
    sweep = plan.sweep
    additions(plan, sweep, request.extend)
    local.check(plan)
    refuse_damaged(plan)
    try:
        if local.calibrate_where_it_pays(plan.restricted(), console):
            plan = plan_here(request.overrides, only=request.only)
    except KeyboardInterrupt:
        say("stopped before any training; launch again")
        return EXIT_AGAIN
    save(plan, sweep, request.overrides, request.extend)
    plan = plan.restricted()
    workers = local.worker_count(plan)
    on = f"{plan.device}, {workers} worker{'s' if workers > 1 else ''}" if workers else plan.device
    console.print(f"sweep {plan.name} on {on}: {price(plan, plan.done())}", highlight=False)
    _say_who_else_trains(plan, console)  # the workers of a launch that was killed go on
    outcome = local.launch(plan, sweep, console, lambda: Sidecar(Task.of_sweep(sweep), sweep.logs / "wandb.log"))
    return _end(request, plan, sweep, outcome, console)


def on_slurm(request: Request) -> Submitted:
    """Submit what is missing, say so, and return. A job prepares data that is not there yet."""
    plan = submit.planned(request.overrides, request.only)
    refuse_damaged(plan)
    submitted = submit.submit(plan, request.overrides, request.extend, request.report)
    print(messages.submitted(submitted))
    return submitted


def _preview_on_slurm(request: Request) -> None:
    plan = submit.planned(request.overrides)
    additions(plan, plan.sweep, request.extend)
    preview = submit.preview(plan, request.overrides, request.report)
    show(plan)
    for name, text in preview.scripts.items():
        print(f"\n# ---- {name}\n{text}")
    print(messages.submission(preview))
    _warn_of_folders(plan)
    submit.check_budget(plan, plan.left())


def _warn_of_folders(plan: Plan) -> None:
    """Say which folders a launch would refuse. It is no error here: a dry run may be typed away from the cluster."""
    try:
        check_seen(vars(plan.config.paths), plan.config.cluster.slurm.paths_are_shared)
    except UserError as error:
        say(f"a launch would be refused: {error}")


def _end(request: Request, plan: Plan, sweep: SweepDir, outcome: Launched, console: Console) -> int:
    """Say how the training ended and how to go on. Then collect, fit and report."""
    done = len(plan.done())
    after = duration(outcome.seconds)
    console.print(f"{done} of {len(plan.trials)} trials have a record, after {after}", highlight=False)
    complete = done == len(plan.trials)  # also where a worker was killed and others took over what it had
    status = 0 if complete else outcome.status or EXIT_AGAIN
    _say_who_else_trains(plan, console)
    if status:
        again = shlex.join(launch_command(request.overrides, request.extend))
        say(f"exit status {status}; logs are in {sweep.logs}; to go on:\n  {again}")
    if done and request.report and outcome.status != EXIT_AGAIN:
        collect_fit_report(sweep)
    return status


def _say_who_else_trains(plan: Plan, console: Console) -> None:
    for held in local.held_elsewhere(plan, ask(plan.sweep)):
        console.print(f"being trained by another launch: {held}", highlight=False, soft_wrap=True)


def collect_fit_report(sweep: SweepDir) -> None:
    """Do what the three verbs do. A refused fit is said, and the report then shows the data alone."""
    from sweep.verbs.fit import fit_sweep  # scipy, which training does without

    for verb, of_sweep in (("collect", collect_sweep), ("fit", fit_sweep), ("report", report_sweep)):
        say(f"— {verb} {sweep.name}")
        try:
            of_sweep(sweep)
        except UserError as error:
            say(f"python -m sweep {verb}: {error}")
