"""Launch parameters of the Triton kernels, read from `configurations.json`; nothing is tuned while training.

The file lists, per architecture, kernel, element size and padded head dimension, the tile and the warps. A row's
`origin` says where it comes from: "ahead of time" (chosen from registers and shared memory, never timed) or the
device on which `python -m benchmarks.tune_attention` measured it. `checked.json` lists the devices and versions on
which `python -m benchmarks.attention` and `benchmarks.cross_entropy` found every number right; only there, and only
until kernels or tiles change, does `run.backend=auto` pick these kernels.
"""

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import torch

PATH = Path(__file__).with_name("configurations.json")
CHECKED = Path(__file__).with_name("checked.json")
COMPILED = ("triton_*.py", "*_op.py", "configurations.*")  # the kernels and what launches them: what numbers depend on
PARTS = ("attention", "cross_entropy")  # of which each has its check, and `auto` takes both or neither
KERNELS = ("forward", "backward_q", "backward_kv")
OLDEST = (8, 0)  # compute capability; before it there is no bf16 on tensor cores and no asynchronous copy
MAX_HEAD_DIM = 128
INTERPRETER = "interpreter"


@dataclass(frozen=True)
class Configuration:
    """A program's tile (queries × keys), its warps, and how many tiles are loaded ahead."""

    block_q: int
    block_k: int
    num_warps: int
    num_stages: int

    def launch(self) -> dict[str, int | bool]:
        """Options of the compiler. Fusing products and sums is named because Triton 3.10 stops doing it by default."""
        return {"num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": True}


@dataclass(frozen=True)
class Key:
    """What a configuration is for. `block_d` is the padded head dimension."""

    architecture: str
    kernel: str
    element_bytes: int
    block_d: int


def block_d(head_dim: int) -> int:
    """The head dimension inside the kernels: a power of two that tensor cores can multiply."""
    return max(16, 1 << (head_dim - 1).bit_length())


@cache
def shipped() -> dict[Key, Configuration]:
    """Every row of the file."""
    return {
        Key(**{name: row[name] for name in Key.__dataclass_fields__}): Configuration(
            **{name: row[name] for name in Configuration.__dataclass_fields__}
        )
        for row in _file()["rows"]
    }


@cache
def configuration(architecture: str, kernel: str, element_bytes: int, head_dim: int) -> Configuration:
    """The row for this architecture, or the safe default (the smallest chip's) for one that is not listed."""
    listed = shipped()
    wanted = Key(architecture, kernel, element_bytes, block_d(head_dim))
    if wanted in listed:
        return listed[wanted]
    return listed[Key(_file()["default"], kernel, element_bytes, block_d(head_dim))]


@cache
def architecture_of(device: torch.device) -> str:
    """ "sm_90" and the like; "interpreter" for the CPU."""
    if device.type != "cuda":
        return INTERPRETER
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


@cache
def source_hash() -> str:
    """Of what is compiled: the kernels, their launches and their configurations."""
    files = sorted(file for pattern in COMPILED for file in PATH.parent.glob(pattern))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


def is_checked(device_name: str, triton: str) -> bool:
    """Whether the numbers of these very kernels were all found right on this model of device with this Triton."""
    here = (device_name, triton, source_hash())
    return {e["part"] for e in checked() if (e["device"], e["triton"], e["source"]) == here} >= set(PARTS)


def enter_as_checked(part: str, device_name: str, triton: str) -> None:
    """Into `checked.json`: the numbers of one of PARTS are right, as the kernels are now."""
    entry = {
        "part": part, "device": device_name, "triton": triton, "torch": torch.__version__,
        "source": source_hash(), "date": datetime.now(UTC).date().isoformat(),
    }  # fmt: skip
    others = [e for e in checked() if (e["part"], e["device"], e["triton"]) != (part, device_name, triton)]
    CHECKED.write_text(json.dumps([*others, entry], indent=1) + "\n")


def checked() -> list[dict[str, str]]:
    """The content of `checked.json`."""
    return json.loads(CHECKED.read_text())


@cache
def _file() -> dict:
    return json.loads(PATH.read_text())
