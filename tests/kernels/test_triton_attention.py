"""The Triton attention in Triton's interpreter, on the CPU: its arithmetic, masks and offsets, not its speed.

fp32 and fp16; the interpreter computes bf16 wrongly, so bf16 is compiled here (test_kernels_configurations.py) and its
numbers are checked on a GPU by `python -m benchmarks.attention`, as every type's are.
"""

import pytest
import torch

from kernels import reference
from kernels.attention import attention, resolve_backend
from kernels.configurations import PARTS, Configuration, block_d, source_hash

pytest.importorskip("triton", reason="Triton exists on Linux only")
from kernels import attention_op
from models.config import ModelConfig
from models.gpt import GPT

pytestmark = pytest.mark.triton

torch.set_num_threads(1)  # at these shapes two threads mostly wait for each other

# tokens, query heads, key/value heads, head dimension, window, mean document length, (queries, keys) of a tile
CASES = {
    "one token": (1, 1, 1, 16, 0, 0, (64, 64)),
    "ragged": (129, 2, 2, 16, 0, 0, (32, 64)),
    "whole tiles": (128, 1, 1, 32, 0, 0, (32, 64)),
    "tall tiles": (200, 1, 1, 64, 0, 0, (64, 64)),
    "grouped": (70, 6, 2, 32, 0, 0, (64, 64)),
    "multi-query": (33, 4, 1, 8, 0, 0, (16, 32)),
    "padded head": (77, 2, 2, 20, 0, 0, (64, 64)),
    "odd head": (40, 1, 1, 7, 0, 0, (64, 64)),
    "widest heads": (130, 1, 1, 128, 0, 0, (64, 64)),
    "head of 96": (65, 1, 1, 96, 9, 0, (64, 64)),
    "window of one": (50, 2, 1, 16, 1, 0, (16, 32)),
    "window in a tile": (100, 1, 1, 16, 5, 0, (32, 64)),
    "window of tiles": (256, 1, 1, 16, 130, 0, (32, 64)),
    "window beyond": (60, 1, 1, 16, 1000, 0, (32, 64)),
    "documents": (200, 1, 1, 16, 0, 45, (32, 64)),
    "short documents": (90, 2, 1, 16, 0, 4, (32, 64)),
    "documents and window": (150, 2, 1, 32, 21, 40, (16, 32)),
}


@pytest.fixture
def tiles(monkeypatch):
    """Set the tile; forward and dq also take more queries than keys."""

    def use(block_q: int, block_k: int) -> None:
        def configuration(architecture, kernel, element_bytes, head_dim):
            assert architecture == "interpreter"
            queries, keys = (block_q, block_k) if kernel == "backward_kv" else (block_k, block_q)
            return Configuration(queries, keys, 1, 1)

        monkeypatch.setattr(attention_op, "configuration", configuration)

    return use


