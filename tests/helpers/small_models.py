"""Small models of every variant, and batches for them."""

import torch

from models.config import ModelConfig
from models.gpt import GPT

torch.set_num_threads(1)  # at these shapes two threads mostly wait for each other

GPT2 = {
    "mlp": "gelu", "norm": "layernorm", "positions": "learned", "qk_norm": False, "tied": True, "bias": True,
}  # fmt: skip
VARIANTS = {
    "gpt": {},
    "gpt2": GPT2,
    "swiglu": {"mlp": "swiglu"},
    "grouped queries": {"heads": 4, "kv_heads": 2},
    "window": {"window": 5},
    "documents": {"within_documents": True},
}


def config(**changes) -> ModelConfig:
    shape = {
        "vocab_size": 61, "seq_len": 24, "depth": 2, "width": 32, "heads": 2, "kv_heads": 2, "head_dim": 8,
        "mlp_width": 64,
    }  # fmt: skip
    return ModelConfig(**{**shape, **changes})


def alive(cfg: ModelConfig, backend: str = "sdpa") -> GPT:
    """A model none of whose parts is silent: what starts at zero is drawn too."""
    model = GPT(cfg, backend).init_weights(0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5
    return model


def batch(cfg: ModelConfig, sequences: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(cfg.vocab_size, (sequences, cfg.seq_len + 1), generator=generator)
    documents = (torch.arange(cfg.seq_len) // 7).expand(sequences, -1) if cfg.within_documents else None
    return tokens[:, :-1], tokens[:, 1:], documents
