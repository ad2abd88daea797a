"""Causal self-attention, by the backend that was named. Nothing falls back in silence to another one.

To add a backend: a function with `_sdpa`'s signature, in its own file if it is long, an entry in `BACKENDS`,
and a line in `resolve_backend` if "auto" should pick it on some device.

Shape suffixes: B batch, T tokens, H query heads, K key/value heads, D head dimension.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels import reference


def attention(
    q_BTHD: Tensor,
    k_BTKD: Tensor,
    v_BTKD: Tensor,
    *,
    window: int = 0,
    documents_BT: Tensor | None = None,
    backend: str = "sdpa",
) -> Tensor:
    """Each query attends to itself and what came before it, scaled by 1/√D → out_BTHD.

    `window`: how many keys a query sees, itself included; 0 for all. `documents_BT`: integer document ids; a
    query sees only keys with its own id. K < H means grouped queries: K must divide H. ValueError for an
    unknown backend.
    """
    if backend not in BACKENDS:
        raise ValueError(f"run.backend={backend}: must be one of {', '.join(BACKENDS)}")
    tokens = q_BTHD.shape[1]
    window = 0 if window >= tokens else window  # such a window hides nothing
    return BACKENDS[backend](q_BTHD, k_BTKD, v_BTKD, window=window, documents_BT=documents_BT)


def resolve_backend(name: str, device: str) -> str:
    """The backend that `run.backend` means on a device type ("cpu", "cuda"); ValueError if there is none."""
    if name == "auto":
        return "sdpa"
    if name not in BACKENDS:
        raise ValueError(f"run.backend={name}: must be one of auto, {', '.join(BACKENDS)} (on {device})")
    return name


def _sdpa(q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor, *, window: int, documents_BT: Tensor | None) -> Tensor:
    """PyTorch's fused attention, fastest when it is told that the mask is plainly causal and none is built."""
    mask = None
    if window or documents_BT is not None:
        mask = _visible(q_BTHD.shape[1], window, documents_BT, q_BTHD.device)
    out_BHTD = F.scaled_dot_product_attention(
        q_BTHD.transpose(1, 2),
        k_BTKD.transpose(1, 2),
        v_BTKD.transpose(1, 2),
        attn_mask=mask,
        is_causal=mask is None,
        enable_gqa=q_BTHD.shape[2] != k_BTKD.shape[2],
    )
    return out_BHTD.transpose(1, 2)


def _visible(tokens: int, window: int, documents_BT: Tensor | None, device: torch.device) -> Tensor:
    """True where a query (row) sees a key (column): (T, T), or (B, 1, T, T) with documents."""
    seen = torch.ones(tokens, tokens, dtype=torch.bool, device=device).tril()
    if window:
        seen = seen.triu(1 - window)
    if documents_BT is not None:
        seen = seen & (documents_BT[:, None, :, None] == documents_BT[:, None, None, :])
    return seen


BACKENDS: dict[str, Callable[..., Tensor]] = {"sdpa": _sdpa, "reference": reference.attention}
