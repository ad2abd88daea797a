"""The Triton cross-entropy as operations that torch knows; see `attention_op.py` for the form.

Losses and gradients are made together in the forward: the logits are read once, never copied to fp32, and not kept.
The backward scales the kept gradient in place by the scalar that comes back, which is 1 unless gradients are
accumulated and then costs nothing: remaking the gradient from kept logits would read them once more. The fused form
goes further: it makes the logits of some rows at a time, and keeps only the gradients of the projection's inputs.

Shape suffixes: R rows (tokens), V vocabulary, C width.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels import triton_cross_entropy as kernels

MAX_BLOCK_V = 4096  # logits of a tile
SCALE_BLOCK, SCALE_PROGRAMS = 4096, 1024  # programs to fill any chip, few enough to cost nothing when idle
SCALE_OPTIONS: dict[str, int | bool] = {"num_warps": 4, "enable_fp_fusion": True}  # named as in `Configuration.launch`

torch.library.define("sweep::scale_", "(Tensor(a!) x, Tensor factor) -> ()")
torch.library.define("sweep::cross_entropy", "(Tensor logits, Tensor targets, bool with_gradient) -> (Tensor, Tensor)")
torch.library.define(
    "sweep::linear_cross_entropy",
    "(Tensor x, Tensor head, Tensor targets, SymInt chunk_rows, bool with_gradient) -> (Tensor, Tensor, Tensor)",
)


def cross_entropy(logits_RV: Tensor, targets_R: Tensor) -> Tensor:
    """Mean nats, an fp32 scalar, with gradients; arguments as `kernels.cross_entropy` checked them."""
    return _CrossEntropy.apply(logits_RV, targets_R, logits_RV.requires_grad and torch.is_grad_enabled())


def linear_cross_entropy(x_RC: Tensor, head_VC: Tensor, targets_R: Tensor, chunk_rows: int) -> Tensor:
    """Mean nats of the logits x·headᵀ, made `chunk_rows` rows at a time, with gradients of both."""
    wanted = (x_RC.requires_grad or head_VC.requires_grad) and torch.is_grad_enabled()
    return _LinearCrossEntropy.apply(x_RC, head_VC, targets_R, chunk_rows, wanted)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, with_gradient: bool) -> Tensor:
        losses, gradient = torch.ops.sweep.cross_entropy(logits, targets, with_gradient)
        ctx.save_for_backward(gradient)
        return losses.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        torch.ops.sweep.scale_(gradient, dloss)
        return gradient, None, None


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, head: Tensor, targets: Tensor, chunk_rows: int, with_gradient: bool) -> Tensor:
        losses, dx, dhead = torch.ops.sweep.linear_cross_entropy(x, head, targets, chunk_rows, with_gradient)
        ctx.save_for_backward(dx, dhead)
        return losses.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
        dx, dhead = ctx.saved_tensors
        return dx * dloss, dhead * dloss, None, None, None


@torch.library.impl("sweep::scale_", ("cuda", "cpu"))
def _scale(x: Tensor, factor: Tensor) -> None:
    """A contiguous x by an fp32 scalar."""
    programs = min(triton.cdiv(x.numel(), SCALE_BLOCK), SCALE_PROGRAMS)
    with _on(x.device):
        kernels.scale[(programs,)](x, factor, x.numel(), SCALE_BLOCK, **SCALE_OPTIONS)
    torch.autograd.graph.increment_version(x)  # so that a second backward raises instead of scaling twice


@torch.library.impl("sweep::cross_entropy", ("cuda", "cpu"))
def _cross_entropy(logits: Tensor, targets: Tensor, with_gradient: bool) -> tuple[Tensor, Tensor]:
    losses, gradient = _cross_entropy_fake(logits, targets, with_gradient)
    if len(logits):
        _launch(logits, targets, losses, gradient if with_gradient else None, 1 / len(targets))
    return losses, gradient


@torch.library.impl("sweep::linear_cross_entropy", ("cuda", "cpu"))
def _linear_cross_entropy(
    x: Tensor, head: Tensor, targets: Tensor, chunk_rows: int, with_gradient: bool
) -> tuple[Tensor, Tensor, Tensor]:
    losses, dx, dhead = _linear_cross_entropy_fake(x, head, targets, chunk_rows, with_gradient)
    sum_VC = torch.zeros(dhead.shape, dtype=torch.float32, device=x.device)
    for start in range(0, len(x), chunk_rows):
        chunk = slice(start, start + chunk_rows)
        logits = x[chunk] @ head.T
        _launch(logits, targets[chunk], losses[chunk], logits if with_gradient else None, 1 / len(targets))
        if with_gradient:  # the logits are their own gradient by now
            torch.mm(logits, head, out=dx[chunk])
            sum_VC += logits.T @ x[chunk]
    return losses, dx, dhead.copy_(sum_VC)


def _launch(logits: Tensor, targets: Tensor, losses: Tensor, gradient: Tensor | None, scale: float) -> None:
    rows, vocabulary = logits.shape
    into = logits if gradient is None else gradient
    if (min(vocabulary, block_v(vocabulary)) - 1) * logits.stride(1) >= 2**31:  # within a tile offsets have 32 bits
        raise ValueError(
            f"cross_entropy: backend=triton: logits of shape {tuple(logits.shape)} has strides {logits.stride()}; "
            "make it contiguous"
        )
    with _on(logits.device):
        kernels.cross_entropy[(rows,)](
            logits, targets, losses, into, *logits.stride(), into.stride(0), vocabulary, scale,
            block_v(vocabulary), gradient is not None, **launch(vocabulary),
        )  # fmt: skip


def block_v(vocabulary: int) -> int:
    """Logits of a tile."""
    return min(MAX_BLOCK_V, max(128, triton.next_power_of_2(vocabulary)))


def launch(vocabulary: int) -> dict[str, int | bool]:
    """Options of the compiler: as many warps as leave 16 logits of a tile to each thread."""
    return {"num_warps": max(1, min(8, block_v(vocabulary) // 512)), "enable_fp_fusion": True}


@torch.library.register_fake("sweep::scale_")
def _scale_fake(x: Tensor, factor: Tensor) -> None:
    return None


@torch.library.register_fake("sweep::cross_entropy")
def _cross_entropy_fake(logits: Tensor, targets: Tensor, with_gradient: bool) -> tuple[Tensor, Tensor]:
    return logits.new_empty(targets.shape[0], dtype=torch.float32), logits.new_empty(
        logits.shape if with_gradient else (0,)
    )


@torch.library.register_fake("sweep::linear_cross_entropy")
def _linear_cross_entropy_fake(
    x: Tensor, head: Tensor, targets: Tensor, chunk_rows: int, with_gradient: bool
) -> tuple[Tensor, Tensor, Tensor]:
    shapes = (x.shape, head.shape) if with_gradient else ((0,), (0,))
    return x.new_empty(targets.shape[0], dtype=torch.float32), x.new_empty(shapes[0]), head.new_empty(shapes[1])


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on the current device, which need not be the tensors'."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
