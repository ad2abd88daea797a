"""The training loop: one step and its order of events, the same for a trunk, a cooldown and a lone trial.

A curve is a pure function of (trial, step): batch i depends on (seed, i) alone, validation points on the step alone,
and nothing draws from a global random state. So a run that was killed and resumed, or that shared its trunk with
other budgets, gives the same numbers as one that ran alone.

Shapes: B sequences, T tokens of a sequence.
"""

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import InitVar, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from models.gpt import GPT
from sweep.config import RunOptions
from sweep.data.tokens import Batches, Tokens, windows
from sweep.environment import code_hash
from sweep.execution import check_micro_batch
from sweep.files import append_json
from sweep.training.optim import adamw
from sweep.trial import Trial, TrialConfig

PROMPT_TOKENS = 16
READ_LATE = ("cuda",)  # devices that work on while the host reads what they did a step before


class Diverged(Exception):
    """The loss of a curve is not finite any more."""

    def __init__(self, curve: "Curve"):
        super().__init__(f"loss not finite at step {curve.state.step}")
        self.curve = curve


class Stopped(Exception):
    """Asked to stop; the state is saved."""


@dataclass
class Setup:
    """What stays the same through all trials of a family: model, data, options."""

    config: TrialConfig  # its `steps` is of any one trial, and not used here
    flops_per_token: float
    tokens: Tokens
    options: RunOptions
    device: str
    backend: str
    execution_class: str
    flops_ceiling: float | None = None  # FLOPs per second of the device's best matrix product, where it was measured
    shared_model: InitVar[GPT | None] = None  # one that several setups take turns with; otherwise each makes its own
    model: GPT = field(init=False)
    batches: Batches = field(init=False)
    validation_NT: np.ndarray = field(init=False)
    loss: Callable[..., torch.Tensor] = field(init=False)
    micro_batch: int = field(init=False)

    @classmethod
    def of(cls, trial: Trial, tokens: Tokens, options: RunOptions, device: str, backend: str, **more: Any) -> "Setup":
        """Of the family that a trial belongs to; `more` are the other fields."""
        flops_per_token = float(trial.flops_per_token.exact)
        return cls(trial.config, flops_per_token, tokens, options, device, backend, **more)

    def __post_init__(self, shared_model: GPT | None) -> None:
        config, model = self.config, self.config.model
        check_micro_batch(self.options, config.batch_sequences)
        self.micro_batch = self.options.micro_batch_sequences or config.batch_sequences
        self.model = shared_model or GPT(model, backend=self.backend).to(self.device)
        compiled = self.options.compile and shared_model is None
        self.loss = torch.compile(self.model.loss, dynamic=False) if compiled else self.model.loss
        unique = config.data.unique_sequences
        self.batches = Batches(self.tokens.train, model.seq_len, config.batch_sequences, unique, config.seed)
        self.validation_NT = windows(self.tokens.validation, model.seq_len)[: config.eval.sequences]

    def mfu(self, tokens_per_second: float) -> float | None:
        """Model FLOPs utilisation: exact training FLOPs per second over the device's measured ceiling."""
        if self.flops_ceiling is None:
            return None
        return round(tokens_per_second * self.flops_per_token / self.flops_ceiling, 4)

    def autocast(self) -> AbstractContextManager[Any]:
        if self.config.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device, dtype=torch.bfloat16)

    def loss_of(self, inputs_BT: np.ndarray, targets_BT: np.ndarray) -> torch.Tensor:
        """Mean nats per token of one chunk of sequences, on the device."""
        inputs = torch.from_numpy(inputs_BT).to(self.device, non_blocking=True)
        targets = torch.from_numpy(targets_BT).to(self.device, non_blocking=True)
        with self.autocast():
            return self.loss(inputs, targets, self.documents(inputs))

    def documents(self, tokens: torch.Tensor) -> torch.Tensor | None:
        """As `documents_from`; None where attention crosses documents."""
        return documents_from(tokens, self.tokens.eot_id) if self.config.model.within_documents else None


@dataclass
class State:
    """All that changes while training, and all that a checkpoint holds."""

    model: GPT
    optimizer: torch.optim.AdamW
    step: int
    loss_sum: torch.Tensor  # of the steps since the last row
    loss_count: int
    best_loss_nats: float
    best_tokens: int
    seconds: float  # from the first step on, evaluation included
    row_seconds: float  # of training since the last row
    classes: list[str]  # execution classes that contributed,
    codes: list[str]  # and versions of the training code
    shared_steps: int = 0  # taken over from the trunk,
    shared_seconds: float = 0.0  # and what they took

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
    row: "Row | None" = None  # of the step before, not written yet

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


@dataclass
class Row:
    """A row of metrics, its numbers on their way from the device."""

    step: int
    lr: float
    steps: int  # that its loss is the mean of
    numbers: torch.Tensor  # mean loss and gradient norm, on the host
    arrived: torch.cuda.Event | None

    @classmethod
    def of(cls, state: State, lr: float, grad_norm: torch.Tensor) -> "Row":
        """Of the steps since the last row."""
        numbers, arrived = torch.stack((state.loss_sum / state.loss_count, grad_norm)), None
        if numbers.is_cuda:
            host = torch.empty(2, pin_memory=True)
            numbers, arrived = host.copy_(numbers, non_blocking=True), torch.cuda.Event()
            arrived.record()
        row = cls(state.step, lr, state.loss_count, numbers, arrived)
        state.loss_sum.zero_()
        state.loss_count = 0
        return row

    def read(self) -> list[float]:
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.numbers.tolist()


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


