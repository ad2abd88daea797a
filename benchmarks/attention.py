"""Our attention on a CUDA device: its numbers, then its speed beside the others'. Five to eight minutes on an H200.

  python -m benchmarks.attention [--check-only]

Numbers: fresh random inputs, sequences of every timed shape, every type, head dimensions, ragged lengths, grouped
heads, windows, documents, odd strides; forward and gradients against fp64, new tensors poisoned with NaN. A device that
passes this and `benchmarks.cross_entropy` is entered in `kernels/checked.json`, which is what makes `run.backend=auto`
use the kernels there. Nothing is timed if a number is wrong or a check fails; the exit status is then 1.

Speed: causal bf16 of 64k tokens and 1,024 dimensions, forward and backward, beside PyTorch's FlashAttention-2,
cuDNN, FlexAttention, and flash-attn if it is installed. TFLOP/s count the visible half of the scores; backward is
2.5 forwards. A contender that fails is named with its reason.

Writes `kernels/checked.json` after the check and `benchmarks/results/attention.json` after each timed shape.

On a machine without a GPU, `TRITON_INTERPRET=1 … --check-only --device cpu` runs the check itself on tiny shapes.
"""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.gpu_checks import check_first, compiling, faults, poisoned
from benchmarks.gpu_timing import matmul_tflops, race
from benchmarks.provenance import save
from kernels import attention_op, reference
from kernels.attention import attention

TOKENS, WIDTH = 65_536, 1024
LENGTHS, HEAD_DIMS = (512, 1024, 2048, 4096), (32, 64, 128)
TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class Case:
    """A shape and a mask to check; `documents` is the mean length of one, 0 for none. `odd`: nothing is aligned."""

    tokens: int
    head_dim: int
    heads: int = 4
    kv_heads: int = 4
    window: int = 0
    documents: int = 0
    odd: bool = False


@dataclass(frozen=True)
class Row:
    """A line of the result: the speeds of one direction of a case."""

    direction: str  # forward or backward
    tokens: int
    head_dim: int
    tflops: dict[str, float]  # by contender
    ours_over: dict[str, float]  # our speed over each other contender's
    of_matmul_ceiling: float | None  # our speed over that of a large matrix product; None where ours failed
    not_run: dict[str, str]  # contender -> why it did not run


