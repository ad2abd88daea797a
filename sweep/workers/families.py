"""Training families in one process, each alone or in a stack, until none is left or the worker is told to stop."""

import dataclasses
import time

from sweep.common import devices
from sweep.common.exits import EXIT_AGAIN, EXIT_DONE, EXIT_FAILED
from sweep.plan import packing
from sweep.plan.speeds import Speeds
from sweep.plan.trial import Trial
from sweep.runs import claim
from sweep.runs.attempt_log import GIVEN_UP
from sweep.runs.rundir import RunDir
from sweep.runs.state import has_record
from sweep.train.determinism import prepare_torch
from sweep.workers.attempt import Outcome, train_family
from sweep.workers.stack_worker import train_stack
from sweep.workers.worker import Worker


def train_families(worker: Worker, families: list[list[Trial]]) -> int:
    """Train what is missing of each family that nobody else holds; the exit status.

    Families that this job's process from before a requeue still holds are waited for: it ends soon.
    """
    prepare_torch(worker.options, worker.device)
    failed = False
    while families:
        outcomes = _train_all(worker, families)
        if worker.stop.asked:
            return EXIT_AGAIN
        failed |= bool({"failed", GIVEN_UP} & set(outcomes.values()))
        blocked = {name for name, outcome in outcomes.items() if outcome == "blocked"}
        ours = {name for name in blocked if claim.is_of_our_job_before(RunDir.of_trunk(worker.runs, name).path)}
        families = [trials for trials in families if trials[0].family_id in ours]
        if families:
            time.sleep(claim.HEARTBEAT_SECONDS)
    return EXIT_AGAIN if worker.stop.asked else EXIT_FAILED if failed else EXIT_DONE


def _train_all(worker: Worker, families: list[list[Trial]]) -> dict[str, Outcome]:
    """How each family went. Those that were not begun when the worker was told to stop are left out."""
    stacks = stacks_of(worker, families)
    outcomes: dict[str, Outcome] = {}
    for trials in families:
        family_id = trials[0].family_id
        if family_id in outcomes or worker.stop.asked:
            continue
        if family_id in stacks:
            outcomes |= train_stack(worker, *stacks[family_id])
        else:
            outcomes[family_id] = train_family(worker, trials)
    return outcomes


def stacks_of(worker: Worker, families: list[list[Trial]]) -> dict[str, tuple[list[list[Trial]], int]]:
    """For each family that is to be trained in a stack: all families of the stack, and its slots."""
    left = families
    options = dataclasses.replace(worker.options, workers=1)  # how many share a device has been decided
    if options.stack == "auto":  # a number is taken at its word, however few are left: bits are then as they were
        left = [[trial for trial in trials if not has_record(worker.runs, trial.trial_id)] for trials in families]
        if devices.device_share() < 1:  # stacks were calibrated with a device to themselves
            options = dataclasses.replace(options, stack="off")
    speeds, name = Speeds.read(worker.runs), devices.device_model(worker.device)
    chosen = packing.executions([x for x in left if x], options, speeds, worker.device, name, worker.peers)
    found: dict[str, tuple[list[list[Trial]], int]] = {}
    for one in chosen:
        if one.packing.stack and not all(
            has_record(worker.runs, trial.trial_id) for trials in one.families for trial in trials
        ):
            inside = {trials[0].family_id for trials in one.families}
            stack = [trials for trials in families if trials[0].family_id in inside]
            found |= dict.fromkeys(inside, (stack, one.packing.stack))
    return found
