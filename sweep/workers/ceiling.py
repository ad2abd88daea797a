"""The fastest matrix product that a device was measured to do: the denominator of MFU.

It is measured once for each device, precision and number of threads, and kept in `runs/ceilings.jsonl`.
"""

import time
from functools import cache
from pathlib import Path

import torch

from sweep.common.devices import device_model
from sweep.common.files import append_json, read_json_lines

SIZES = {"cpu": (256, 512), "cuda": (4096, 8192)}  # the first sizes at which each is at its fastest
REPEATS = 8


def flops_ceiling(runs: Path, device: str, precision: str) -> float:
    """FLOPs per second of the best square product, in the precision that matrix products of a trial run in."""
    key = {"device": device_model(device), "precision": precision}
    if device == "cpu":
        key["threads"] = str(torch.get_num_threads())
    path = runs / "ceilings.jsonl"
    for row in read_json_lines(path):
        if all(row.get(name) == value for name, value in key.items()):
            return row["flops_per_second"]
    measured = _measure(device, precision, torch.get_num_threads())
    append_json(path, {**key, "flops_per_second": measured})
    return measured


@cache
def _measure(device: str, precision: str, threads: int) -> float:
    """At the number of threads that torch has now."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    best = 0.0
    for size in SIZES[device]:
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        for _ in range(REPEATS):
            _wait(device)
            start = time.perf_counter()
            a @ b
            _wait(device)
            best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
