"""What all trials of a family have in common: model, data, options.

Shapes: B sequences, T tokens of a sequence; N windows of T+1 tokens.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import InitVar, dataclass, field
from typing import Any

import numpy as np
import torch

from models.gpt import GPT
from sweep.config.schema import RunOptions
from sweep.data.tokens import Batches, Tokens, windows
from sweep.plan.packing import check_micro_batch
from sweep.plan.trial import Trial, TrialConfig


@dataclass
class Setup:
    """A family's model, data and options, on one device."""

    config: TrialConfig  # of any trial of the family: its `steps` is not used here
    flops_per_token: float
    tokens: Tokens
    options: RunOptions
    device: str
    backend: str
    execution_class: str
    flops_ceiling: float | None = None  # FLOP/s of the device's fastest matrix product, where it was measured
    shared_model: InitVar[GPT | None] = None  # where several setups take turns with one model
    model: GPT = field(init=False)
    batches: Batches = field(init=False)
    validation_NT: np.ndarray = field(init=False)
    loss: Callable[..., torch.Tensor] = field(init=False)
    micro_batch: int = field(init=False)

    @classmethod
    def of(
        cls,
        trial: Trial,
        tokens: Tokens,
        options: RunOptions,
        device: str,
        backend: str,
        execution_class: str,
        flops_ceiling: float | None = None,
        shared_model: GPT | None = None,
    ) -> "Setup":
        """The setup of the family that a trial belongs to."""
        flops_per_token = float(trial.flops_per_token.exact)
        return cls(
            trial.config,
            flops_per_token,
            tokens,
            options,
            device,
            backend,
            execution_class,
            flops_ceiling,
            shared_model,
        )

    def __post_init__(self, shared_model: GPT | None) -> None:
        config, model = self.config, self.config.model
        check_micro_batch(self.options, config.batch_sequences)
        self.micro_batch = self.options.micro_batch_sequences or config.batch_sequences
        self.model = shared_model or GPT(model, backend=self.backend).to(self.device)
        compiled = self.options.compile and shared_model is None
        self.loss = torch.compile(self.model.loss, dynamic=False, fullgraph=True) if compiled else self.model.loss
        unique = config.data.unique_sequences
        self.batches = Batches(self.tokens.train, model.seq_len, config.batch_sequences, unique, config.seed)
        self.validation_NT = windows(self.tokens.validation, model.seq_len)[: config.eval.sequences]

    def mfu(self, tokens_per_second: float) -> float | None:
        """Model FLOPs utilisation: exact training FLOP/s over the device's measured ceiling."""
        if self.flops_ceiling is None:
            return None
        return round(tokens_per_second * self.flops_per_token / self.flops_ceiling, 4)

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision that matrix products run in."""
        if self.config.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device, dtype=torch.bfloat16)

    def loss_of(self, inputs_BT: np.ndarray, targets_BT: np.ndarray) -> torch.Tensor:
        """Mean nats per token of one micro-batch, a scalar on the device."""
        inputs = torch.from_numpy(inputs_BT).to(self.device, non_blocking=True)
        targets = torch.from_numpy(targets_BT).to(self.device, non_blocking=True)
        with self.autocast():
            return self.loss(inputs, targets, self.documents(inputs))

    def documents(self, tokens: torch.Tensor) -> torch.Tensor | None:
        """The document of each position, as `documents_from`; None where attention crosses documents."""
        return documents_from(tokens, self.tokens.eot_id) if self.config.model.within_documents else None


def documents_from(tokens: torch.Tensor, eot_id: int | None) -> torch.Tensor:
    """How many documents ended before each position: (…, T), int64. An end token is the last of its document."""
    if eot_id is None:
        return torch.zeros_like(tokens, dtype=torch.int64)
    ends = (tokens == eot_id).long()
    return ends.cumsum(-1) - ends
