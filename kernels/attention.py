"""Causal self-attention, by the backend that was named. Nothing falls back in silence to another one.

- `triton`: our kernels (`attention_op.py`, `triton_attention.py`), on CUDA from compute capability 8.0 on.
- `sdpa`: PyTorch's fused attention, everywhere. A window or documents make it build a (T, T) mask.
- `cudnn`: the same call, with cuDNN's kernels and no others.
- `reference`: the specification.

To add a backend: a function with `_sdpa`'s signature, in its own file if it is long, an entry in `BACKENDS`, what it
needs in `obstacle`, and a line in `resolve_backend` if "auto" should pick it on some device.

Shape suffixes: B batch, T tokens, H query heads, K key/value heads, D head dimension.
"""

import importlib.util
import os
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from kernels import reference
from kernels.configurations import MAX_HEAD_DIM, OLDEST, is_checked

HALF = (torch.float16, torch.bfloat16)
TRITON_TYPES = (*HALF, torch.float32)
HAS_TRITON = importlib.util.find_spec("triton") is not None  # torch.compile cannot trace the search
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)  # what torch.searchsorted takes


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

    `window`: how many keys a query sees, itself included; 0 for all. `documents_BT`: integer document ids, which
    must not decrease along T; a query sees only keys with its own id. K < H means grouped queries: K must divide H.
    Any strides. ValueError for an unknown backend, arguments that do not fit together, and what a backend cannot run.
    """
    check_backend(backend, q_BTHD.shape[-1])
    _check(q_BTHD, k_BTKD, v_BTKD, window, documents_BT)
    tokens = q_BTHD.shape[1]
    window = 0 if window >= tokens else window  # such a window hides nothing
    return BACKENDS[backend](q_BTHD, k_BTKD, v_BTKD, window=window, documents_BT=documents_BT)


def resolve_backend(name: str, device: str, head_dim: int = 1) -> str:
    """The backend that `run.backend` means on a device type ("cpu", "cuda") for a head dimension.

    "auto" is our kernels where they are known to work: on a model of GPU, with a version of Triton, on which
    `python -m benchmarks.attention` and `benchmarks.cross_entropy` found every number right, of the kernels as they
    are now; elsewhere sdpa. ValueError for a name that is unknown or cannot run here.
    """
    if name == "auto":
        return "triton" if device == "cuda" and _triton_is_known_to_work(head_dim) else "sdpa"
    if name not in BACKENDS:
        raise ValueError(f"run.backend={name}: must be one of auto, {', '.join(BACKENDS)} (on {device})")
    why_not = obstacle(name, device, head_dim)
    if why_not:
        raise ValueError(f"run.backend={name}: {why_not}; use run.backend=sdpa")
    return name


def check_backend(name: str, head_dim: int) -> None:
    """ValueError for a model that no device could run with this backend."""
    if name not in BACKENDS:
        raise ValueError(f"run.backend={name}: must be one of {', '.join(BACKENDS)}")
    if name == "triton" and not 1 <= head_dim <= MAX_HEAD_DIM:
        raise ValueError(f"run.backend=triton: {_unsupported(head_dim)}; use run.backend=sdpa")


def _triton_is_known_to_work(head_dim: int) -> bool:
    if obstacle("triton", "cuda", head_dim):
        return False
    import triton

    return is_checked(torch.cuda.get_device_name(), triton.__version__)


def obstacle(name: str, device: str, head_dim: int = 1) -> str | None:
    """Why a backend cannot run on a device type, or None."""
    if name == "triton":
        if not 1 <= head_dim <= MAX_HEAD_DIM:
            return _unsupported(head_dim)
        if not HAS_TRITON:
            return "triton is not installed here (it exists on Linux only)"
        if device == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
            return "needs a CUDA device, and run.device is cpu (TRITON_INTERPRET=1 runs it there, slowly, for tests)"
        if device == "cuda" and torch.cuda.get_device_capability() < OLDEST:
            return "needs compute capability {}.{} or later, and {} has {}.{}".format(
                *OLDEST, torch.cuda.get_device_name(), *torch.cuda.get_device_capability()
            )
    if name == "cudnn" and device != "cuda":
        return f"needs a CUDA device, and run.device is {device}"
    return None


def _unsupported(head_dim: int) -> str:
    return f"model.head_dim={head_dim} is not supported, 1 to {MAX_HEAD_DIM} are"


def _check(q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor, window: int, documents_BT: Tensor | None) -> None:
    """One line that names the argument that does not fit the others."""
    if q_BTHD.ndim != 4:
        raise ValueError(f"attention: q has shape {tuple(q_BTHD.shape)}; it must be (B, T, H, D)")
    B, T, H, D = q_BTHD.shape
    for name, x in (("k", k_BTKD), ("v", v_BTKD)):
        if x.ndim != 4 or x.shape[:2] != (B, T) or x.shape[3] != D or x.shape[2] != k_BTKD.shape[2]:
            raise ValueError(
                f"attention: {name} has shape {tuple(x.shape)}; with q of {tuple(q_BTHD.shape)} k and v must both be "
                f"({B}, {T}, K, {D})"
            )
        if x.dtype != q_BTHD.dtype or x.device != q_BTHD.device:
            raise ValueError(
                f"attention: {name} is {x.dtype} on {x.device}, q is {q_BTHD.dtype} on {q_BTHD.device}; they must agree"
            )
    if k_BTKD.shape[2] == 0 or H % k_BTKD.shape[2]:
        raise ValueError(f"attention: k has {k_BTKD.shape[2]} heads, which do not divide q's {H}")
    if not isinstance(window, int) or window < 0:
        raise ValueError(f"attention: window={window}; use 0 for no window, or a whole number of tokens")
    if documents_BT is None:
        return
    if documents_BT.shape != (B, T) or documents_BT.device != q_BTHD.device or documents_BT.dtype not in INTEGERS:
        raise ValueError(
            f"attention: documents is {documents_BT.dtype} of shape {tuple(documents_BT.shape)} on "
            f"{documents_BT.device}; it must hold int8 to int64 or uint8, of shape ({B}, {T}) on {q_BTHD.device}"
        )


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


def _cudnn(q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor, *, window: int, documents_BT: Tensor | None) -> Tensor:
    """cuDNN's kernels or an error: PyTorch's own choice on Hopper is the slower FlashAttention-2."""
    if q_BTHD.device.type != "cuda" or q_BTHD.dtype not in HALF:
        raise ValueError(
            f"run.backend=cudnn: q is {q_BTHD.dtype} on {q_BTHD.device}; float16 and bfloat16 on cuda are supported"
        )
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return _sdpa(q_BTHD, k_BTKD, v_BTKD, window=window, documents_BT=documents_BT)


def _triton(q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor, *, window: int, documents_BT: Tensor | None) -> Tensor:
    why_not = obstacle("triton", q_BTHD.device.type, q_BTHD.shape[3])
    if why_not:
        raise ValueError(f"run.backend=triton: {why_not}")
    if q_BTHD.dtype not in TRITON_TYPES:
        raise ValueError(f"run.backend=triton: q is {q_BTHD.dtype}; float16, bfloat16 and float32 are supported")
    from kernels import attention_op  # Triton exists on Linux only

    return attention_op.attention(q_BTHD, k_BTKD, v_BTKD, window, documents_BT)


BACKENDS: dict[str, Callable[..., Tensor]] = {
    "sdpa": _sdpa,
    "cudnn": _cudnn,
    "triton": _triton,
    "reference": reference.attention,
}
