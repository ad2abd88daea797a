"""Measuring how fast each shape of a plan trains here, for a plan whose time is not a guess."""

import time
from pathlib import Path

from sweep.data.tokens import Tokens
from sweep.environment import attention_backend, device_model
from sweep.estimate import record_speed, speed_key
from sweep.plan import Plan
from sweep.training import loop
from sweep.training.loop import Setup, State
from sweep.training.worker import prepare_torch
from sweep.trial import Trial

WARM_UP_STEPS = 3
SECONDS = 1.5


def calibrate(plan: Plan) -> dict[str, float]:
    """Time every distinct shape of the plan for a second or two; tokens per second by trial id of its first trial."""
    options = plan.config.run
    prepare_torch(options, plan.device)
    model_name = device_model(plan.device)
    shapes = {speed_key(trial, options, model_name): trial for trial in reversed(plan.trials)}
    measured = {}
    for trial in reversed(shapes.values()):
        tokens_per_second, validation_seconds = _time(trial, plan)
        record_speed(plan.runs, trial, options, model_name, tokens_per_second, validation_seconds, "calibration")
        measured[trial.trial_id] = tokens_per_second
    return measured


def _time(trial: Trial, plan: Plan) -> tuple[float, float]:
    """Tokens per second of training, and seconds of one validation."""
    setup = Setup(
        config=trial.config,
        flops_per_token=float(trial.flops_per_token.exact),
        tokens=Tokens.open(Path(plan.config.paths.tokens), trial.config.data.fingerprint),
        options=plan.config.run,
        device=plan.device,
        backend=attention_backend(plan.config.run.backend, plan.device, trial.config.model.head_dim),
        execution_class="calibration",
    )
    state = State.fresh(setup)

    def step() -> None:
        loop.update(setup, state, trial.config.optim.lr)
        state.step += 1

    for _ in range(WARM_UP_STEPS):
        step()
    state.loss_sum.item()  # waits for the device
    start, first = time.monotonic(), state.step
    while time.monotonic() - start < SECONDS:
        step()
        state.loss_sum.item()
    trained = (state.step - first) * trial.config.batch_tokens / (time.monotonic() - start)
    start = time.monotonic()
    loop.evaluate(setup, setup.validation_NT)
    return trained, time.monotonic() - start
