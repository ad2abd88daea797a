"""A step that never waits for the host: data on the device, and on CUDA the whole step as one graph.

What a step takes from the host (which sequences, which learning rate) lies in tensors that are written before it, and
everything else stays on the device. So the same step runs eagerly, on the CPU too, and captured.

Shape suffixes: K slots, B sequences, T tokens of a sequence, N windows of a stream.
"""

import gc
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

WARM_UP_STEPS = 3  # torch.compile, cuBLAS workspaces and the allocator's blocks must all be there before the capture


def resident(tokens_1d: Any, device: str) -> Tensor:
    """A stream of uint16 or uint32 tokens on the device, as the signed type of its size, which torch can index.

    On the CPU it is the mapped file itself: nothing is copied, and nothing must write to it.
    """
    signed = np.asarray(tokens_1d).view({2: np.int16, 4: np.int32}[tokens_1d.dtype.itemsize])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(signed).to(device)


def gather(tokens_1d: Tensor, windows_KB: Tensor, seq_len: int) -> Tensor:
    """The windows of these numbers, inputs and one more token each: (K, B, seq_len + 1) int64 ids."""
    count = (len(tokens_1d) - 1) // seq_len
    windows_NT = tokens_1d.as_strided((count, seq_len + 1), (seq_len, 1))
    ids_KBT = windows_NT[windows_KB].long()
    return ids_KBT & 0xFFFF if tokens_1d.dtype == torch.int16 else ids_KBT


def captured(step: Callable[[], None]) -> Callable[[], None]:
    """`step` as one CUDA graph. It is run to warm up, so whatever it changes must not matter yet.

    Warmed up and captured on a stream of its own: PyTorch's stream for captures is one for all graphs, and with the
    first of them its cuBLAS workspace would go, whose address the others hold (pytorch issue 175276).
    """
    gc.collect()  # not while capturing: what is freed there may need the device
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP_STEPS):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        step()
    return graph.replay
