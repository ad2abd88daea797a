"""The micro-batch: what device memory allows, what to do when it was full, and whether the memory model was right."""

import dataclasses

import torch

from models.count import memory_bytes
from sweep.common import devices
from sweep.common.errors import UserError
from sweep.common.units import format_bytes
from sweep.config.schema import RunOptions
from sweep.plan import packing
from sweep.plan.trial import Trial
from sweep.runs import attempt_log
from sweep.runs.claim import Claim
from sweep.runs.rundir import RunDir
from sweep.train.setup import Setup
from sweep.workers.worker import Worker


def options_that_fit(worker: Worker, trials: list[Trial], slots: int) -> RunOptions:
    """The options, with the micro-batch that was found to fit on such a device, or that should by the memory model."""
    options, device = worker.options, worker.device
    trunk = RunDir.of_trunk(worker.runs, trials[0].family_id)
    size = attempt_log.micro_batch_that_fits(trunk, devices.device_model(device))
    if size is None and device == "cuda":
        device_bytes = devices.device_memory_bytes(device) * devices.device_share()
        size = packing.micro_batch(trials[0], options, device, device_bytes, slots)
    return options if size is None else dataclasses.replace(options, micro_batch_sequences=size)


def take_smaller_micro_batch(worker: Worker, setup: Setup, trunk: RunDir, held: Claim) -> None:
    """Write down that the family goes on with the next smaller divisor of the batch, which `options_that_fit` then
    takes: it is part of the execution class. UserError where there is none."""
    full = setup.micro_batch
    if full == 1:
        raise UserError(
            "out of device memory with one sequence at a time; train it on a device with more memory, or with "
            "fewer workers on each"
        )
    size = next(size for size in range(full - 1, 0, -1) if setup.config.batch_sequences % size == 0)
    attempt_log.out_of_memory(trunk, held, size, devices.device_model(setup.device))
    worker.log(f"{trunk.path.name}: out of device memory with {full} sequences at a time; going on with {size}")
    setup.model.zero_grad(set_to_none=True)
    devices.free_memory(setup.device)


def compare_with_model(worker: Worker, setup: Setup, slots: int = 0) -> None:
    """Say so where tensors took more GPU memory than the memory model, which chose the micro-batch, expects for a trial
    alone or a stack of so many slots."""
    if setup.device != "cuda":
        return
    config = setup.config
    expected = max(1, slots) * memory_bytes(config.model, setup.micro_batch, config.precision)["total"]
    if slots:
        expected += packing.resident_bytes(config, setup.device)
    used = torch.cuda.max_memory_allocated()
    if used > expected:
        worker.log(f"memory: {format_bytes(used)} used where {format_bytes(expected)} were expected")
    torch.cuda.reset_peak_memory_stats()
