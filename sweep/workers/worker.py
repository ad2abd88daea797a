"""A worker: trains a list of families in one process, each under its claim, until done or told to stop."""

import ctypes
import dataclasses
import os
import time

import torch

from sweep.common import devices
from sweep.common.exits import EXIT_AGAIN, EXIT_DONE, EXIT_FAILED
from sweep.config.compose import RunOptions
from sweep.plan import packing
from sweep.plan.speeds import Speeds
from sweep.plan.trial import Trial
from sweep.runs import claim
from sweep.runs.attempt_log import GIVEN_UP
from sweep.runs.rundir import RunDir
from sweep.workers.attempt import Outcome, has_record
from sweep.workers.context import WorkerContext
from sweep.workers.family_worker import train_family
from sweep.workers.stack_worker import train_stack

COMPILED_SHAPES = 1000  # of one process, in all its micro-batches and stacks
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


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
            if one.way.stack and not all(has_record(self, trial) for trials in one.families for trial in trials):
                inside = {trials[0].family_id for trials in one.families}
                stack = [trials for trials in families if trials[0].family_id in inside]
                found |= dict.fromkeys(inside, (stack, one.way.stack))
        return found


def prepare_torch(options: RunOptions, device: str) -> None:
    """Process-wide settings that decide speed and bits."""
    torch.set_num_threads(options.threads)
    if options.compile:  # a process compiles the same code for many shapes; past its limit torch would quietly not
        torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = COMPILED_SHAPES
        torch._dynamo.config.fail_on_recompile_limit_hit = True
    if device == "cpu":
        _keep_freed_memory()
    if options.deterministic and device == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # debugging aid


def _keep_freed_memory() -> None:
    """Have glibc keep freed blocks instead of giving them back to the kernel and faulting them in again at every step.

    5 to 24% of a step of the smallest models. Without glibc there is nothing to set.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        for parameter in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
            libc.mallopt(parameter, 2**28)
