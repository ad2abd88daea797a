"""Cross-entropy by every backend; Triton's in its interpreter (fp32 and fp16: it computes bf16 wrongly)."""

import pytest
import torch

from kernels import cross_entropy as module
from kernels import reference
from kernels.cross_entropy import backend_beside, cross_entropy, linear_cross_entropy

pytest.importorskip("triton", reason="Triton exists on Linux only")
from kernels import cross_entropy_op as op

pytestmark = pytest.mark.triton

torch.set_num_threads(1)  # at these shapes two threads mostly wait for each other

SHAPES = [(1, 2), (5, 7), (3, 128), (9, 300), (2, 5000)]  # the last takes two tiles of the vocabulary


@pytest.fixture
def poisoned():
    """Every new tensor starts as NaN: what a kernel does not write shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.ones(1).new_empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def given(rows: int, vocabulary: int, dtype=torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows)
    logits = 4 * torch.randn(rows, vocabulary, generator=generator)
    return logits.to(dtype), torch.randint(vocabulary, (rows,), generator=generator)


def loss_and_gradients(run, weight: float, *inputs: torch.Tensor) -> list[torch.Tensor]:
    inputs = [x.detach().requires_grad_() for x in inputs]
    loss = run(*inputs)
    return [loss.detach(), *torch.autograd.grad(weight * loss, inputs)]


def assert_as_exact(ours, spec, exact, dtype) -> None:
    """Within twice the specification's own error and a few units in the last place of fp32, and of the type."""
    assert ours[0].dtype == torch.float32
    for i, (o, s, e) in enumerate(zip(ours, spec, exact, strict=True)):
        size = e.abs().max()
        ulps = 8 * torch.finfo(torch.float32).eps * max(1.0, size) + 2 * torch.finfo(dtype).eps * size * (i > 0)
        assert (o - e).abs().max() <= 2 * (s - e).abs().max() + ulps, i  # NaN is not


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("backend", ["triton", "torch"])
@pytest.mark.parametrize("shape", SHAPES)
def test_numbers_are_as_exact_as_the_specification(shape, backend, dtype):
    logits, targets = given(*shape, dtype)
    runs = [
        (lambda x: cross_entropy(x, targets, backend=backend), logits),
        (lambda x: reference.cross_entropy(x.float(), targets), logits),
        (lambda x: reference.cross_entropy(x, targets), logits.double()),
    ]
    assert_as_exact(*(loss_and_gradients(run, 0.3, x) for run, x in runs), dtype)


@pytest.mark.usefixtures("poisoned")
def test_the_fused_form_agrees_in_chunks_that_do_not_divide_the_rows(monkeypatch):
    monkeypatch.setattr(module, "FUSED_FROM_VOCABULARY", 300)
    monkeypatch.setattr(module, "CHUNK_LOGITS", 4 * 300)
    generator = torch.Generator().manual_seed(0)
    x, head = torch.randn(2, 7, 16, generator=generator), torch.randn(300, 16, generator=generator)
    targets = torch.randint(300, (2, 7), generator=generator)
    runs = [
        (lambda x, head: linear_cross_entropy(x, head, targets, backend="triton"), torch.float32),
        (lambda x, head: linear_cross_entropy(x, head, targets, backend="reference"), torch.float32),
        (lambda x, head: linear_cross_entropy(x, head, targets, backend="reference"), torch.float64),
    ]
    assert_as_exact(*(loss_and_gradients(run, 0.3, x.to(t), head.to(t)) for run, t in runs), torch.float32)


