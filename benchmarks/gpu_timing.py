"""Timing on a CUDA device: contenders in rotated order, cold L2, device events, medians; the chip's two ceilings."""

import statistics
from collections.abc import Callable

import torch

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


def one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
