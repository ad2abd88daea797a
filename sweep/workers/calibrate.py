"""Measures how fast each shape of a plan trains on this device, in every packing that may be faster.

Plans then need not guess how long they take, and choose only packings that are faster (`sweep.plan.packing`).
"""

import multiprocessing
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import connection
from pathlib import Path
from typing import Any

import torch

from sweep.common.devices import attention_backend, device_memory_bytes, device_model, free_memory, resolve_device
from sweep.common.errors import UserError
from sweep.config.schema import RunOptions
from sweep.data.tokens import Tokens
from sweep.plan.packing import Execution, candidates, micro_batch
from sweep.plan.plan import Plan
from sweep.plan.speeds import ALONE, Packing, record_speed, speed_key
from sweep.plan.trial import Trial
from sweep.train import loop
from sweep.train.curve import Curve, State
from sweep.train.determinism import prepare_torch
from sweep.train.evaluation import evaluate
from sweep.train.setup import Setup
from sweep.train.stack import Stack

WARM_UP_STEPS = 3
SECONDS = 1.5
STEPS_AT_ONCE = 8
EXIT_OUT_OF_MEMORY = 3
Step = Callable[[], Any]


def calibrate(plan: Plan, chosen: list[Execution], say: Callable[[str], None] = lambda line: None) -> None:
    """Time each distinct shape of the plan for a second or two, alone and in each packing that may be faster.

    A packing that device memory is too small for gets a speed of 0. UserError where the plan is for another device.
    """
    options, device = plan.config.run, plan.device
    resolve_device(device)
    name, tokens = device_model(device), Path(plan.config.paths.tokens)
    if (planned := plan.config.cluster.device_name) not in (None, name):
        raise UserError(
            f"cluster.device_name={planned}: the device here is {name}; correct it, or measure on such a one"
        )
    prepare_torch(options, device)
    ordered = sorted(
        chosen, key=lambda one: one.trials_per_process
    )  # of several with one key, the one with most packings is measured
    shapes = {speed_key(one.families[0][0], options, name): one for one in ordered}
    for one in shapes.values():
        trial = one.families[0][0]
        validation_seconds = _validation_seconds(_setup(trial, options, tokens, device, ALONE))
        for packing in (
            ALONE,
            *candidates(
                trial, one.trials_per_process, one.families_per_device, options, device, device_memory_bytes(device)
            ),
        ):
            free_memory(device)  # of the packing before
            try:
                tokens_per_second = _time(trial, options, tokens, device, packing)
            except torch.OutOfMemoryError:
                tokens_per_second = 0.0
            except RuntimeError as error:
                say(f"{trial.trial_id}: {packing} cannot be measured: {str(error).splitlines()[0]}")
                continue
            say(f"{trial.trial_id}: {packing} {tokens_per_second:,.0f} tokens/s")
            record_speed(plan.runs, trial, options, name, tokens_per_second, validation_seconds, "calibration", packing)


def _time(trial: Trial, options: RunOptions, tokens: Path, device: str, packing: Packing) -> float:
    """Tokens per second of training, summed over all that share the device."""
    if packing.processes > 1:
        return _processes(trial, options, tokens, device, packing)
    return _ready(trial, options, tokens, device, packing)()


def _ready(trial: Trial, options: RunOptions, tokens: Path, device: str, packing: Packing) -> Callable[[], float]:
    """A function that measures this process's tokens per second; its step is compiled and captured already."""
    setup = _setup(trial, options, tokens, device, packing)
    if packing.stack:
        step, wait = _stacks_step(trial, setup, options, tokens, packing)
    else:
        step, wait = _plain_step(setup)
    step()
    wait()
    tokens_of_step = max(1, packing.stack) * trial.config.batch_tokens
    return lambda: _steps_per_second(step, wait, device) * tokens_of_step


def _plain_step(setup: Setup) -> tuple[Step, Step]:
    state = State.fresh(setup)

    def step() -> None:
        loop.update(setup, state, setup.config.optim.lr)
        state.step += 1

    return step, lambda: state.loss_sum.item()


def _stacks_step(trial: Trial, setup: Setup, options: RunOptions, tokens: Path, packing: Packing) -> tuple[Step, Step]:
    stack = Stack(setup, packing.stack, graph=options.graph and setup.device == "cuda")
    for _ in range(packing.stack):
        one = _setup(trial, options, tokens, setup.device, packing, stack)
        stack.seat(Curve(one, State.fresh(one)))
    return stack.update, lambda: stack.loss_sum_K.sum().item()


def _steps_per_second(step: Step, wait: Step, device: str) -> float:
    """Steps per second. `wait` waits for the device; as in training, it is not called after every step."""
    for _ in range(WARM_UP_STEPS):
        step()
    wait()
    at_once = STEPS_AT_ONCE if device == "cuda" else 1
    start, steps = time.monotonic(), 0
    while time.monotonic() - start < SECONDS:
        for _ in range(at_once):
            step()
        wait()
        steps += at_once
    return steps / (time.monotonic() - start)


def _processes(trial: Trial, options: RunOptions, tokens: Path, device: str, packing: Packing) -> float:
    """Tokens per second of several processes on one device at the same time."""
    context = multiprocessing.get_context("spawn")
    ready, speeds = context.Barrier(packing.processes), context.SimpleQueue()
    arguments = (trial, options, tokens, device, packing, ready, speeds)
    workers = [context.Process(target=_one_of_several, args=arguments) for _ in range(packing.processes)]
    for worker in workers:
        worker.start()
    while alive := [worker.sentinel for worker in workers if worker.is_alive()]:
        connection.wait(alive)
        if any(worker.exitcode for worker in workers):
            ready.abort()  # the others need not wait for it
    exits = [worker.exitcode for worker in workers]
    if EXIT_OUT_OF_MEMORY in exits:
        raise torch.OutOfMemoryError
    if any(exits):
        raise RuntimeError(f"of {packing.processes} processes, some ended with {exits}")
    return sum(speeds.get() for _ in workers)


def _one_of_several(
    trial: Trial, options: RunOptions, tokens: Path, device: str, packing: Packing, ready: Any, speeds: Any
) -> None:
    """Measure one process. It trains a little first, so that each is measured while all train."""
    prepare_torch(options, device)
    try:
        measure = _ready(trial, options, tokens, device, packing)
        ready.wait()
        speeds.put(measure())
    except torch.OutOfMemoryError:
        sys.exit(EXIT_OUT_OF_MEMORY)


def _validation_seconds(setup: Setup) -> float:
    start = time.monotonic()
    evaluate(setup, setup.validation_NT)
    return time.monotonic() - start


def _setup(
    trial: Trial, options: RunOptions, tokens: Path, device: str, packing: Packing, stack: Stack | None = None
) -> Setup:
    """The setup that a worker would have, its micro-batch chosen by the memory model."""
    if device == "cuda":
        size = micro_batch(trial, options, device, device_memory_bytes(device) / packing.processes, packing.stack)
        options = replace(options, micro_batch_sequences=size)
    backend = attention_backend(options.backend, device, trial.config.model.head_dim)
    found = Tokens.open(tokens, trial.config.data.fingerprint)
    scratch = None if stack is None else stack.scratch_model
    return Setup.of(trial, found, options, device, backend, execution_class="calibration", shared_model=scratch)