def test_extreme_logits_neither_overflow_nor_hide():
    inf = float("inf")
    logits = torch.tensor([[-inf, 1000.0, 999.0], [-1e30, 0.0, -inf], [5.0, 5.0, 5.0]])
    targets = torch.tensor([1, 1, 2])
    ours, torchs = (
        loss_and_gradients(lambda x, b=backend: cross_entropy(x, targets, backend=b), 1.0, logits)
        for backend in ("triton", "torch")
    )
    for a, b in zip(ours, torchs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
    assert cross_entropy(logits, torch.tensor([1, 1, 3]), backend="triton").isnan()  # no such token
    assert cross_entropy(logits, torch.tensor([1, -1, 2]), backend="triton").isnan()


def test_strided_logits_and_no_gradient():
    logits, targets = given(6, 40)
    whole = cross_entropy(logits, targets, backend="triton")
    assert torch.equal(cross_entropy(logits.T.contiguous().T, targets, backend="triton"), whole)
    wider = torch.cat([logits, logits], dim=1)[:, :40]
    assert torch.equal(cross_entropy(wider, targets, backend="triton"), whole)
    with torch.no_grad():
        assert torch.equal(cross_entropy(logits.requires_grad_(), targets, backend="triton"), whole)


@pytest.mark.parametrize("programs", [1, 1024])
def test_accumulated_gradients_are_scaled_by_any_number_of_programs(monkeypatch, programs):
    monkeypatch.setattr("kernels.cross_entropy_op.SCALE_PROGRAMS", programs)
    logits, targets = given(9, 1000)
    whole, half = (
        loss_and_gradients(lambda x: cross_entropy(x, targets, backend="triton"), weight, logits)[1]
        for weight in (1.0, 0.5)
    )
    assert torch.equal(half, 0.5 * whole)


def test_a_second_backward_cannot_scale_what_the_first_one_did():
    logits, targets = given(4, 9)
    loss = cross_entropy(logits.requires_grad_(), targets, backend="triton")
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("fused_from", [1000, 1])
def test_it_cannot_be_differentiated_twice(monkeypatch, fused_from):
    monkeypatch.setattr(module, "FUSED_FROM_VOCABULARY", fused_from)
    logits, targets = given(4, 9)
    loss = linear_cross_entropy(logits.requires_grad_(), torch.eye(9), targets, backend="triton")
    (gradient,) = torch.autograd.grad(loss.square(), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        gradient.sum().backward()


def test_strides_that_32_bits_within_a_tile_cannot_count_are_refused():
    logits = torch.empty_strided((2, 4096), (1, 2**20), device="meta")
    with pytest.raises(ValueError, match=r"logits of shape \(2, 4096\) has strides .*; make it contiguous"):
        op._launch(logits, torch.zeros(2), torch.zeros(2), None, 0.5)


def test_torch_sees_whole_operations(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    x, head = torch.randn(9, 8, generator=generator), torch.randn(50, 8, generator=generator)
    targets = torch.randint(50, (9,), generator=generator)
    monkeypatch.setattr(module, "FUSED_FROM_VOCABULARY", 10)
    for f, inputs in ((cross_entropy, (x @ head.T,)), (linear_cross_entropy, (x, head))):
        run = torch.compile(f, fullgraph=True, backend="aot_eager")
        compiled, eager = (
            loss_and_gradients(lambda *x, f=f: f(*x, targets, backend="triton"), 0.5, *inputs) for f in (run, f)
        )
        assert all(torch.equal(a, b) for a, b in zip(compiled, eager, strict=True))
    for with_gradient in (True, False):
        torch.library.opcheck(torch.ops.sweep.cross_entropy.default, (x @ head.T, targets, with_gradient))
        torch.library.opcheck(torch.ops.sweep.linear_cross_entropy.default, (x, head, targets, 4, with_gradient))
    torch.library.opcheck(torch.ops.sweep.scale_.default, (x.clone(), torch.tensor(0.5)))


def test_compiled_logits_are_never_whole(monkeypatch):
    """Whatever the vocabulary: the graph would copy a gradient that is scaled in place."""
    monkeypatch.setattr(module, "CHUNK_LOGITS", 4 * 50)
    monkeypatch.delattr("kernels.cross_entropy_op.cross_entropy")
    logits, targets = given(9, 50)
    torch.compiler.reset()
    run = torch.compile(linear_cross_entropy, fullgraph=True, backend="aot_eager")
    loss = run(logits, torch.eye(50), targets, backend="triton")
    torch.testing.assert_close(loss, cross_entropy(logits, targets), rtol=1e-5, atol=1e-6)


def test_autocast_reaches_the_fused_form(monkeypatch):
    """Its products run in the low type, and gradients come back in the parameters' own."""
    monkeypatch.setattr(module, "FUSED_FROM_VOCABULARY", 10)
    generator = torch.Generator().manual_seed(0)
    x, head = torch.randn(9, 8, generator=generator), torch.randn(50, 8, generator=generator)
    targets = torch.randint(50, (9,), generator=generator)
    with torch.autocast("cpu", torch.float16):
        ours, torchs = (
            loss_and_gradients(lambda x, head, b=b: linear_cross_entropy(x, head, targets, backend=b), 1.0, x, head)
            for b in ("triton", "torch")
        )
    for a, b in zip(ours, torchs, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=0.01, atol=1e-3)


@pytest.mark.parametrize("fused_from", [1000, 1])
def test_targets_of_any_stride(monkeypatch, fused_from):
    monkeypatch.setattr(module, "FUSED_FROM_VOCABULARY", fused_from)
    logits, targets = given(6, 40)
    for strided in (targets.repeat_interleave(2)[::2], targets[:1].expand(6)):
        assert not strided.is_contiguous()
        expected = cross_entropy(logits, strided)
        torch.testing.assert_close(cross_entropy(logits, strided, backend="triton"), expected)
        loss = linear_cross_entropy(logits, torch.eye(40), strided, backend="triton")
        torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("backend", ["torch", "triton", "reference"])
def test_no_rows_have_no_mean(backend):
    logits = torch.zeros(0, 5, requires_grad=True)
    loss = cross_entropy(logits, torch.zeros(0).long(), backend=backend)
    assert loss.isnan()
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.shape == (0, 5)


def test_no_target_is_skipped():
    logits, targets = given(4, 9)
    for outside in (-100, -1, 9):
        targets[1] = outside
        assert cross_entropy(logits, targets, backend="triton").isnan()
        for backend in ("torch", "reference"):
            with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
                cross_entropy(logits, targets, backend=backend)


def test_launches_name_the_fusion_of_products_and_sums():
    """Its default is another one from Triton 3.10 on."""
    assert all(options["enable_fp_fusion"] for options in (op.launch(9), op.launch(50_000), op.SCALE_OPTIONS))


@pytest.mark.parametrize("backend", ["torch", "triton", "reference"])
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"head": torch.zeros(9, 4)}, r"head has shape \(9, 4\) and x \(2, 4, 3\); they must be \(V, C\) and"),
        ({"head": torch.zeros(9, 3, 1)}, r"head has shape \(9, 3, 1\)"),
        ({"x": torch.zeros(3)}, r"head has shape \(9, 3\) and x \(3,\)"),
        ({"head": torch.zeros(9, 3).half()}, r"head is torch\.float16 on cpu, x is torch\.float32 on cpu"),
        (
            {"head": torch.zeros(9, 3, device="meta")},
            r"head is torch\.float32 on meta, x is .* on cpu; they must agree",
        ),
        (
            {"targets": torch.zeros(4, 2).long()},
            r"targets has shape \(4, 2\); with x of \(2, 4, 3\) it must be \(2, 4\)",
        ),
    ],
)
@pytest.mark.parametrize("fused_from", [1000, 1])
def test_what_does_not_fit_the_projection_is_named(monkeypatch, fused_from, changes, said, backend):
    monkeypatch.setattr(module, "FUSED_FROM_VOCABULARY", fused_from)
    x, head, targets = {
        "x": torch.zeros(2, 4, 3), "head": torch.zeros(9, 3), "targets": torch.zeros(2, 4).long(), **changes,
    }.values()  # fmt: skip
    with pytest.raises(ValueError, match="linear_cross_entropy: " + said):
        linear_cross_entropy(x, head, targets, backend=backend)