@pytest.fixture
def poisoned():
    """Every new tensor starts as NaN: what a kernel does not write shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.ones(1).new_empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def inputs(tokens, heads, kv_heads, head_dim, dtype=torch.float32, seed=0) -> list[torch.Tensor]:
    """Two sequences of q, k, v, and a gradient of the output."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(2, tokens, n, head_dim) for n in (heads, kv_heads, kv_heads, heads)]
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def documents(tokens: int, mean_length: int) -> torch.Tensor | None:
    """Boundaries at different places in the two sequences."""
    if not mean_length:
        return None
    t = torch.arange(tokens)
    return torch.stack((t // mean_length, (t + 3) // (mean_length + 2)))


def values_and_gradients(run, mask, q, k, v, dout) -> list[torch.Tensor]:
    q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
    out = run(q, k, v, **mask)
    return [out.detach(), *torch.autograd.grad(out, (q, k, v), dout)]


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_numbers_are_as_exact_as_the_specification(case, dtype, tiles):
    """Within twice the specification's own rounding error in this type, and a few units in the last place: of the
    result in its type, and in fp32 of what was summed, of order one even where the sum cancels to zero."""
    tokens, heads, kv_heads, head_dim, window, mean_length, tile = case
    tiles(*tile)
    mask = {"window": window, "documents_BT": documents(tokens, mean_length)}
    given = inputs(tokens, heads, kv_heads, head_dim, dtype)
    exact = values_and_gradients(reference.attention, mask, *(x.double() for x in given))
    spec = values_and_gradients(reference.attention, mask, *given)
    ours = values_and_gradients(attention, {**mask, "backend": "triton"}, *given)
    for name, o, s, e in zip(("out", "dq", "dk", "dv"), ours, spec, exact, strict=True):
        size = e.abs().max()
        ulps = 2 * torch.finfo(dtype).eps * size + 32 * torch.finfo(torch.float32).eps * max(1.0, size)
        tolerance = 2 * (s - e).abs().max() + ulps
        assert o.dtype == dtype
        assert (o - e).abs().max() <= tolerance, name  # NaN is not


def test_a_repeated_backward_gives_the_same_bits():
    mask = {"window": 40, "documents_BT": documents(130, 50), "backend": "triton"}
    given = inputs(130, 4, 2, 16)
    first, second = (values_and_gradients(attention, mask, *given) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_views_of_one_projection_are_read_where_they_lie(monkeypatch):
    """As a GPT makes them; and strides that no GPT makes: heads outside, transposed, repeated along the batch."""
    B, T, H, K, D = 2, 37, 4, 2, 16
    generator = torch.Generator().manual_seed(0)
    dout = torch.randn(B, T, H, D, generator=generator)
    fused = torch.randn(B, T, H + 2 * K, D, generator=generator)
    strange = torch.randn(H + 2 * K, D, T, generator=generator).permute(2, 0, 1).expand(B, -1, -1, -1)
    for qkv in (fused, strange):
        views = qkv.split((H, K, K), dim=2)
        packed = values_and_gradients(attention, {"backend": "triton"}, *(x.contiguous() for x in views), dout)
        dout_view = dout.mT.contiguous().mT
        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "contiguous", None)  # to call it is an error
            patch.setattr(torch.Tensor, "clone", None)
            viewed = values_and_gradients(attention, {"backend": "triton"}, *views, dout_view)
        for name, a, b in zip(("out", "dq", "dk", "dv"), viewed, packed, strict=True):
            assert torch.equal(a, b), name


@pytest.mark.parametrize("mask", [{"window": 8}, {"documents_BT": (torch.arange(128) // 64).expand(2, -1)}])
def test_tiles_that_nobody_sees_are_not_read(mask, tiles):
    """NaN in them would otherwise come through as 0 · NaN: queries of the second half see nothing of the first."""
    tiles(16, 32)
    q, k, v, dout = inputs(128, 1, 1, 16)
    for x in (q, k, v, dout):
        x[:, :32] = float("nan")
    out, dq, dk, dv = values_and_gradients(attention, {**mask, "backend": "triton"}, q, k, v, dout)
    for x in (out, dq, dk, dv):
        assert x[:, :32].isnan().all()
        assert x[:, 64:].isfinite().all()


def test_torch_sees_whole_operations():
    q, k, v, dout = inputs(40, 2, 1, 16)
    mask = {"window": 9, "documents_BT": documents(40, 7), "backend": "triton"}
    run = torch.compile(attention, fullgraph=True, backend="aot_eager")
    compiled, eager = (values_and_gradients(f, mask, q, k, v, dout) for f in (run, attention))
    assert all(torch.equal(a, b) for a, b in zip(compiled, eager, strict=True))
    starts, ends = attention_op.document_bounds(documents(40, 7))
    torch.library.opcheck(torch.ops.sweep.attention.default, (q, k, v, starts, ends, 9))
    out, lse = torch.ops.sweep.attention(q, k, v, None, None, 40)
    torch.library.opcheck(torch.ops.sweep.attention_backward.default, (dout, q, k, v, None, None, out, lse, 40))


def test_nothing_is_searched_for_at_a_call(monkeypatch):
    """torch.compile traces what a call asks, and of torch 2.11 cannot trace the search for a module."""
    monkeypatch.setattr("importlib.util.find_spec", None)  # to call it is an error
    attention(*inputs(4, 1, 1, 16)[:3], backend="triton")


@pytest.mark.parametrize("options", [{}, {"window": 9, "within_documents": True}], ids=["causal", "all masks"])
def test_torch_compile_sees_a_whole_model(options):
    shape = {"vocab_size": 64, "seq_len": 24, "depth": 2, "width": 32, "heads": 4, "kv_heads": 2, "head_dim": 8}
    cfg = ModelConfig(**shape, mlp_width=64, **options)
    model = GPT(cfg, backend="triton").init_weights(0)
    tokens = torch.arange(48).view(2, 24)
    given = (tokens, tokens.roll(-1, 1), *([documents(24, 7)] if cfg.within_documents else []))
    compiled = torch.compile(model.loss, fullgraph=True, backend="aot_eager", dynamic=False)
    gradients, expected = (torch.autograd.grad(loss(*given), [*model.parameters()]) for loss in (compiled, model.loss))
    for a, b in zip(gradients, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_it_cannot_be_differentiated_twice():
    q, k, v = (x.requires_grad_() for x in inputs(5, 1, 1, 16)[:3])
    (dq,) = torch.autograd.grad(attention(q, k, v, backend="triton").square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        dq.sum().backward()


def test_another_length_is_the_same_dynamic_graph():
    torch.compiler.reset()
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager", dynamic=True)
    given = inputs(40, 2, 1, 16)
    values_and_gradients(compiled, {"backend": "triton"}, *given)
    with torch._dynamo.config.patch(error_on_recompile=True):
        values_and_gradients(compiled, {"backend": "triton"}, *(x[:, :30].contiguous() for x in given))


def test_strides_that_32_bits_within_a_tile_cannot_count_are_refused():
    tile = Configuration(64, 32, 4, 1)
    near, far = (torch.empty_strided((1, 99, 2, 16), (16, stride, 16, 1), device="meta") for stride in (2**24, 2**26))
    assert attention_op._strides(tile, near) == list(near.stride())
    with pytest.raises(ValueError, match=r"\(1, 99, 2, 16\) has strides .*: make it contiguous"):
        attention_op._strides(tile, near, far)
    attention_op._strides(tile, far[:, :32])


def test_document_bounds():
    starts_BT, ends_BT = attention_op.document_bounds(torch.tensor([[3, 3, 3, 7, 9, 9], [0, 1, 2, 2, 2, 2]]))
    assert starts_BT.tolist() == [[0, 0, 0, 3, 4, 4], [0, 1, 2, 2, 2, 2]]
    assert ends_BT.tolist() == [[2, 2, 2, 3, 5, 5], [0, 1, 5, 5, 5, 5]]


def test_padded_head_dimensions():
    assert [block_d(d) for d in (1, 8, 16, 17, 32, 48, 96, 128)] == [16, 16, 16, 32, 32, 64, 128, 128]


def test_where_it_cannot_run_one_line_says_so(monkeypatch):
    q, k, v, _ = inputs(4, 1, 1, 16)
    assert resolve_backend("triton", "cpu") == "triton"  # the interpreter
    with pytest.raises(ValueError, match=r"head_dim=160 is not supported, 1 to 128 are; use run\.backend=sdpa"):
        resolve_backend("triton", "cpu", head_dim=160)
    with pytest.raises(ValueError, match=r"head_dim=160 is not supported"):
        attention(*inputs(4, 1, 1, 160)[:3], backend="triton")
    with pytest.raises(ValueError, match=r"head_dim=0 is not supported, 1 to 128 are"):
        attention(*inputs(4, 1, 1, 0)[:3], backend="triton")
    with pytest.raises(ValueError, match=r"q is torch\.float64; float16, bfloat16 and float32"):
        attention(q.double(), k.double(), v.double(), backend="triton")
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(ValueError, match=r"run\.backend=triton: needs a CUDA device.*use run\.backend=sdpa"):
        resolve_backend("triton", "cpu")
    with pytest.raises(ValueError, match="needs a CUDA device"):
        attention(q, k, v, backend="triton")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    with pytest.raises(ValueError, match=r"needs compute capability 8\.0 or later, and Tesla T4 has 7\.5"):
        resolve_backend("triton", "cuda")
    assert resolve_backend("auto", "cuda") == "sdpa"


def test_auto_picks_it_only_where_its_numbers_were_checked(monkeypatch):
    here = {"device": "NVIDIA H200", "triton": "3.6.0", "source": source_hash()}
    monkeypatch.setattr("kernels.configurations.checked", lambda: [{"part": part, **here} for part in PARTS])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr("triton.__version__", "3.6.0")
    for name, chosen in (("NVIDIA H200", "triton"), ("NVIDIA B200", "sdpa")):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda name=name: name)
        assert resolve_backend("auto", "cuda", head_dim=64) == chosen
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    assert resolve_backend("auto", "cuda", head_dim=160) == "sdpa"
    monkeypatch.setattr("triton.__version__", "3.9.0")
    assert resolve_backend("auto", "cuda", head_dim=64) == "sdpa"
