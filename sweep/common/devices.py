"""The device that training runs on here: which there is, its name, its memory, the attention backend it takes.

torch is imported only where a GPU is asked for: plans for another machine, and whatever reads results, do without.
"""

import gc
import os
import platform
from functools import cache
from pathlib import Path

from sweep.common.errors import UserError

DEVICE_SHARE = "SWEEP_DEVICE_SHARE"  # in a worker's environment: how much of its device it has


def resolve_device(asked: str) -> str:
    """ "cpu" or "cuda" for this process; asking for a GPU where there is none is an error."""
    if asked == "cpu":
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if asked == "cuda":
        raise UserError("run.device=cuda: torch sees no CUDA device here; use run.device=cpu, or a machine with a GPU")
    return "cpu"


def planned_device(asked: str) -> str:
    """ "cpu" or "cuda" for a plan, which may be made where there is no GPU."""
    return asked if asked == "cuda" else resolve_device(asked)


def attention_backend(asked: str, device: str, head_dim: int = 1) -> str:
    """The attention backend that `run.backend` means on this device for a head dimension."""
    from kernels.attention import resolve_backend

    try:
        return resolve_backend(asked, device, head_dim)
    except ValueError as error:
        raise UserError(str(error)) from error


@cache
def device_model(device: str) -> str:
    """The marketing name of the CPU or GPU."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def device_memory_bytes(device: str) -> int:
    """What one trial may use: the GPU's memory, or this machine's."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_properties(0).total_memory
    import psutil

    return psutil.virtual_memory().total


def free_memory(device: str) -> None:
    """Give back what nobody holds any more: what comes next finds the device's memory, and a peak of its own."""
    gc.collect()
    if device == "cuda":
        import torch

        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def device_share() -> float:
    """How much of its device this process was given by who started it."""
    return float(os.environ.get(DEVICE_SHARE, "1"))
