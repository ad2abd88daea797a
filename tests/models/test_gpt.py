"""What the model computes: causal, deterministic from its seed, the same under every way of running it."""

import math

import pytest
import torch

from models.config import ModelConfig
from models.gpt import GPT, parameter_groups, rotate
from tests.helpers.small_models import VARIANTS, alive, batch, config

torch.set_num_threads(1)  # at these shapes two threads mostly wait for each other


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS)
def cfg(request) -> ModelConfig:
    return config(**request.param)


def test_a_later_token_changes_no_earlier_logits(cfg):
    model = alive(cfg)
    tokens_BT, _, documents_BT = batch(cfg)
    changed_BT = tokens_BT.clone()
    changed_BT[:, 10] = (changed_BT[:, 10] + 1) % cfg.vocab_size
    moved_BT = (model(tokens_BT, documents_BT) != model(changed_BT, documents_BT)).any(-1)
    assert not moved_BT[:, :10].any()
    assert moved_BT[:, 10].all()
    if documents_BT is not None:
        assert not moved_BT[:, documents_BT[0] != documents_BT[0, 10]].any()
    elif cfg.window == 0:
        assert moved_BT[:, 10:].all()


def test_backends_agree(cfg):
    batch_ = batch(cfg)
    losses = [alive(cfg, backend).loss(*batch_) for backend in ("sdpa", "reference")]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-5)


def test_positions_matter():
    """Without them attention is blind to order: the last logits would not change when earlier tokens trade places."""
    for positions in ("rope", "learned"):
        cfg = config(positions=positions, depth=1)
        tokens_BT, _, _ = batch(cfg)
        swapped_BT = tokens_BT.clone()
        swapped_BT[:, [3, 8]] = tokens_BT[:, [8, 3]]
        model = alive(cfg)
        assert (model(tokens_BT)[:, -1] - model(swapped_BT)[:, -1]).abs().max() > 1e-3


def test_rotary_scores_depend_on_distance_only():
    model = GPT(config())
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 1, 1, 8, generator=generator) for _ in range(2))
    cos, sin = model.rotary(24)
    rotated_q = rotate(q.expand(1, 24, 1, 8), cos, sin)[0, :, 0]
    rotated_k = rotate(k.expand(1, 24, 1, 8), cos, sin)[0, :, 0]
    scores = rotated_q @ rotated_k.T
    torch.testing.assert_close(scores[5:, 5:], scores[:-5, :-5], rtol=1e-4, atol=1e-5)
    assert (scores[0, 0] - scores[5, 0]).abs() > 1e-2


def test_weights_come_from_the_seed_alone(cfg):
    torch.manual_seed(1)
    first = GPT(cfg).init_weights(7)
    torch.manual_seed(2)
    second = GPT(cfg).init_weights(7)
    other = GPT(cfg).init_weights(8)
    for (name, a), b in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b), name
    assert not torch.equal(first.embedding.weight, other.embedding.weight)


def test_the_first_loss_is_near_uniform(cfg):
    loss = GPT(cfg).init_weights(0).loss(*batch(cfg))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(math.log(cfg.vocab_size), abs=0.05 if cfg.tied else 1e-6)


def test_every_parameter_learns_within_three_steps(cfg):
    model = GPT(cfg).init_weights(0)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.0), lr=1e-3)
    for _ in range(3):  # the zero head wakes first, then what writes to the stream, then the rest
        optimizer.zero_grad()
        model.loss(*batch(cfg)).backward()
        optimizer.step()
    assert [name for name, p in model.named_parameters() if torch.equal(p, start[name])] == []


@pytest.mark.slow
def test_compiles_whole(cfg):
    """One graph, no breaks: dynamo's own eager backend traces without a compiler."""
    model = alive(cfg)
    compiled = torch.compile(model.loss, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*batch(cfg)), model.loss(*batch(cfg)))


def test_bf16_stays_close_and_its_loss_is_fp32(cfg):
    model = alive(cfg)
    exact = model.loss(*batch(cfg))
    with torch.autocast("cpu", torch.bfloat16):
        low = model.loss(*batch(cfg))
    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(exact.item(), rel=0.01)
    assert low.item() != exact.item()


def test_documents_go_with_the_config_that_asks_for_them():
    inputs, targets, _ = batch(config())
    with pytest.raises(ValueError, match="documents_BT"):
        GPT(config()).loss(inputs, targets, torch.zeros_like(inputs))
    with pytest.raises(ValueError, match="documents_BT"):
        GPT(config(within_documents=True)).loss(inputs, targets)


def test_packed_documents_equal_documents_alone():
    cfg = config(within_documents=True)
    model = alive(cfg)
    tokens_BT, _, _ = batch(cfg, sequences=1)
    documents_BT = (torch.arange(cfg.seq_len) >= 9)[None].long()
    packed = model(tokens_BT, documents_BT)
    # Rotary positions are relative, so that where a document starts does not matter.
    alone = torch.cat((model(tokens_BT[:, :9]), model(tokens_BT[:, 9:])), dim=1)
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-4)


def test_parameter_groups_hold_everything_once(cfg):
    model = GPT(cfg)
    decayed, rest = parameter_groups(model, 0.1)
    assert sorted(map(id, (*decayed["params"], *rest["params"]))) == sorted(map(id, model.parameters()))
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)
    undecayed = {name for name, p in model.named_parameters() if any(p is q for q in rest["params"])}
    assert "embedding.weight" in undecayed
    assert all("embedding" in name or "norm" in name or "positions" in name or "bias" in name for name in undecayed)


def test_generate_draws_from_its_generator_alone_and_past_the_context(cfg):
    model = alive(cfg)
    prompt_T = torch.tensor([1, 2, 3])

    def draw(seed: int, **options) -> list[int]:
        return model.generate(prompt_T, 2 * cfg.seq_len, torch.Generator().manual_seed(seed), **options).tolist()

    first = draw(5)
    torch.manual_seed(99)
    assert draw(5) == first != draw(6)
    assert len(first) == 2 * cfg.seq_len
    greedy = draw(5, temperature=0.0)
    assert greedy == draw(6, temperature=0.0)
    assert greedy[0] == model(prompt_T[None])[0, -1].argmax().item()


# Losses of steps 1, 2 and 6 of AdamW. They change when the architecture, the initialisation or the order of its
# draws does: then old trials are other trials, so raise SCHEMA_VERSION in sweep/runs/rundir.py and put the new
# numbers here.
GOLDEN = {
    "gpt": [4.110874, 4.053070, 3.724119],
    "gpt2": [4.087139, 3.906839, 3.495874],
}


@pytest.mark.parametrize("variant", GOLDEN)
def test_golden_steps(variant):
    cfg = config(**VARIANTS[variant])
    model = GPT(cfg).init_weights(0)
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.1), lr=3e-3, betas=(0.9, 0.95))
    losses = []
    for _ in range(6):
        loss = model.loss(*batch(cfg))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert [losses[i] for i in (0, 1, 5)] == pytest.approx(GOLDEN[variant], abs=2e-4)


def test_an_unknown_backend_is_refused():
    with pytest.raises(ValueError, match=r"run\.backend=flash: must be one of sdpa, cudnn, triton, reference"):
        GPT(config(), backend="flash")
