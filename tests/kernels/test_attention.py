"""Every backend against the specification in fp64, with a tolerance that the specification's own rounding sets."""

import itertools

import pytest
import torch

from kernels import reference
from kernels.attention import attention, resolve_backend

torch.set_num_threads(1)  # at these shapes two threads mostly wait for each other

ON_CPU = ["sdpa", "reference"]  # the others: test_kernels_triton_attention.py, and on a GPU benchmarks/attention.py
# (query heads, key/value heads), tokens, window, documents: ragged lengths, a window of one, one wider than the text
HEADS = [(1, 1), (4, 2), (6, 1)]
LENGTHS = [1, 7, 64, 129]
WINDOWS = [0, 1, 5, 1000]


def inputs(tokens: int, heads: int, kv_heads: int, seed: int = 0, head_dim: int = 16) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(2, tokens, n, head_dim) for n in (heads, kv_heads, kv_heads)]
    return [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]


def documents(tokens: int) -> torch.Tensor:
    """Boundaries at different places in the two sequences."""
    t = torch.arange(tokens)
    return torch.stack((t // 5, (t + 2) // 9))


def values_and_gradients(run, options, q, k, v) -> list[torch.Tensor]:
    out = run(q, k, v, **options)
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    return [out.detach(), *torch.autograd.grad((out * weight).sum(), (q, k, v))]


@pytest.mark.parametrize("with_documents", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
def test_sdpa_is_as_exact_as_the_specification(with_documents, heads, kv_heads):
    for tokens, window in itertools.product(LENGTHS, WINDOWS):
        qkv = inputs(tokens, heads, kv_heads, seed=tokens)
        ids = documents(tokens) if with_documents else None
        mask = {"window": window, "documents_BT": ids}
        exact = values_and_gradients(reference.attention, mask, *(x.detach().double().requires_grad_() for x in qkv))
        spec = values_and_gradients(reference.attention, mask, *qkv)
        fast = values_and_gradients(attention, {**mask, "backend": "sdpa"}, *qkv)
        for name, f, s, e in zip(("out", "dq", "dk", "dv"), fast, spec, exact, strict=True):
            # What is summed is of order one, even where the sum cancels to zero.
            ulps = 32 * torch.finfo(torch.float32).eps * max(1.0, e.abs().max())
            tolerance = 2 * (s - e).abs().max() + ulps
            assert (f - e).abs().max() <= tolerance, (name, tokens, window)


@pytest.mark.parametrize("backend", ON_CPU)
def test_specification_against_a_loop_over_queries(backend):
    """The plainest statement there is: for each query, list the keys it may see, and average their values."""
    window, heads, kv_heads, tokens = 3, 4, 2, 11
    q, k, v = (x.detach() for x in inputs(tokens, heads, kv_heads))
    ids = documents(tokens)
    out = attention(q, k, v, window=window, documents_BT=ids, backend=backend)
    for b, h, t in itertools.product(range(2), range(heads), range(tokens)):
        keys = [s for s in range(tokens) if s <= t and t - s < window and ids[b, s] == ids[b, t]]
        group = h // (heads // kv_heads)
        weights = (k[b, keys, group] @ q[b, t, h] / 16**0.5).softmax(0)
        torch.testing.assert_close(out[b, t, h], weights @ v[b, keys, group], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", ON_CPU)
@pytest.mark.parametrize("window", [0, 4])
def test_no_query_sees_a_later_token_or_another_document(backend, window):
    tokens, changed = 24, 10
    q, k, v = (x.detach() for x in inputs(tokens, 2, 2))
    ids = documents(tokens)
    before = attention(q, k, v, window=window, documents_BT=ids, backend=backend)
    for x in (k, v):
        x[:, changed] += 100.0
    after = attention(q, k, v, window=window, documents_BT=ids, backend=backend)
    moved = (before != after).flatten(2).any(-1)
    t = torch.arange(tokens)
    may_move = (t >= changed) & (ids == ids[:, changed : changed + 1])
    if window:
        may_move &= t < changed + window
    assert torch.equal(moved, may_move)


def test_a_backend_is_named_and_an_unknown_one_refused():
    assert resolve_backend("auto", "cpu") == "sdpa"
    assert resolve_backend("reference", "cpu") == "reference"
    with pytest.raises(ValueError, match=r"run\.backend=fast.*auto, sdpa, cudnn, triton, reference"):
        resolve_backend("fast", "cpu")
    with pytest.raises(ValueError, match=r"run\.backend=fast"):
        attention(*inputs(4, 1, 1), backend="fast")


def test_cudnn_off_cuda_or_in_fp32_is_refused():
    with pytest.raises(ValueError, match=r"run\.backend=cudnn: needs a CUDA device.*use run\.backend=sdpa"):
        resolve_backend("cudnn", "cpu")
    with pytest.raises(ValueError, match=r"q is torch\.float32 on cpu; float16 and bfloat16 on cuda are supported"):
        attention(*inputs(4, 1, 1), backend="cudnn")


@pytest.mark.parametrize("backend", ["sdpa", "triton"])
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"q": torch.zeros(2, 8, 4)}, r"q has shape \(2, 8, 4\); it must be \(B, T, H, D\)"),
        ({"k": torch.zeros(2, 7, 2, 16)}, r"k has shape \(2, 7, 2, 16\); .*must both be \(2, 8, K, 16\)"),
        ({"v": torch.zeros(2, 8, 4, 16)}, r"v has shape \(2, 8, 4, 16\)"),
        ({"v": torch.zeros(2, 8, 2, 8)}, r"v has shape \(2, 8, 2, 8\)"),
        ({"k": torch.zeros(2, 8, 3, 16), "v": torch.zeros(2, 8, 3, 16)}, r"k has 3 heads, which do not divide q's 4"),
        ({"v": torch.zeros(2, 8, 2, 16).half()}, r"v is torch\.float16 on cpu, q is torch\.float32 on cpu"),
        ({"k": torch.zeros(2, 8, 2, 16, device="meta")}, r"k is torch\.float32 on meta, q is torch\.float32 on cpu"),
        ({"k": torch.zeros(2, 8, 0, 16), "v": torch.zeros(2, 8, 0, 16)}, r"k has 0 heads, which do not divide q's 4"),
        ({"window": -1}, r"window=-1; use 0"),
        ({"window": 1.5}, r"window=1\.5; use 0 for no window, or a whole number"),
        ({"documents_BT": torch.zeros(2, 7).long()}, r"documents is torch\.int64 of shape \(2, 7\) .*shape \(2, 8\)"),
        ({"documents_BT": torch.zeros(2, 8)}, r"documents is torch\.float32 .*must hold int8 to int64 or uint8"),
        ({"documents_BT": torch.zeros(2, 8).bool()}, r"documents is torch\.bool .*must hold int8 to int64 or uint8"),
        ({"documents_BT": torch.zeros(2, 8).to(torch.uint16)}, r"documents is torch\.uint16 .*must hold int8 to int64"),
    ],
)
def test_arguments_that_do_not_fit_are_named(backend, changes, said):
    given = {"q": torch.zeros(2, 8, 4, 16), "k": torch.zeros(2, 8, 2, 16), "v": torch.zeros(2, 8, 2, 16), **changes}
    qkv = [given.pop(name) for name in "qkv"]
    with pytest.raises(ValueError, match="attention: " + said):
        attention(*qkv, **given, backend=backend)
