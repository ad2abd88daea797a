"""Timing on a CUDA device: contenders in rotated order, a cold L2 cache, device events, medians; and two ceilings."""

import statistics
from collections.abc import Callable

import torch

FLUSH_BYTES = 2**29  # several times the size of any L2 cache
LEAD_CYCLES = 2_000_000  # about a millisecond
WARM_UP_ROUNDS = 2


def median_seconds(run: Callable[[], object], rounds: int = 25) -> float:
    """The seconds of one contender. Its exceptions are raised."""
    for _ in range(WARM_UP_ROUNDS):
        run()
    return statistics.median(_seconds(run) for _ in range(rounds))


def race(contenders: dict[str, Callable[[], object]], rounds: int = 25) -> tuple[dict[str, float], dict[str, str]]:
    """The median seconds of each contender that ran, and why the others did not. Round r starts with contender r.

    An exception of one contender does not end the others, whether it comes with its first call or later.
    """
    names = list(contenders)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    why_not: dict[str, str] = {}
    for r in range(-WARM_UP_ROUNDS, rounds):
        for name in names[r % len(names) :] + names[: r % len(names)]:
            if name in why_not:
                continue
            try:
                taken = _seconds(contenders[name])
            except Exception as error:  # noqa: BLE001 — compilers and libraries share no class of errors
                why_not[name] = one_line(error)
            else:
                seconds[name] += [taken] if r >= 0 else []
    return {name: statistics.median(seconds[name]) for name in names if name not in why_not}, why_not


def _seconds(run: Callable[[], object]) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda").zero_()
    torch.cuda._sleep(LEAD_CYCLES)  # until everything is in the queue, so that the host's time is not measured
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def matmul_tflops(dtype: torch.dtype = torch.bfloat16, size: int = 8192) -> float:
    """The TFLOP/s of a large square product of random matrices: the ceiling of code that is bound by such products."""
    a, b = (torch.randn(size, size, device="cuda", dtype=dtype) for _ in range(2))
    return 2 * size**3 / median_seconds(lambda: a @ b) / 1e12


def copy_bytes_per_second(size: int = 2**31) -> float:
    """The bytes per second of a large copy, reads and writes counted: the ceiling of code that is bound by memory."""
    source = torch.empty(size, dtype=torch.int8, device="cuda").random_()
    target = torch.empty_like(source)
    return 2 * size / median_seconds(lambda: target.copy_(source))


def one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
