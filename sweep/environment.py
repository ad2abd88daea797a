"""What a trial ran on: enough to say whether two results should be bit-equal, and with which code they were made."""

import gc
import hashlib
import importlib.metadata
import json
import os
import platform
import socket
from functools import cache
from pathlib import Path
from typing import Any

from sweep.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
# Files whose change can change a loss. Which backend `auto` takes (kernels/checked.json) is in the execution class.
TRAINING_CODE = (
    "kernels/*.py",
    "kernels/configurations.json",
    "models/*.py",
    "sweep/training/checkpoint.py",
    "sweep/training/family.py",
    "sweep/training/loop.py",
    "sweep/training/setup.py",
    "sweep/training/curve.py",
    "sweep/training/evaluation.py",
    "sweep/training/optim.py",
    "sweep/training/stack.py",
    "sweep/training/graph.py",
    "sweep/schedule.py",
    "sweep/data/tokens.py",
)


@cache
def code_hash() -> str:
    """The identity of the code that trains, wherever its copy lies."""
    digest = hashlib.sha256()
    for pattern in TRAINING_CODE:
        for path in sorted(ROOT.glob(pattern)):
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


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


def describe(device: str, backend: str, options: dict[str, Any], stack: int | None = None) -> dict[str, Any]:
    """The content of `env.json`. `class` holds what decides rounding; equal classes give equal bits.

    `stack`: how many slots the trial was trained in one of; None for a trial alone.
    """
    rounding = {
        "device_model": device_model(device),
        "cpu_capability": _cpu_capability() if device == "cpu" else None,
        "torch": importlib.metadata.version("torch"),
        "numpy": importlib.metadata.version("numpy"),
        "triton": _version("triton") if device == "cuda" else None,
        "cuda": _cuda_version() if device == "cuda" else None,
        "threads": options["threads"] if device == "cpu" else None,
        "backend": backend,
        "compile": options["compile"],
        "micro_batch_sequences": options["micro_batch_sequences"],
        "deterministic": options["deterministic"],
        "stack": stack,
    }
    return {
        "execution_class": class_hash(rounding),
        "class": rounding,
        "device": device,
        "code_hash": code_hash(),
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
        "options": options,
    }


def class_hash(rounding: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(rounding, sort_keys=True).encode()).hexdigest()[:10]


def _cpu_capability() -> str:
    import torch

    return torch.backends.cpu.get_cpu_capability()


def _cuda_version() -> str:
    import torch

    return str(torch.version.cuda)


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