def arrive(curve: Curve, clock: "Clock") -> None:
    """Bring what is known of a curve up to its step, for who looks at it from outside."""
    _write_row(curve, clock)
    clock.charge_training(curve.state)


def stop(curve: Curve, clock: "Clock") -> NoReturn:
    """Save a curve where it is, and raise Stopped."""
    arrive(curve, clock)
    curve.save(curve)
    raise Stopped


def after_update(curve: Curve, clock: "Clock", lr: float, grad_norm: torch.Tensor) -> None:
    """What follows an update when its step or its time has come: a row, a sample, a checkpoint, news."""
    _write_row(curve, clock)
    state, evaluation = curve.state, curve.setup.config.eval
    last, validate = state.step == curve.length, curve.validates(state.step)
    if validate or curve.logs(state.step):
        curve.row = Row.of(state, lr, grad_norm)
        soon = curve.validates(state.step + 1) or curve.logs(state.step + 1)  # whose time could not be told from ours
        if validate or soon or curve.setup.device not in READ_LATE:
            _write_row(curve, clock, validate)
    if evaluation.sample_tokens and (last or _is_power_of_four(state.step)):
        arrive(curve, clock)
        _write_sample(curve)
        clock.charge(state)
    if time.monotonic() - curve.saved_at >= curve.setup.options.checkpoint_seconds:
        arrive(curve, clock)
        curve.save(curve)
        clock.charge(state)
        curve.saved_at = time.monotonic()
    if state.step % 16 == 0:
        curve.on_progress({"step": state.step, "tokens": state.step * curve.setup.config.batch_tokens})


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


@torch.no_grad()
def evaluate(setup: Setup, windows_NT: np.ndarray) -> float:
    """Mean nats per token over windows of T+1 tokens, N of them."""
    setup.model.eval()
    total = torch.zeros((), dtype=torch.float64, device=setup.device)  # read once: each reading waits for the device
    for start in range(0, len(windows_NT), setup.micro_batch):
        chunk = windows_NT[start : start + setup.micro_batch].astype(np.int64)
        total += len(chunk) * setup.loss_of(chunk[:, :-1], chunk[:, 1:]).double()
    setup.model.train()
    return total.item() / len(windows_NT)


def documents_from(tokens: torch.Tensor, eot_id: int | None) -> torch.Tensor:
    """Documents that ended before each position (…, T), int64; an end token is its document's last."""
    if eot_id is None:
        return torch.zeros_like(tokens, dtype=torch.int64)
    ends = (tokens == eot_id).long()
    return ends.cumsum(-1) - ends


def train_loss(setup: Setup, steps: int) -> float:
    """Mean nats per token on the sequences that training saw first, as many as the validation set has."""
    count = min(setup.config.eval.sequences, steps * setup.config.batch_sequences)
    pairs = [setup.batches.batch(i) for i in range(-(-count // setup.config.batch_sequences))]
    inputs_NT = np.concatenate([inputs for inputs, _ in pairs])[:count]
    targets_NT = np.concatenate([targets for _, targets in pairs])[:count]
    return evaluate(setup, np.concatenate([inputs_NT, targets_NT[:, -1:]], axis=1))


def is_log_spaced(step: int, first: int, per_doubling: int) -> bool:
    """Whether `step` is a rounded `first`·2^(k/per_doubling): a grid that no budget changes."""
    if step < first:
        return False
    k = round(per_doubling * math.log2(step / first))
    return any(step == round(first * 2 ** (near / per_doubling)) for near in (k - 1, k, k + 1))


def _is_power_of_four(step: int) -> bool:
    return step >= 16 and step & (step - 1) == 0 and step.bit_length() % 2 == 1


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
    written = {
        "step": row.step,
        "tokens": tokens,
        "flops": tokens * setup.flops_per_token,
        "phase": curve.phase(row.step),
        "lr": row.lr,
        "train_loss_nats": finite(mean_loss),
        "grad_norm": finite(grad_norm),
        "val_loss_nats": finite(val_loss),
        "seconds": round(state.seconds, 4),
        "tokens_per_second": round(speed, 1),
        "mfu": setup.mfu(speed),
    }
    append_json(curve.metrics, written)
    curve.on_progress({"loss_nats": written["val_loss_nats"] or written["train_loss_nats"], **written})
    if not math.isfinite(mean_loss) or (val_loss is not None and not math.isfinite(val_loss)):
        state.step = row.step  # what was trained while the row was on its way does not count
        raise Diverged(curve)


def _write_sample(curve: Curve) -> None:
    setup, step = curve.setup, curve.state.step
    curve.fetch()
    prompt_T = torch.from_numpy(setup.validation_NT[0, :PROMPT_TOKENS].astype(np.int64)).to(setup.device)
    generator = torch.Generator(setup.device).manual_seed(setup.config.seed * 1_000_003 + step)
    setup.model.eval()
    with torch.no_grad(), setup.autocast():
        ids_T = setup.model.generate(prompt_T, setup.config.eval.sample_tokens, generator)
    setup.model.train()
    prompt, text = (
        setup.tokens.decode(prompt_T.tolist()),
        setup.tokens.decode(ids_T.tolist()),
    )
    append_json(
        curve.samples,
        {"step": step, "tokens": step * setup.config.batch_tokens, "prompt": prompt, "text": text},
    )


def finite(value: float | None) -> float | None:
    """JSON knows no NaN; a missing number is null, never 0."""
    return value if value is not None and math.isfinite(value) else None
