"""The optimizer of a trial."""

import torch

from models.gpt import GPT, parameter_groups
from sweep.plan.trial import Optim


def adamw(model: GPT, config: Optim) -> torch.optim.AdamW:
    """Fused AdamW; weight decay on matrices only, none on norms, biases and embeddings."""
    return torch.optim.AdamW(
        parameter_groups(model, config.weight_decay),
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )
