"""Timing on a CUDA device: contenders in rotated order, cold L2, device events, medians; the chip's two ceilings.

And what comes before it: checks with poisoned outputs, and compilation of many launches at once.
"""

import os
import statistics
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import triton

FLUSH_BYTES = 2**29  # several times any L2
LEAD_CYCLES = 2_000_000  # about a millisecond


def median_seconds(contenders: dict[str, Callable[[], object]], rounds: int = 25) -> dict[str, float]:
    """Each contender's median over rounds; in round r the order starts with contender r."""
    names = list(contenders)
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")
    for run in contenders.values():
        run(), run()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for r in range(rounds):
        for name in names[r % len(names) :] + names[: r % len(names)]:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            flush.zero_()
            torch.cuda._sleep(LEAD_CYCLES)  # until everything is in the queue: the host's time is not to be measured
            begin.record()
            contenders[name]()
            end.record()
            end.synchronize()
            seconds[name].append(begin.elapsed_time(end) / 1e3)
    return {name: statistics.median(values) for name, values in seconds.items()}


def matmul_tflops(dtype: torch.dtype = torch.bfloat16, size: int = 8192) -> float:
    """What a large square product of random matrices reaches: the ceiling of matrix-bound code."""
    a, b = (torch.randn(size, size, device="cuda", dtype=dtype) for _ in range(2))
    return 2 * size**3 / median_seconds({"matmul": lambda: a @ b})["matmul"] / 1e12


def copy_bytes_per_second(size: int = 2**31) -> float:
    """What a large copy reaches, reads and writes counted: the ceiling of memory-bound code."""
    source = torch.empty(size, dtype=torch.int8, device="cuda").random_()
    target = torch.empty_like(source)
    return 2 * size / median_seconds({"copy": lambda: target.copy_(source)})["copy"]


def usable(contenders: dict[str, Callable[[], object]]) -> tuple[dict[str, Callable[[], object]], dict[str, str]]:
    """Those that run, and why the others do not."""
    run, why_not = {}, {}
    for name, contender in contenders.items():
        try:
            contender()
        except (RuntimeError, ImportError, ValueError) as error:
            why_not[name] = one_line(error)
        else:
            run[name] = contender
    return run, why_not


@contextmanager
def poisoned() -> Iterator[None]:
    """Every new tensor starts as NaN: what a kernel does not write shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def faults(checks: Iterable[tuple[str, Callable[[], Iterable[str]]]]) -> list[str]:
    """What is wrong, a line each. The first error ends it: after an illegal access every later call fails too."""
    found: list[str] = []
    for what, check in checks:
        before = len(found)
        try:
            for line in check():
                found.append(f"{what}: {line}")
        except Exception as error:  # noqa: BLE001 — what was found before must be reported whatever happens
            return [*found, f"{what}: {one_line(error)}"]
        print(what, "; ".join(found[before:]) or "right", flush=True)
    return found


@contextmanager
def compiling() -> Iterator[None]:
    """Triton's launches compile here, on all cores at once, and run nothing. What fails to, fails again when run."""

    def only_compile(kernel: Any, grid: Any) -> Callable[..., object]:
        return lambda *args, **options: kernel.run(*args, grid=grid, warmup=True, **options)

    with (
        mock.patch.object(triton.JITFunction, "__getitem__", only_compile),
        ThreadPoolExecutor(os.cpu_count()) as pool,
        triton.AsyncCompileMode(pool, ignore_errors=True),
    ):
        yield


def one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
