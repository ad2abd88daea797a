"""What a trial ran on: enough to say whether two results should be bit-equal, and with which code they were made."""

import hashlib
import importlib.metadata
import json
import os
import platform
import socket
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from sweep.common.checkout import ROOT
from sweep.common.devices import device_model
from sweep.common.files import write_json
from sweep.config.schema import RunOptions

# Whose change can change a loss: folders with all of their modules, and single files. What lies elsewhere and decides
# rounding (versions, threads, which backend `auto` takes) is in the execution class.
TRAINING_CODE = (
    "kernels",
    "kernels/configurations.json",
    "models",
    "sweep/train",
    "sweep/data/tokens.py",
    "sweep/plan/schedule.py",
)


def training_files() -> list[Path]:
    """Every file of the code that trains, in a fixed order."""
    found: list[Path] = []
    for name in TRAINING_CODE:
        path = ROOT / name
        found += sorted(path.rglob("*.py")) if path.is_dir() else [path]
    return found


@cache
def code_hash() -> str:
    """The identity of the code that trains, wherever its copy lies. It is recorded; no run is refused because of it."""
    digest = hashlib.sha256()
    for path in training_files():
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


@dataclass(frozen=True)
class Rounding:
    """What decides how a trial's numbers are rounded. None where it plays no part on the device."""

    device_model: str
    cpu_capability: str | None  # the vector instructions that torch uses
    torch: str
    numpy: str
    triton: str | None
    cuda: str | None
    threads: int | None
    backend: str  # of attention
    compile: bool
    micro_batch_sequences: int | None
    deterministic: bool
    stack: int | None  # slots of the stack that the trial was trained in; None for a trial alone

    @property
    def execution_class(self) -> str:
        """Equal classes give equal bits."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:10]


@dataclass(frozen=True)
class Environment:
    """What a trial is trained on: the content of `env.json`, where `rounding` is called `class`."""

    execution_class: str
    rounding: Rounding
    device: str
    code_hash: str
    host: str
    python: str
    platform: str
    slurm_job: str | None
    options: RunOptions

    def write(self, path: Path) -> None:
        """Write `env.json`."""
        write_json(path, {"class" if key == "rounding" else key: value for key, value in asdict(self).items()})


def describe(device: str, backend: str, options: RunOptions, stack: int | None = None) -> Environment:
    """The environment of this process, training on `device` in a stack of so many slots, or alone."""
    rounding = Rounding(
        device_model=device_model(device),
        cpu_capability=_cpu_capability() if device == "cpu" else None,
        torch=importlib.metadata.version("torch"),
        numpy=importlib.metadata.version("numpy"),
        triton=_version("triton") if device == "cuda" else None,
        cuda=_cuda_version() if device == "cuda" else None,
        threads=options.threads if device == "cpu" else None,
        backend=backend,
        compile=options.compile,
        micro_batch_sequences=options.micro_batch_sequences,
        deterministic=options.deterministic,
        stack=stack,
    )
    return Environment(
        execution_class=rounding.execution_class,
        rounding=rounding,
        device=device,
        code_hash=code_hash(),
        host=socket.gethostname(),
        python=platform.python_version(),
        platform=platform.platform(),
        slurm_job=os.environ.get("SLURM_JOB_ID"),
        options=options,
    )


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
