"""What models.count says of a config, against the model built from it: no number here is written by hand."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from models.config import ModelConfig
from models.count import (
    flops_per_token,
    largest_micro_batch,
    mean_visible_keys,
    memory_bytes,
    params_by_group,
    params_non_embedding,
    params_total,
)
from models.gpt import GPT
from tests.helpers.small_models import GPT2

torch.set_num_threads(1)  # at these shapes two threads mostly wait for each other

VARIANTS = {
    "gpt": {},
    "gpt2": GPT2,
    "gpt2 untied": {**GPT2, "tied": False},
    "layernorm without bias": {"norm": "layernorm"},
    "biased rmsnorm": {"bias": True},
    "swiglu": {"mlp": "swiglu", "mlp_width": 72},
    "grouped queries": {"kv_heads": 1},
    "wide heads": {"head_dim": 20},
    "no qk norm": {"qk_norm": False},
    "learned positions": {"positions": "learned"},
    "window": {"window": 5},
    "window too wide": {"window": 64},
    "documents": {"within_documents": True},
    "deep": {"depth": 7},
}


def config(**changes) -> ModelConfig:
    shape = {
        "vocab_size": 97, "seq_len": 32, "depth": 2, "width": 24, "heads": 3, "kv_heads": 3, "head_dim": 8,
        "mlp_width": 100,
    }  # fmt: skip
    return ModelConfig(**{**shape, **changes})


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS)
def cfg(request) -> ModelConfig:
    return config(**request.param)


def run_loss(model: GPT, sequences: int) -> torch.Tensor:
    tokens_BT = torch.arange(sequences * model.cfg.seq_len).view(sequences, -1) % model.cfg.vocab_size
    documents_BT = torch.zeros_like(tokens_BT) if model.cfg.within_documents else None
    return model.loss(tokens_BT, tokens_BT.flip(1), documents_BT)


def test_parameters_by_group(cfg):
    built = dict.fromkeys(params_by_group(cfg), 0)
    for name, parameter in GPT(cfg).named_parameters():
        group = next(part for part in name.split(".") if not part.isdigit() and part != "blocks")
        built[group.removeprefix("mlp_").removeprefix("attention_")] += parameter.numel()
    assert params_by_group(cfg) == built
    assert params_total(cfg) == sum(built.values())
    assert params_non_embedding(cfg) == built["attention"] + built["mlp"] + built["norm"]


def test_exact_flops_are_the_matrix_products_of_a_training_step(cfg):
    """The reference computes all T x T scores, of which a query sees only some: that is the only correction."""
    sequences = 2
    model = GPT(cfg, backend="reference")
    with FlopCounterMode(display=False) as counter:
        run_loss(model, sequences).backward()
    per_token = counter.get_total_flops() / (sequences * cfg.seq_len)
    hidden_keys = cfg.seq_len - mean_visible_keys(cfg)
    per_hidden_key = 2 * 2 * 3 * cfg.depth * cfg.heads * cfg.head_dim
    assert flops_per_token(cfg).exact == pytest.approx(per_token - per_hidden_key * hidden_keys, rel=1e-12)


def test_mean_visible_keys(cfg):
    tokens = torch.arange(cfg.seq_len)
    seen = (tokens + 1).clamp(max=cfg.window or cfg.seq_len)
    assert mean_visible_keys(cfg) == pytest.approx(seen.float().mean().item())


def test_six_n():
    flops = flops_per_token(config())
    assert flops.six_n == 6 * params_total(config())
    assert flops.six_n_non_embedding == 6 * params_non_embedding(config())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_activations_are_what_autograd_keeps(cfg, precision):
    sequences = 4
    model = GPT(cfg).init_weights(0)
    owned = {x.untyped_storage().data_ptr() for x in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            kept[storage.data_ptr()] = storage
        return tensor

    low = precision == "bf16"
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", enabled=low):
        loss = run_loss(model, sequences)
    measured = sum(storage.nbytes() for storage in kept.values())
    log_probabilities = 4 * sequences * cfg.seq_len * cfg.vocab_size
    estimate = memory_bytes(cfg, sequences, precision)
    counted = estimate["activations"] + estimate["cast_weights"] + log_probabilities
    assert loss.isfinite()
    assert counted == pytest.approx(measured, rel=0.005)


def test_memory_of_state_and_total(cfg):
    model = GPT(cfg).init_weights(0)
    optimizer = torch.optim.AdamW(model.parameters())
    run_loss(model, 2).backward()
    optimizer.step()
    estimate = memory_bytes(cfg, 2, "fp32")
    assert estimate["parameters"] == sum(p.nbytes for p in model.parameters())
    assert estimate["gradients"] == sum(p.grad.nbytes for p in model.parameters())
    moments = [m for state in optimizer.state.values() for m in (state["exp_avg"], state["exp_avg_sq"])]
    assert estimate["optimizer"] == sum(m.nbytes for m in moments)
    assert estimate["total"] == sum(size for group, size in estimate.items() if group != "total")


def test_memory_refuses_an_unknown_precision():
    with pytest.raises(ValueError, match="precision=fp8: must be one of fp32, bf16"):
        memory_bytes(config(), 1, "fp8")


def test_the_largest_micro_batch_that_fits_divides_the_batch():
    cfg = config()
    needed = {size: memory_bytes(cfg, size, "bf16")["total"] for size in (1, 2, 3, 4, 6, 12)}
    for size, total in needed.items():
        assert largest_micro_batch(cfg, 12, "bf16", total) == size
        assert largest_micro_batch(cfg, 12, "bf16", total + 1) == size
    assert largest_micro_batch(cfg, 12, "bf16", float("inf")) == 12
    assert largest_micro_batch(cfg, 12, "bf16", 0) == 1
    assert largest_micro_batch(cfg, 7, "bf16", needed[6]) == 1
