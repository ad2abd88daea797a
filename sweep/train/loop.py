"""The training loop: one step and its order of events, the same for a trunk, a cooldown and a lone trial.

A curve is a pure function of (trial, step): batch i depends on (seed, i) alone, validation points on the step alone,
and nothing draws from a global random state. So a run that was killed and resumed, or that shared its trunk with
other budgets, gives the same numbers as one that ran alone.

Shapes: B sequences, T tokens of a sequence.
"""

import math
import time
from dataclasses import asdict
from typing import NoReturn

import torch

from sweep.common.files import append_json
from sweep.runs.metrics import MetricsRow
from sweep.train.curve import Curve, Diverged, State, Stopped, take_row
from sweep.train.evaluation import evaluate, write_sample
from sweep.train.setup import Setup

READ_LATE = ("cuda",)  # devices that work on while the host reads what they did a step before


class Clock:
    """Charges the time since it was last asked to training, or to something else (evaluation, samples, saving)."""

    def __init__(self) -> None:
        self.last = time.monotonic()

    def lap(self) -> float:
        now = time.monotonic()
        elapsed, self.last = now - self.last, now
        return elapsed

    def charge(self, state: State) -> float:
        elapsed = self.lap()
        state.seconds += elapsed
        return elapsed

    def charge_training(self, state: State) -> None:
        state.row_seconds += self.charge(state)

    def skip(self) -> None:
        """Charge what came before to nobody."""
        self.last = time.monotonic()


def train(curve: Curve, until: int) -> None:
    """Take the curve from its state's step to `until`.

    Raises Stopped (after a checkpoint) when asked to stop and Diverged when the loss is not finite.
    """
    setup, state = curve.setup, curve.state
    clock = Clock()
    curve.saved_at = time.monotonic()
    while state.step < until:
        if curve.should_stop():
            stop(curve, clock)
        lr = curve.lr(state.step)
        grad_norm = update(setup, state, lr)
        state.step += 1
        after_update(curve, clock, lr, grad_norm)
    arrive(curve, clock)


def arrive(curve: Curve, clock: Clock) -> None:
    """Bring what is known of a curve up to its step, for who looks at it from outside."""
    _write_row(curve, clock)
    clock.charge_training(curve.state)


def stop(curve: Curve, clock: Clock) -> NoReturn:
    """Save a curve where it is, and raise Stopped."""
    arrive(curve, clock)
    curve.save()
    raise Stopped


def after_update(curve: Curve, clock: Clock, lr: float, grad_norm: torch.Tensor) -> None:
    """What follows an update when its step or its time has come: a row, a sample, a checkpoint, news."""
    _write_row(curve, clock)
    state, evaluation = curve.state, curve.setup.config.eval
    last, validate = state.step == curve.length, curve.validates(state.step)
    if validate or curve.logs(state.step):
        curve.row = take_row(state, lr, grad_norm)
        soon = curve.validates(state.step + 1) or curve.logs(state.step + 1)  # whose time could not be told from ours
        if validate or soon or curve.setup.device not in READ_LATE:
            _write_row(curve, clock, validate)
    if evaluation.sample_tokens and (last or _is_power_of_four(state.step)):
        arrive(curve, clock)
        write_sample(curve)
        clock.charge(state)
    if time.monotonic() - curve.saved_at >= curve.setup.options.checkpoint_seconds:
        arrive(curve, clock)
        curve.save()
        clock.charge(state)
        curve.saved_at = time.monotonic()
    if state.step % 16 == 0:
        curve.report()


def update(setup: Setup, state: State, lr: float) -> torch.Tensor:
    """One optimizer step on batch number `state.step`; returns the gradient norm before clipping, on the device."""
    inputs_BT, targets_BT = setup.batches.batch(state.step)
    state.optimizer.zero_grad(set_to_none=True)
    share = setup.micro_batch / len(inputs_BT)
    for start in range(0, len(inputs_BT), setup.micro_batch):
        chunk = slice(start, start + setup.micro_batch)
        loss = setup.loss_of(inputs_BT[chunk], targets_BT[chunk]) * share
        loss.backward()
        state.loss_sum += loss.detach()
    state.loss_count += 1
    grad_norm = torch.nn.utils.clip_grad_norm_(state.model.parameters(), setup.config.optim.clip_norm)
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    state.optimizer.step()
    return grad_norm


def _is_power_of_four(step: int) -> bool:
    return step >= 16 and step & (step - 1) == 0 and step.bit_length() % 2 == 1


def _write_row(curve: Curve, clock: Clock, validate: bool = False) -> None:
    """Write the row that was begun, if there is one. With a validation it must be of the curve's own step."""
    setup, state, row = curve.setup, curve.state, curve.row
    if row is None:
        return
    curve.row = None
    batch_tokens = setup.config.batch_tokens
    mean_loss, grad_norm = row.read()  # waits for the device, so the lap below is honest
    clock.charge_training(state)
    speed = row.steps * batch_tokens / state.row_seconds
    state.row_seconds = 0.0
    val_loss = None
    if validate:
        curve.fetch()
        val_loss = evaluate(setup, setup.validation_NT)
    clock.charge(state)
    tokens = row.step * batch_tokens
    if val_loss is not None and val_loss < state.best_loss_nats:
        state.best_loss_nats, state.best_tokens = val_loss, tokens
    written = MetricsRow(
        step=row.step,
        tokens=tokens,
        flops=tokens * setup.flops_per_token,
        phase=curve.phase(row.step),
        lr=row.lr,
        train_loss_nats=finite(mean_loss),
        val_loss_nats=finite(val_loss),
        grad_norm=finite(grad_norm),
        seconds=round(state.seconds, 4),
        tokens_per_second=round(speed, 1),
        mfu=setup.mfu(speed),
    )
    append_json(curve.metrics, asdict(written))
    curve.report(written)
    if not math.isfinite(mean_loss) or (val_loss is not None and not math.isfinite(val_loss)):
        state.step = row.step  # what was trained while the row was on its way does not count
        raise Diverged(f"loss not finite at step {row.step}")


def finite(value: float | None) -> float | None:
    """JSON knows no NaN; a missing number is null, never 0."""
    return value if value is not None and math.isfinite(value) else None
