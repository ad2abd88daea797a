"""Process-wide settings of torch and of the allocator, made before anything is trained."""

import ctypes
import os

import torch

from sweep.config.schema import RunOptions

COMPILED_SHAPES = 1000  # in one process, over all micro-batches and stacks
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
KEPT_BYTES = 2**28


def prepare_torch(options: RunOptions, device: str) -> None:
    """Set what decides the speed and the bits of training in this process: threads, compilation, determinism."""
    torch.set_num_threads(options.threads)
    if options.compile:  # one process compiles the same code for many shapes; past its limit torch would fall back
        torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = COMPILED_SHAPES
        torch._dynamo.config.fail_on_recompile_limit_hit = True
    if device == "cpu":
        _keep_freed_memory()
    if options.deterministic and device == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # debugging aid


def _keep_freed_memory() -> None:
    """Have glibc keep freed blocks instead of returning them to the kernel and faulting them in again at every step.

    That is 5 to 24% of a step of the smallest models. Without glibc there is nothing to set.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        for parameter in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
            libc.mallopt(parameter, KEPT_BYTES)
