"""The rows that a run writes in `metrics.jsonl` and `samples.jsonl`, and what to compare their losses with."""

from dataclasses import dataclass, field


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


@dataclass(frozen=True)
class Scale:
    """What losses are compared with, as `meta.json` of the tokens says: None or empty where that is unknown."""

    bytes_per_token: float | None = None
    reference_lines: dict[str, float] = field(default_factory=dict)  # nats per token, by name