def test_bad_arguments_are_named():
    logits, targets = given(4, 9)
    with pytest.raises(ValueError, match=r"backend=fast: must be one of torch, triton, reference"):
        cross_entropy(logits, targets, backend="fast")
    with pytest.raises(ValueError, match=r"targets has shape \(3,\) and logits \(4, 9\)"):
        cross_entropy(logits, targets[:3])
    with pytest.raises(ValueError, match=r"targets is torch\.int32 on cpu; it must be int64 on cpu"):
        cross_entropy(logits, targets.int(), backend="triton")


@pytest.mark.parametrize("fused_from", [1000, 1])
def test_what_triton_cannot_run_is_named(monkeypatch, fused_from):
    monkeypatch.setattr(module, "FUSED_FROM_VOCABULARY", fused_from)
    x, head, targets = torch.zeros(4, 3), torch.zeros(9, 3), torch.zeros(4).long()
    with pytest.raises(ValueError, match=r"logits is torch\.float64; float16, bfloat16 and float32 are supported"):
        linear_cross_entropy(x.double(), head.double(), targets, backend="triton")
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(ValueError, match=r"backend=triton: needs a CUDA device.*; use backend=torch"):
        linear_cross_entropy(x, head, targets, backend="triton")


def test_the_loss_goes_with_the_attention():
    assert [backend_beside(name) for name in ("sdpa", "cudnn", "triton", "reference")] == [
        "torch", "torch", "triton", "torch",
    ]  # fmt: skip
