"""What a plan says of each of its trials: its ids, and the facts that are known before training.

This is what tables, `status` and `cancel` need of a plan. `sweep.plan.trial` makes it, and reads the whole trial.
"""

from dataclasses import dataclass
from pathlib import Path

from sweep.common import artefacts


@dataclass(frozen=True)
class Facts:
    """The numbers that follow from a trial's config. They are columns of the table, and `where:` conditions may name
    them. Conventions for N and for FLOPs are those of `models.count`."""

    trial_id: str
    family_id: str
    params_non_embedding: int
    params_total: int
    tokens: int
    flops: float  # of training: forward and backward, attention and logits included
    flops_per_token: float
    flops_6n: float
    flops_6n_non_embedding: float
    tokens_per_param: float
    unique_tokens: int
    epochs: float
    lr: float
    lr_multiplier: float
    depth: int
    width: int
    heads: int
    seq_len: int  # tokens
    vocab_size: int
    batch_tokens: int
    steps: int
    schedule: str
    precision: str
    seed: int
    data_fingerprint: str


@dataclass(frozen=True)
class PlanLine:
    """What is read of a line of `plan.jsonl`, the content of a `trial.json`."""

    facts: Facts


def read_trial_file(path: Path) -> Facts:
    """The facts in a `trial.json`. UserError where it is missing or damaged."""
    return artefacts.read(PlanLine, path, "restore or remove it").facts
