"""Softmax cross-entropy of logits, and of a projection's logits, by the backend that was named.

- `torch`: PyTorch's own, on fp32 logits.
- `triton`: our kernel (`cross_entropy_op.py`, `triton_cross_entropy.py`), where the `triton` attention runs.
- `reference`: the specification.

Shape suffixes: R rows (tokens), V vocabulary, C width; leading dimensions may be more than one.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels import reference
from kernels.attention import TRITON_TYPES, obstacle

FUSED_FROM_VOCABULARY = 32_768  # from here on the logits of a batch outgrow everything else that a step keeps
CHUNK_LOGITS = 2**27  # of the fused form, at a time
NO_TARGET = -(2**31)  # what PyTorch is told to skip, instead of its -100


def cross_entropy(logits_RV: Tensor, targets_R: Tensor, *, backend: str = "torch") -> Tensor:
    """Mean over rows of log Σ exp(logits) - logits[target], in nats, an fp32 scalar; NaN of no rows.

    No target is skipped: one outside the vocabulary is an error, or NaN from `triton`, which would have to wait for the
    device to raise it. ValueError for an unknown backend, arguments that do not fit together, and what a backend cannot
    run. `triton` makes the gradient with the loss and scales it in place: a second backward through one loss is a
    RuntimeError.
    """
    if backend not in BACKENDS:
        raise ValueError(f"cross_entropy: backend={backend}: must be one of {', '.join(BACKENDS)}")
    _check(logits_RV.shape, logits_RV.device, targets_R)
    return BACKENDS[backend](logits_RV, targets_R)


def linear_cross_entropy(x_BTC: Tensor, head_VC: Tensor, targets_BT: Tensor, *, backend: str = "torch") -> Tensor:
    """The same of the logits x·headᵀ. `triton` never holds all of them at once for a large vocabulary, or compiled."""
    _check_projection(x_BTC, head_VC, targets_BT)
    # The compiler would copy the gradient that the plain form scales in place; the fused form gives it nothing to copy.
    plain = head_VC.shape[0] < FUSED_FROM_VOCABULARY and not torch.compiler.is_compiling()
    if backend != "triton" or plain:
        return cross_entropy(F.linear(x_BTC, head_VC).flatten(0, -2), targets_BT.flatten(), backend=backend)
    if torch.is_autocast_enabled(x_BTC.device.type):
        dtype = torch.get_autocast_dtype(x_BTC.device.type)
        x_BTC, head_VC = x_BTC.to(dtype), head_VC.to(dtype)
    x_RC, targets_R = x_BTC.flatten(0, -2), targets_BT.flatten()
    _check((x_RC.shape[0], head_VC.shape[0]), x_RC.device, targets_R)
    _check_triton(x_RC)
    from kernels import cross_entropy_op  # Triton exists on Linux only

    chunk_rows = max(1, CHUNK_LOGITS // max(1, head_VC.shape[0]))
    return cross_entropy_op.linear_cross_entropy(x_RC, head_VC, targets_R.contiguous(), chunk_rows)


def backend_beside(attention_backend: str) -> str:
    """The backend of the loss in a model whose attention runs by `attention_backend`."""
    return "triton" if attention_backend == "triton" else "torch"


def _check(logits_shape: tuple[int, ...], device: torch.device, targets_R: Tensor) -> None:
    if len(logits_shape) != 2 or targets_R.shape != logits_shape[:1]:
        raise ValueError(
            f"cross_entropy: targets has shape {tuple(targets_R.shape)} and logits {tuple(logits_shape)}; "
            "they must be (R,) and (R, V)"
        )
    if targets_R.dtype != torch.int64 or targets_R.device != device:
        raise ValueError(
            f"cross_entropy: targets is {targets_R.dtype} on {targets_R.device}; it must be int64 on {device}"
        )


def _check_projection(x_BTC: Tensor, head_VC: Tensor, targets_BT: Tensor) -> None:
    """What flattening would hide, and what PyTorch would say in its own words or, of devices, in none."""
    if x_BTC.ndim < 2 or head_VC.ndim != 2 or head_VC.shape[1] != x_BTC.shape[-1]:
        raise ValueError(
            f"linear_cross_entropy: head has shape {tuple(head_VC.shape)} and x {tuple(x_BTC.shape)}; "
            "they must be (V, C) and (…, C)"
        )
    cast = torch.is_autocast_enabled(x_BTC.device.type)  # makes them agree
    if head_VC.device != x_BTC.device or (head_VC.dtype != x_BTC.dtype and not cast):
        raise ValueError(
            f"linear_cross_entropy: head is {head_VC.dtype} on {head_VC.device}, x is {x_BTC.dtype} on {x_BTC.device}; "
            "they must agree"
        )
    if targets_BT.shape != x_BTC.shape[:-1]:
        raise ValueError(
            f"linear_cross_entropy: targets has shape {tuple(targets_BT.shape)}; "
            f"with x of {tuple(x_BTC.shape)} it must be {tuple(x_BTC.shape[:-1])}"
        )


def _check_triton(logits: Tensor) -> None:
    why_not = obstacle("triton", logits.device.type)
    if why_not is None and logits.dtype not in TRITON_TYPES:
        why_not = f"logits is {logits.dtype}; float16, bfloat16 and float32 are supported"
    if why_not:
        raise ValueError(f"cross_entropy: backend=triton: {why_not}; use backend=torch")


def _torch(logits_RV: Tensor, targets_R: Tensor) -> Tensor:
    return F.cross_entropy(logits_RV.float(), targets_R, ignore_index=NO_TARGET)


def _triton(logits_RV: Tensor, targets_R: Tensor) -> Tensor:
    _check_triton(logits_RV)
    from kernels import cross_entropy_op  # Triton exists on Linux only

    return cross_entropy_op.cross_entropy(logits_RV, targets_R.contiguous())


BACKENDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "torch": _torch,
    "triton": _triton,
    "reference": reference.cross_entropy,
}