SMALL = (
    Case(tokens=1, head_dim=16),
    Case(tokens=129, head_dim=12, kv_heads=1),
    Case(tokens=512, head_dim=16, kv_heads=2),
    Case(tokens=1000, head_dim=32, window=300),
    Case(tokens=777, head_dim=64, kv_heads=2, window=129, documents=250),
    Case(tokens=640, head_dim=64, documents=100),
    Case(tokens=515, head_dim=96, kv_heads=1),
    Case(tokens=1024, head_dim=128, documents=300),
    Case(tokens=999, head_dim=128, kv_heads=2, window=65),
    Case(tokens=300, head_dim=64, kv_heads=2, odd=True),
)
TIMED = tuple(Case(tokens, d, WIDTH // d, WIDTH // d) for d in HEAD_DIMS for tokens in LENGTHS)
IN_EVERY_TYPE = Case(2048, 64, 16, 16)  # of the timed ones
WIDE = Case(16_384, 64, 16, 16, window=64)  # inputs of 2²⁶ elements a sequence, outputs and gradients of 2²⁴
WIDE_BYTES = 8 * 2**26  # a sequence: its inputs in fp32 and in bf16, and some room
TINY = (Case(33, 16, 2, 1), Case(70, 20, 2, 2, 9, 20), Case(20, 16, 2, 1, odd=True))  # for the interpreter


def main(argv: list[str] | None = None) -> int:
    return check_first("attention", __doc__, argv, check, time_all)


def time_all(seed: int) -> None:
    """Every timed shape; the result file is written after each, so that a run that is stopped keeps what it has."""
    ceiling = matmul_tflops()
    rows: list[Row] = []
    report = {"command": "python -m benchmarks.attention", "matmul_tflops": ceiling, "seed": seed, "rows": rows}
    for case in TIMED:
        rows += time_case(case, ceiling)
        save("attention", ["torch", "triton"], report, "cuda")
    print(json.dumps(report, default=asdict))


def check(device: str, seed: int) -> list[str]:
    """What is wrong, a line each."""
    generator = torch.Generator(device).manual_seed(seed)
    if device == "cpu":
        plan = [(case, kind) for case in TINY for kind in ("fp16", "fp32")]  # the interpreter computes bf16 wrongly
    else:  # first what a sweep trains with
        plan = [(case, "bf16") for case in TIMED] + [(IN_EVERY_TYPE, kind) for kind in TYPES if kind != "bf16"]
        plan += [(case, kind) for case in SMALL for kind in TYPES]
        with compiling():
            for case, kind in plan:
                launch(inputs(case, 2, TYPES[kind], device, generator), case.window, documents(case, 2, device))
    checks: list[tuple[str, Callable[[], Iterator[str]]]] = [
        (f"{case} {kind}", partial(check_case, case, TYPES[kind], device, generator)) for case, kind in plan
    ]
    if device == "cuda":
        checks += wide_checks(torch.cuda.mem_get_info()[0], generator)
    with poisoned():
        return faults(checks)


def check_case(case: Case, dtype: torch.dtype, device: str, generator: torch.Generator) -> Iterator[str]:
    """Out and gradients must be within twice the specification's own error in this type, and a few units in the last
    place; and a second run must give the same bits."""
    given = inputs(case, 2, dtype, device, generator)
    documents_BT = documents(case, 2, device)
    exact, spec = (specification(case.window, documents_BT, given, t) for t in (torch.float64, dtype))
    kernels = partial(attention, window=case.window, documents_BT=documents_BT, backend="triton")
    ours, again = (values_and_gradients(kernels, given) for _ in range(2))
    for name, e, s, o, a in zip(("out", "dq", "dk", "dv"), exact, spec, ours, again, strict=True):
        error, allowed = (o - e).abs().max().item(), tolerance(e, s)
        if not error <= allowed:  # NaN is not
            yield f"{name} is off by {error:.2e}, more than {allowed:.2e}"
        if not torch.equal(o, a):
            yield f"{name} differs between two runs"


def tolerance(exact: Tensor, spec: Tensor) -> float:
    """Twice the specification's own error; and a few units in the last place, of the result in its type and in fp32 of
    what was summed, which is of order one even where the sum cancels to zero."""
    size = exact.abs().max().item()
    ulps = 2 * torch.finfo(spec.dtype).eps * size + 32 * torch.finfo(torch.float32).eps * max(1.0, size)
    return 2 * (spec - exact).abs().max().item() + ulps


def wide_checks(free_bytes: int, generator: torch.Generator) -> list[tuple[str, Callable[[], Iterator[str]]]]:
    """Offsets beyond 32 bits, in as many tensors as memory allows; on a small card none, and a line that says so."""
    for batch, what in ((130, "more than 2³¹ elements in each output and gradient"), (65, "more than 2³² of input")):
        if batch * WIDE_BYTES < free_bytes:
            return [(what, partial(check_wide_offsets, batch, generator))]
    print(f"offsets beyond 32 bits: not checked, {65 * WIDE_BYTES / 1e9:.0f} GB must be free", flush=True)
    return []


def check_wide_offsets(batch: int, generator: torch.Generator) -> Iterator[str]:
    """The last sequence of such a batch must give the bits that it gives alone."""
    given = inputs(WIDE, batch, torch.bfloat16, "cuda", generator)
    kernels = partial(attention, window=WIDE.window, backend="triton")
    together = values_and_gradients(kernels, given)
    alone = values_and_gradients(kernels, [x[-1:].clone() for x in given])
    for name, a, b in zip(("out", "dq", "dk", "dv"), together, alone, strict=True):
        if not torch.equal(a[-1:], b):
            yield f"{name} of the last sequence is wrong"


def inputs(case: Case, batch: int, dtype: torch.dtype, device: str, generator: torch.Generator) -> list[Tensor]:
    """q, k, v as views of one projection, as a GPT makes them, and a gradient of the output, in the same manner.

    Of an odd case views that skip every second sequence and the first numbers of each head.
    """
    H, K = case.heads, case.kv_heads
    skipped = 3 if case.odd else 0
    shape = (batch * (1 + case.odd), case.tokens, 2 * H + 2 * K, skipped + case.head_dim)
    fused = torch.randn(shape, device=device, generator=generator).to(dtype)[:: 1 + case.odd, :, :, skipped:]
    return list(fused.split((H, K, K, H), dim=2))


def documents(case: Case, batch: int, device: str) -> Tensor | None:
    if not case.documents:
        return None
    t = torch.arange(case.tokens, device=device)
    return torch.stack([(t + 17 * b) // (case.documents + 5 * b) for b in range(batch)])


def specification(window: int, documents_BT: Tensor | None, given: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Values and gradients by the reference, a sequence at a time: its scores are the largest tensors of all."""
    each = []
    for b in range(len(given[0])):
        documents_1T = None if documents_BT is None else documents_BT[b : b + 1]
        alone = partial(reference.attention, window=window, documents_BT=documents_1T)
        each.append(values_and_gradients(alone, [x[b : b + 1].to(dtype) for x in given]))
    return [torch.cat(parts) for parts in zip(*each, strict=True)]


def values_and_gradients(run: Callable[..., Tensor], given: list[Tensor]) -> list[Tensor]:
    """The output and the gradients of q, k and v; `given` is q, k, v and the gradient of the output."""
    q, k, v = (x.detach().requires_grad_() for x in given[:3])
    out = run(q, k, v)
    return [out.detach(), *torch.autograd.grad(out, (q, k, v), given[3])]


def launch(given: list[Tensor], window: int = 0, documents_BT: Tensor | None = None) -> None:
    """Our three kernels once, as `attention` and its backward launch them."""
    q, k, v, dout = given
    tokens = q.shape[1]
    starts, ends = (None, None) if documents_BT is None else attention_op.document_bounds(documents_BT)
    seen = min(window, tokens) or tokens
    out, lse = torch.ops.sweep.attention(q, k, v, starts, ends, seen)
    torch.ops.sweep.attention_backward(dout, q, k, v, starts, ends, out, lse, seen)


def time_case(case: Case, ceiling: float) -> Iterator[Row]:
    """A row for the forward and one for the backward: TFLOP/s of each contender, and ours over each other's."""
    generator = torch.Generator("cuda").manual_seed(0)
    *qkv, dout = inputs(case, TOKENS // case.tokens, torch.bfloat16, "cuda", generator)
    qkv, dout = [x.detach().requires_grad_() for x in qkv], dout.contiguous()  # as the projection after it makes dout

    def backward(out: Callable[[], Tensor]) -> object:
        return torch.autograd.grad(out(), qkv, dout, retain_graph=True)

    forwards: dict[str, Callable[[], object]] = {name: partial(f, *qkv) for name, f in contenders().items()}
    backwards: dict[str, Callable[[], object]] = {  # the outputs are made before the first timed round
        name: partial(backward, cache(partial(f, *qkv))) for name, f in contenders().items()
    }
    visible = case.tokens * (case.tokens + 1) / 2
    forward_flops = 4 * (TOKENS // case.tokens) * case.heads * case.head_dim * visible
    for direction, timed, factor in (("forward", forwards, 1.0), ("backward", backwards, 2.5)):
        seconds, why_not = race(timed)
        tflops = {name: factor * forward_flops / s / 1e12 for name, s in seconds.items()}
        ours = tflops.get("triton")  # none where it failed
        row = Row(
            direction=direction,
            tokens=case.tokens,
            head_dim=case.head_dim,
            tflops={name: round(value, 1) for name, value in tflops.items()},
            ours_over={name: round(ours / v, 3) for name, v in tflops.items() if ours and name != "triton"},
            of_matmul_ceiling=ours and round(ours / ceiling, 3),
            not_run=why_not,
        )
        print(row, flush=True)
        yield row


def contenders() -> dict[str, Callable[..., Tensor]]:
    """q, k, v of (B, T, H, D) → out, causal, of the same layout."""

    def sdpa(backend: SDPBackend) -> Callable[..., Tensor]:
        def run(*qkv: Tensor) -> Tensor:
            q, k, v = (x.transpose(1, 2) for x in qkv)
            with sdpa_kernel(backend):
                return scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)

        return run

    return {
        "triton": lambda *qkv: attention(*qkv, backend="triton"),
        "flash": sdpa(SDPBackend.FLASH_ATTENTION),
        "cudnn": sdpa(SDPBackend.CUDNN_ATTENTION),
        "flex": _flex,
        "flash_attn": _flash_attn,
    }


_compiled_flex: Callable[..., Tensor] | None = None


def _flex(*qkv: Tensor) -> Tensor:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    global _compiled_flex
    if _compiled_flex is None:
        torch._dynamo.config.recompile_limit = 64  # beyond the default of 8 shapes it would run uncompiled, in silence
        _compiled_flex = torch.compile(flex_attention, dynamic=False, fullgraph=True)
    tokens = qkv[0].shape[1]
    if tokens not in _masks:
        _masks[tokens] = create_block_mask(lambda b, h, t, s: t >= s, None, None, tokens, tokens)
    return _compiled_flex(*(x.transpose(1, 2) for x in qkv), block_mask=_masks[tokens]).transpose(1, 2)


_masks: dict[int, Any] = {}


def _flash_attn(*qkv: Tensor) -> Tensor:
    from flash_attn import flash_attn_func

    return flash_attn_func(*qkv, causal=True)


if __name__ == "__main__":
    sys.exit(main())
