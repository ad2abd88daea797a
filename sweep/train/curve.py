"""A training curve: its state, where its history goes, and when it logs, validates and ends."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from models.gpt import GPT
from sweep.runs.environment import code_hash
from sweep.train.optim import adamw
from sweep.train.setup import Setup


class Diverged(Exception):
    """The loss of a curve is not finite any more."""

    def __init__(self, curve: "Curve"):
        super().__init__(f"loss not finite at step {curve.state.step}")
        self.curve = curve


class Stopped(Exception):
    """Asked to stop; the state is saved."""


@dataclass
class State:
    """All that changes while training, and all that a checkpoint holds."""

    model: GPT
    optimizer: torch.optim.AdamW
    step: int
    loss_sum: torch.Tensor  # of the steps since the last row
    loss_count: int  # those steps
    best_loss_nats: float
    best_tokens: int
    seconds: float  # from the first step on, evaluation included
    row_seconds: float  # of training since the last row
    classes: list[str]  # execution classes that it was trained in
    codes: list[str]  # versions of the training code that it was trained by
    shared_steps: int = 0  # taken over from the trunk
    shared_seconds: float = 0.0  # what the trunk took for them

    @classmethod
    def fresh(cls, setup: Setup) -> "State":
        setup.model.init_weights(setup.config.seed)
        return cls(
            model=setup.model,
            optimizer=adamw(setup.model, setup.config.optim),
            step=0,
            loss_sum=torch.zeros((), device=setup.device),
            loss_count=0,
            best_loss_nats=math.inf,
            best_tokens=0,
            seconds=0.0,
            row_seconds=0.0,
            classes=[setup.execution_class],
            codes=[code_hash()],
        )


@dataclass
class Row:
    """A row of metrics, its numbers on their way from the device."""

    step: int
    lr: float
    steps: int  # that its loss is the mean of
    numbers: torch.Tensor  # mean loss and gradient norm, on the host
    arrived: torch.cuda.Event | None

    def read(self) -> list[float]:
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.numbers.tolist()


def take_row(state: State, lr: float, grad_norm: torch.Tensor) -> Row:
    """The row of the steps since the last one; the state's sums begin anew."""
    numbers, arrived = torch.stack((state.loss_sum / state.loss_count, grad_norm)), None
    if numbers.is_cuda:
        host = torch.empty(2, pin_memory=True)
        numbers, arrived = host.copy_(numbers, non_blocking=True), torch.cuda.Event()
        arrived.record()
    row = Row(state.step, lr, state.loss_count, numbers, arrived)
    state.loss_sum.zero_()
    state.loss_count = 0
    return row


@dataclass
class Curve:
    """A state and the two files that its history goes to.

    `length` is the trial's number of steps, or None for a trunk, which knows of no end.
    """

    setup: Setup
    state: State
    length: int | None
    metrics: Path
    samples: Path
    save: Callable[["Curve"], None]  # write a checkpoint of this curve
    should_stop: Callable[[], bool]
    on_progress: Callable[[dict[str, Any]], None]
    fetch: Callable[[], None] = lambda: None  # put the weights into the setup's model, where they are kept elsewhere
    saved_at: float = 0.0  # by the clock; whoever trains the curve starts it
    row: Row | None = None  # of the step before, not written yet

    @classmethod
    def unsaved(cls, setup: Setup, state: State) -> "Curve":
        """One that is only stepped, for measurements: it leaves nothing on disk."""
        nowhere = Path("/dev/null")
        return cls(setup, state, None, nowhere, nowhere, lambda curve: None, lambda: False, lambda news: None)

    def lr(self, step: int) -> float:
        config = self.setup.config
        # A trunk is asked only for steps before every branch, where any length gives the same factor.
        length = self.length if self.length is not None else 2**62
        return config.optim.lr * config.schedule.lr_factor(step, length)

    def validates(self, step: int) -> bool:
        evaluation = self.setup.config.eval
        return step == self.length or is_log_spaced(step, evaluation.first_step, evaluation.points_per_doubling)

    def logs(self, step: int) -> bool:
        return step % self.setup.config.eval.log_every_steps == 0

    def phase(self, step: int) -> str:
        """Of the update that brought the curve to `step`."""
        if self.length is None or step <= self.setup.config.schedule.branch_step(self.length):
            return "stable"
        return "decay"


def is_log_spaced(step: int, first: int, per_doubling: int) -> bool:
    """Whether `step` is a rounded `first`·2^(k/per_doubling): a grid that no budget changes."""
    if step < first:
        return False
    k = round(per_doubling * math.log2(step / first))
    return any(step == round(first * 2 ** (near / per_doubling)) for near in (k - 1, k, k + 1))
