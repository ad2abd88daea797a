"""A worker: trains a list of families in one process, each under its claim, until done or told to stop."""

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
from sweep.train.determinism import prepare_torch
from sweep.workers.attempt import Outcome, has_record
from sweep.workers.context import WorkerContext
from sweep.workers.family_worker import train_family
from sweep.workers.stack_worker import train_stack


class Worker(WorkerContext):
    """Goes through families until nothing is left for it to do."""

    def run(self, families: list[list[Trial]]) -> int:
        """Train what is missing of each family that nobody else holds; the exit status.

        A family that a process of this job's time before its requeue still holds is waited for: it ends soon.
        """
        prepare_torch(self.options, self.device)
        failed = False
        while families:
            outcomes = self._train_all(families)
            if self.stop.asked:
                return EXIT_AGAIN
            failed |= bool({"failed", GIVEN_UP} & set(outcomes.values()))
            blocked = {name for name, outcome in outcomes.items() if outcome == "blocked"}
            ours = {name for name in blocked if claim.is_of_our_job_before(RunDir.of_trunk(self.runs, name).path)}
            families = [trials for trials in families if trials[0].family_id in ours]
            if families:
                time.sleep(claim.HEARTBEAT_SECONDS)
        return EXIT_AGAIN if self.stop.asked else EXIT_FAILED if failed else EXIT_DONE

    def _train_all(self, families: list[list[Trial]]) -> dict[str, Outcome]:
        """How each family went. Those that are not begun when the worker is told to stop are left out."""
        stacks = self._stacks(families)
        outcomes: dict[str, Outcome] = {}
        for trials in families:
            family_id = trials[0].family_id
            if family_id in outcomes or self.stop.asked:
                continue
            if family_id in stacks:
                outcomes |= train_stack(self, *stacks[family_id])
            else:
                outcomes[family_id] = train_family(self, trials)
        return outcomes

    def _stacks(self, families: list[list[Trial]]) -> dict[str, tuple[list[list[Trial]], int]]:
        """Of each family that is to be trained in a stack: all families of the stack, and its slots."""
        left = families
        options = dataclasses.replace(self.options, workers=1)  # how many share a device is decided
        if options.stack == "auto":  # a number is taken at its word, however few are left: bits are then as they were
            left = [[trial for trial in trials if not has_record(self, trial)] for trials in families]
            if devices.device_share() < 1:  # calibrated were stacks that have a device to themselves
                options = dataclasses.replace(options, stack="off")
        speeds, name = Speeds.read(self.runs), devices.device_model(self.device)
        chosen = packing.executions([x for x in left if x], options, speeds, self.device, name, self.peers)
        found: dict[str, tuple[list[list[Trial]], int]] = {}
        for one in chosen:
            if one.packing.stack and not all(has_record(self, trial) for trials in one.families for trial in trials):
                inside = {trials[0].family_id for trials in one.families}
                stack = [trials for trials in families if trials[0].family_id in inside]
                found |= dict.fromkeys(inside, (stack, one.packing.stack))
        return found
