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

FUSED_FROM_VOCABULARY = 32_768  # from here on the logits of a batch outgrow everything else that a step keeps
CHUNK_LOGITS = 2**27  # of the fused form, at a time


def cross_entropy(logits_RV: Tensor, targets_R: Tensor, *, backend: str = "torch") -> Tensor:
    """Mean over rows of log Σ exp(logits) - logits[target], in nats, an fp32 scalar.

    ValueError for an unknown backend and arguments that do not fit together.
    """
    if backend not in BACKENDS:
        raise ValueError(f"cross_entropy: backend={backend}: must be one of {', '.join(BACKENDS)}")
    _check(logits_RV.shape, logits_RV.device, targets_R)
    return BACKENDS[backend](logits_RV, targets_R)


def linear_cross_entropy(x_BTC: Tensor, head_VC: Tensor, targets_BT: Tensor, *, backend: str = "torch") -> Tensor:
    """The same of the logits x·headᵀ. `triton` never holds all of them at once for a large vocabulary."""
    if backend != "triton" or len(head_VC) < FUSED_FROM_VOCABULARY:
        return cross_entropy(F.linear(x_BTC, head_VC).flatten(0, -2), targets_BT.flatten(), backend=backend)
    if torch.is_autocast_enabled(x_BTC.device.type):
        dtype = torch.get_autocast_dtype(x_BTC.device.type)
        x_BTC, head_VC = x_BTC.to(dtype), head_VC.to(dtype)
    x_RC, targets_R = x_BTC.flatten(0, -2), targets_BT.flatten()
    _check((len(x_RC), len(head_VC)), x_RC.device, targets_R)
    from kernels import cross_entropy_op  # Triton exists on Linux only

    return cross_entropy_op.linear_cross_entropy(x_RC, head_VC, targets_R, max(1, CHUNK_LOGITS // len(head_VC)))


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


def _torch(logits_RV: Tensor, targets_R: Tensor) -> Tensor:
    return F.cross_entropy(logits_RV.float(), targets_R)


def _triton(logits_RV: Tensor, targets_R: Tensor) -> Tensor:
    from kernels import cross_entropy_op  # Triton exists on Linux only

    return cross_entropy_op.cross_entropy(logits_RV, targets_R)


BACKENDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "torch": _torch,
    "triton": _triton,
    "reference": reference.cross_entropy,
}
