"""The Triton attention as operations that torch knows: allocation, launch, gradients, and shapes for torch.compile.

`torch.library` operations inside an `autograd.Function`, which costs half of what `custom_op` with
`register_autograd` does. Imported only when the `triton` backend is asked for: Triton exists on Linux only.

Shape suffixes: B batch, T tokens, H query heads, K key/value heads, D head dimension.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels import triton_attention as kernels
from kernels.configurations import Configuration, architecture_of, block_d, configuration

torch.library.define(
    "sweep::attention",
    "(Tensor q, Tensor k, Tensor v, Tensor? starts, Tensor? ends, SymInt window) -> (Tensor, Tensor)",
)
torch.library.define(
    "sweep::attention_backward",
    "(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor? starts, Tensor? ends, Tensor out, Tensor lse, SymInt window)"
    " -> (Tensor, Tensor, Tensor)",
)


def attention(q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor, window: int, documents_BT: Tensor | None) -> Tensor:
    """out_BTHD with gradients; arguments as `kernels.attention.attention` checked them, window 0 for none."""
    starts_BT, ends_BT = (None, None) if documents_BT is None else document_bounds(documents_BT)
    return _Attention.apply(q_BTHD, k_BTKD, v_BTKD, starts_BT, ends_BT, window or q_BTHD.shape[1])


def document_bounds(documents_BT: Tensor) -> tuple[Tensor, Tensor]:
    """The first and the last token of each token's document, int32, for ids that do not decrease along T."""
    documents_BT = documents_BT.contiguous()
    starts_BT = torch.searchsorted(documents_BT, documents_BT, out_int32=True)
    ends_BT = torch.searchsorted(documents_BT, documents_BT, out_int32=True, right=True) - 1
    return starts_BT, ends_BT


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, starts: Tensor, ends: Tensor, window: int) -> Tensor:
        out, lse = torch.ops.sweep.attention(q, k, v, starts, ends, window)
        ctx.save_for_backward(q, k, v, starts, ends, out, lse)
        ctx.window = window
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        dq, dk, dv = torch.ops.sweep.attention_backward(dout, *ctx.saved_tensors, ctx.window)
        return dq, dk, dv, None, None, None


@torch.library.impl("sweep::attention", ("cuda", "cpu"))
def _forward(
    q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None, ends: Tensor | None, window: int
) -> tuple[Tensor, Tensor]:
    B, T, H, D = q.shape
    out, lse = _forward_fake(q, k, v, starts, ends, window)
    chosen = configuration(architecture_of(q.device), "forward", q.element_size(), D)
    with _on(q.device):
        kernels.forward[(B * H * triton.cdiv(T, chosen.block_q),)](
            q, k, v, _pointer(starts, q), out, lse,
            *_strides(chosen, q, k, v),
            T, H, H // k.shape[2], window, _scale(D) * math.log2(math.e),
            D, block_d(D), chosen.block_q, chosen.block_k, window < T or starts is not None, starts is not None,
            **chosen.launch(),
        )  # fmt: skip
    return out, lse


@torch.library.impl("sweep::attention_backward", ("cuda", "cpu"))
def _backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None, ends: Tensor | None,
    out: Tensor, lse: Tensor, window: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    B, T, H, D = q.shape
    K = k.shape[2]
    dq, dk, dv = _backward_fake(dout, q, k, v, starts, ends, out, lse, window)
    delta = torch.empty_like(lse)
    hidden = window < T or starts is not None
    scales = (_scale(D), _scale(D) * math.log2(math.e))
    with _on(q.device):
        chosen = configuration(architecture_of(q.device), "backward_q", q.element_size(), D)
        kernels.backward_q[(B * H * triton.cdiv(T, chosen.block_q),)](
            q, k, v, _pointer(starts, q), out, lse, dout, dq, delta,
            *_strides(chosen, q, k, v, dout), T, H, H // K, window, *scales,
            D, block_d(D), chosen.block_q, chosen.block_k, hidden, starts is not None,
            **chosen.launch(),
        )  # fmt: skip
        chosen = configuration(architecture_of(q.device), "backward_kv", q.element_size(), D)
        kernels.backward_kv[(B * K * triton.cdiv(T, chosen.block_k),)](
            q, k, v, _pointer(starts, q), _pointer(ends, q), lse, dout, delta, dk, dv,
            *_strides(chosen, q, k, v, dout), T, K, H // K, window, *scales,
            D, block_d(D), chosen.block_q, chosen.block_k,
            hidden or T % chosen.block_q != 0, starts is not None,
            **chosen.launch(),
        )  # fmt: skip
    return dq, dk, dv


@torch.library.register_fake("sweep::attention")
def _forward_fake(
    q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None, ends: Tensor | None, window: int
) -> tuple[Tensor, Tensor]:
    B, T, H, D = q.shape
    return q.new_empty(B, T, H, D), q.new_empty(B, H, T, dtype=torch.float32)


@torch.library.register_fake("sweep::attention_backward")
def _backward_fake(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None, ends: Tensor | None,
    out: Tensor, lse: Tensor, window: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _scale(head_dim: int) -> float:
    return 1 / math.sqrt(head_dim)


def _strides(chosen: Configuration, *inputs_BTHD: Tensor) -> list[int]:
    """Of all of them. ValueError where an offset within a tile, which has 32 bits, would overflow."""
    for x in inputs_BTHD:
        rows = min(x.shape[1], max(chosen.block_q, chosen.block_k))
        if (rows - 1) * x.stride(1) + (x.shape[3] - 1) * x.stride(3) >= 2**31:
            raise ValueError(
                f"run.backend=triton: an input of shape {tuple(x.shape)} has strides {x.stride()}; "
                f"{rows} tokens must lie within 2³¹ elements: make it contiguous"
            )
    return [stride for x in inputs_BTHD for stride in x.stride()]


def _pointer(optional: Tensor | None, instead: Tensor) -> Tensor:
    """Something to pass for a tensor that the kernel was told not to read."""
    return instead if optional is None else optional


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on the current device, which need not be the tensors'."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
