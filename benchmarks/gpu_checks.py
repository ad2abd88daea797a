"""What comes before timing on a CUDA device: checks of the numbers with poisoned outputs, and parallel compiling."""

import argparse
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import triton

from benchmarks.gpu_timing import one_line
from kernels.configurations import enter_as_checked


def check_first(
    part: str,
    description: str | None,
    argv: list[str] | None,
    check: Callable[[str, int], list[str]],
    time_all: Callable[[int], None],
) -> int:
    """The command line of a kernel benchmark: `check` a device with new random inputs, note it as checked, `time_all`.

    If `check` finds faults, nothing is timed and the exit status is 1.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check-only", action="store_true", help="check the numbers and time nothing")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    args = parser.parse_args(argv)
    if args.device == "cpu" and not args.check_only:
        parser.error("--device cpu goes with --check-only: the interpreter's speed says nothing")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device here")
    seed = secrets.randbits(32)
    print(f"inputs from seed {seed}", flush=True)
    wrong = check(args.device, seed)
    if wrong:
        print("\n".join(wrong))
        return 1
    if args.device == "cuda":
        enter_as_checked(part, torch.cuda.get_device_name(), triton.__version__)
    if not args.check_only:
        time_all(seed)
    return 0


@contextmanager
def poisoned() -> Iterator[None]:
    """Have every new tensor start as NaN, so that what a kernel does not write shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def faults(checks: Iterable[tuple[str, Callable[[], Iterable[str]]]]) -> list[str]:
    """What is wrong, a line each. The first exception ends it, as every call after an illegal access fails too."""
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
    """Have Triton's launches compile on all cores at once and run nothing. What fails to compile fails again later."""

    def only_compile(kernel: Any, grid: Any) -> Callable[..., object]:
        return lambda *args, **options: kernel.run(*args, grid=grid, warmup=True, **options)

    with (
        mock.patch.object(triton.JITFunction, "__getitem__", only_compile),
        ThreadPoolExecutor(os.cpu_count()) as pool,
        triton.AsyncCompileMode(pool, ignore_errors=True),
    ):
        yield
