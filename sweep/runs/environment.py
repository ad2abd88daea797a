"""What a trial ran on: enough to say whether two results should be bit-equal, and with which code they were made."""

import hashlib
import importlib.metadata
import json
import os
import platform
import socket
from functools import cache
from typing import Any

from sweep.common.checkout import ROOT
from sweep.common.devices import device_model

# Files whose change can change a loss. Which backend `auto` takes (kernels/checked.json) is in the execution class.
TRAINING_CODE = (
    "kernels/*.py",
    "kernels/configurations.json",
    "models/*.py",
    "sweep/train/checkpoint.py",
    "sweep/train/family.py",
    "sweep/train/loop.py",
    "sweep/train/setup.py",
    "sweep/train/curve.py",
    "sweep/train/evaluation.py",
    "sweep/train/optim.py",
    "sweep/train/stack.py",
    "sweep/train/cuda_graph.py",
    "sweep/plan/schedule.py",
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
