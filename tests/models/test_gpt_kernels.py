"""Training steps of the real model through our kernels, in Triton's interpreter, beside PyTorch's own operations."""

import pytest
import torch

from kernels import cross_entropy
from models.gpt import GPT
from tests.helpers.small_models import VARIANTS, alive, batch, config

pytest.importorskip("triton", reason="Triton exists on Linux only")
pytestmark = [pytest.mark.triton, pytest.mark.slow]

STEPS = 2


@pytest.fixture(params=VARIANTS)
def variant(request) -> str:
    return request.param


def loss_and_gradients(model: GPT, batch_) -> list[torch.Tensor]:
    model.zero_grad()
    loss = model.loss(*batch_)
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters())]


def test_steps_agree_with_sdpa_as_far_as_sdpa_is_exact(variant):
    """From the same state, loss and every gradient are as near to fp64's as sdpa's are, but for rounding."""
    cfg = config(**VARIANTS[variant])
    batch_ = batch(cfg)
    exact, sdpa, ours = alive(cfg, "reference").double(), alive(cfg, "sdpa"), alive(cfg, "triton")
    optimizer = torch.optim.AdamW(sdpa.parameters(), lr=1e-2)
    names = ["loss", *(name for name, _ in sdpa.named_parameters())]
    for step in range(STEPS):
        exact.load_state_dict(sdpa.state_dict())
        ours.load_state_dict(sdpa.state_dict())
        e_all, s_all, o_all = (loss_and_gradients(model, batch_) for model in (exact, sdpa, ours))
        for name, e, s, o in zip(names, e_all, s_all, o_all, strict=True):
            ulps = 32 * torch.finfo(torch.float32).eps * max(0.1, e.abs().max())
            assert (o - e).abs().max() <= 2 * (s - e).abs().max() + ulps, (step, name)
        optimizer.step()


def test_a_large_vocabulary_takes_the_fused_form_with_the_same_step(monkeypatch):
    cfg = config(depth=1)
    whole = loss_and_gradients(alive(cfg, "triton"), batch(cfg))
    monkeypatch.setattr(cross_entropy, "FUSED_FROM_VOCABULARY", cfg.vocab_size)
    monkeypatch.setattr(cross_entropy, "CHUNK_LOGITS", 20 * cfg.vocab_size)
    fused = loss_and_gradients(alive(cfg, "triton"), batch(cfg))
    for a, b in zip(fused, whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_heads_wider_than_the_kernels_are_refused():
    with pytest.raises(ValueError, match=r"run\.backend=triton: model\.head_dim=130 is not supported, 1 to 128 are"):
        GPT(config(head_dim=130), backend="triton")
