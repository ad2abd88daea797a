"""The rows that a run writes while it trains: `metrics.jsonl` and `samples.jsonl`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class MetricsRow:
    """One logged step. A number that is missing or not finite is None. Fields with a default may be missing."""

    step: int
    tokens: int  # seen up to this step, this step included
    flops: float  # spent on them, forward and backward
    phase: str  # stable or decay
    lr: float | None = None
    train_loss_nats: float | None = None  # per token, the mean of the steps since the row before
    val_loss_nats: float | None = None  # per token; None where the step had no validation
    grad_norm: float | None = None  # before clipping
    seconds: float | None = None  # of training, validation included
    tokens_per_second: float | None = None
    mfu: float | None = None  # share of the fastest matrix product measured on the device


@dataclass(frozen=True)
class Sample:
    """Text that the model wrote after a prompt."""

    step: int
    tokens: int
    prompt: str
    text: str
