"""A training curve: its state, where its history goes, and when it logs, validates and ends."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch

from models.gpt import GPT
from sweep.runs.environment import code_hash
from sweep.runs.metrics import MetricsRow
from sweep.train.optim import adamw
from sweep.train.setup import Setup

NOWHERE = Path("/dev/null")


class Diverged(Exception):
    """The loss of a curve is not finite any more."""


class Stopped(Exception):
    """Training was asked to stop. The state is saved, unless it was another worker's to save."""


@dataclass
class State:
    """Everything that changes while training, and everything that a checkpoint holds."""

    model: GPT
    optimizer: torch.optim.AdamW
    step: int
    loss_sum: torch.Tensor  # of the steps since the last row
    loss_count: int  # those steps
    best_loss_nats: float
    best_tokens: int
    seconds: float  # since the first step, evaluation included
    row_seconds: float  # of training since the last row
    classes: list[str]  # execution classes that it was trained in
    codes: list[str]  # versions of the training code that it was trained by
    shared_steps: int = 0  # taken over from the trunk
    shared_seconds: float = 0.0  # what the trunk took for them

    @classmethod
    def fresh(cls, setup: Setup) -> "State":
        """The state at step 0, put into `setup.model`."""
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
class PendingRow:
    """A row of metrics whose numbers are on their way from the device."""

    step: int
    lr: float
    steps: int  # that its loss is the mean of
    numbers: torch.Tensor  # mean loss and gradient norm, on the host
    arrived: torch.cuda.Event | None

    def read(self) -> list[float]:
        """Mean loss and gradient norm; waits for them."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.numbers.tolist()


def take_row(state: State, lr: float, grad_norm: torch.Tensor) -> PendingRow:
    """The row of the steps since the last one; the state's sums start again from zero."""
    numbers, arrived = torch.stack((state.loss_sum / state.loss_count, grad_norm)), None
    if numbers.is_cuda:
        host = torch.empty(2, pin_memory=True)
        numbers, arrived = host.copy_(numbers, non_blocking=True), torch.cuda.Event()
        arrived.record()
    row = PendingRow(state.step, lr, state.loss_count, numbers, arrived)
    state.loss_sum.zero_()
    state.loss_count = 0
    return row


class WeightRows(Protocol):
    """Where a curve's weights and moments lie while it is trained with others (`sweep.train.stack.Stack`)."""

    def read(self, curve: "Curve", moments: bool = False) -> None:
        """Put the weights into the curve's model, and where asked the moments into its optimizer."""

    def occupied(self) -> int:
        """How many curves are trained together."""


@dataclass(eq=False)
class Curve:
    """A state, and the two files that its history goes to.

    This one is only stepped, for measurements: nobody stops it, nobody hears of it, and it has no checkpoints.
    `sweep.train.family` has the curves that are trained for trials.
    """

    setup: Setup
    state: State
    length: int | None = None  # the trial's number of steps; None for a trunk, which knows of no end
    metrics: Path = NOWHERE
    samples: Path = NOWHERE
    stack: WeightRows | None = field(default=None, init=False)  # while it has a slot there
    saved_at: float = field(default=0.0, init=False)  # by the clock; whoever trains the curve starts it
    row: PendingRow | None = field(default=None, init=False)  # of the step before, not written yet

    def save(self) -> None:
        """Write a checkpoint."""

    def should_stop(self) -> bool:
        """Whether it is to be saved and left. Raises Stopped where it must be left without being saved."""
        return False

    def report(self, row: MetricsRow | None = None) -> None:
        """Tell how far it is."""

    def fetch(self) -> None:
        """Put the weights into the setup's model, if they lie elsewhere."""
        if self.stack is not None:
            self.stack.read(self)

    @contextmanager
    def whole_state(self) -> Iterator[State]:
        """The state with its weights and moments, for as long as they are needed."""
        if self.stack is None:
            yield self.state
            return
        self.stack.read(self, moments=True)
        try:
            yield self.state
        finally:
            self.state.optimizer.state.clear()

    def lr(self, step: int) -> float:
        """The learning rate of update number `step`, from 0."""
        config = self.setup.config
        # A trunk is asked only for steps before every branch, where any length gives the same factor.
        length = self.length if self.length is not None else 2**62
        return config.optim.lr * config.schedule.lr_factor(step, length)

    def validates(self, step: int) -> bool:
        """Whether the validation loss is measured after this many steps."""
        evaluation = self.setup.config.eval
        return step == self.length or is_log_spaced(step, evaluation.first_step, evaluation.points_per_doubling)

    def logs(self, step: int) -> bool:
        """Whether a row of metrics is written after this many steps, whatever is validated."""
        return step % self.setup.config.eval.log_every_steps == 0

    def phase(self, step: int) -> str:
        """The phase of the schedule of the update that brought the curve to `step`: stable or decay."""
        if self.length is None or step <= self.setup.config.schedule.branch_step(self.length):
            return "stable"
        return "decay"


def is_log_spaced(step: int, first: int, per_doubling: int) -> bool:
    """Whether `step` is a rounded `first`·2^(k/per_doubling): a grid that no budget changes."""
    if step < first:
        return False
    k = round(per_doubling * math.log2(step / first))
    return any(step == round(first * 2 ** (near / per_doubling)) for near in (k - 1, k, k + 1))
