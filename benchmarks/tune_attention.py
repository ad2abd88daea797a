"""Find this GPU's fastest attention tiles and write them to `kernels/configurations.json`.

  python -m benchmarks.tune_attention [--head-dims 64 128] [--minutes 8] [--dry]

For each padded head dimension and kernel in bf16, the candidates with which `benchmarks.compile_ahead` finds no fault
are checked against fp64, with outputs poisoned, and those that are right are timed at 64k tokens of 2,048 tokens a
sequence. A candidate that fails is reported and passed over. When time runs out between candidates the fastest so far
is taken; what is not reached keeps its row. Writes `kernels/configurations.json` after each kernel of a head dimension.
Afterwards run `python -m benchmarks.compile_ahead` (the table of registers), `python -m benchmarks.attention` and
`python -m benchmarks.cross_entropy` (changed tiles are unchecked ones).
"""

import argparse
import itertools
import json
import math
import os
import sys
import time
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor

from benchmarks.attention import TOKENS, WIDTH, Case, inputs, launch, tolerance, values_and_gradients
from benchmarks.compile_ahead import attention_job
from benchmarks.gpu_checks import compiling, poisoned
from benchmarks.gpu_timing import median_seconds, one_line
from kernels import attention_op, reference
from kernels.attention import attention
from kernels.configurations import KERNELS, PATH, Configuration, Key, architecture_of, configuration

HEAD_DIMS, LENGTH = (64, 128, 32, 16), 2048  # the most common first, as time may run out
MASKS = ("causal", "all")  # every shipped tile must compile for both without a fault


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--head-dims", type=int, choices=HEAD_DIMS, nargs="+", default=list(HEAD_DIMS))
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--dry", action="store_true", help="change no file")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        parser.error("torch sees no CUDA device here")
    device = torch.device("cuda", torch.cuda.current_device())
    deadline = time.monotonic() + 60 * args.minutes
    origin = f"{torch.cuda.get_device_name()}, triton {triton.__version__}, {datetime.now(UTC).date()}"
    for head_dim, kernel in itertools.product(args.head_dims, KERNELS):
        key = Key(architecture_of(device), kernel, 2, head_dim)
        best = fastest(key, deadline) if time.monotonic() < deadline else None
        print(key, "→", best, flush=True)
        if best is not None and not args.dry:
            PATH.write_text(with_rows(PATH.read_text(), {key: best}, origin))
    return 0


def candidates(kernel: str, head_dim: int) -> list[Configuration]:
    """The tiles that could be fast: those whose accumulators take at most 128 fp32 registers of each thread."""
    queries = (64, 128, 256) if kernel == "forward" else (64, 128) if kernel == "backward_q" else (32, 64, 128)
    found = []
    for block_q, block_k, warps, stages in itertools.product(queries, (32, 64, 128), (4, 8), (1, 2, 3, 4)):
        if kernel == "backward_kv" and block_k % block_q:
            continue
        rows, accumulators = (block_k, 2) if kernel == "backward_kv" else (block_q, 1)
        per_thread = (rows * max(head_dim, 16) * accumulators + block_q * block_k) / (32 * warps)
        if 32 <= per_thread <= 160:
            found.append(Configuration(block_q, block_k, warps, stages))
    return found


def fastest(key: Key, deadline: float) -> Configuration | None:
    """The fastest candidate with right numbers, among them the shipped one; None if there was no time left."""
    case = Case(LENGTH, key.block_d, WIDTH // key.block_d, WIDTH // key.block_d)
    generator = torch.Generator("cuda").manual_seed(time.time_ns() % 2**32)
    small, given = (inputs(case, batch, torch.bfloat16, "cuda", generator) for batch in (1, TOKENS // LENGTH))
    exact = values_and_gradients(reference.attention, [x.double() for x in small])
    spec = values_and_gradients(reference.attention, small)
    allowed = [tolerance(e, s) for e, s in zip(exact, spec, strict=True)]
    now = configuration(key.architecture, key.kernel, key.element_bytes, key.block_d)
    seconds: dict[Configuration, float] = {}
    for candidate in compiled(key, dict.fromkeys([now, *candidates(key.kernel, key.block_d)]), small, deadline):
        if time.monotonic() > deadline:
            break
        with using(key.kernel, candidate):
            try:
                wrong = _wrong(small, exact, allowed)
                if not wrong:
                    seconds[candidate] = _seconds(key.kernel, given)
            except Exception as error:  # noqa: BLE001 — whatever ends one candidate must not end the others
                wrong = one_line(error)
        print(f"  {candidate}: {wrong or f'{seconds[candidate] * 1e6:.0f} us'}", flush=True)
    return min(seconds, key=seconds.__getitem__, default=None)


def compiled(
    key: Key, wanted: Collection[Configuration], small: list[Tensor], deadline: float = math.inf
) -> list[Configuration]:
    """The candidates that compile without a fault for a launch on `small`. None is begun after the deadline."""

    def in_time(candidate: Configuration) -> str | None:
        return _fault(key, candidate) if time.monotonic() < deadline else "no time left"

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        faults = dict(zip(wanted, pool.map(in_time, wanted), strict=True))
    for candidate, fault in faults.items():
        if fault:
            print(f"  {candidate}: {fault}", flush=True)
    sound = [candidate for candidate, fault in faults.items() if not fault]
    with compiling():
        for candidate in sound:
            with using(key.kernel, candidate):
                launch(small)
    return sound


def _fault(key: Key, candidate: Configuration) -> str | None:
    """What keeps a tile from being shipped, by the rules of `benchmarks.compile_ahead`."""
    try:
        rows = [attention_job(key, candidate, "bf16", form).row() for form in MASKS]
    except Exception as error:  # noqa: BLE001 — the compiler's errors share no class with each other
        return one_line(error)
    return next((row.fault for row in rows if row.fault), None)


def using(kernel: str, candidate: Configuration) -> Any:
    """A context in which one kernel runs with `candidate` and the others with what is shipped."""

    def instead(architecture: str, name: str, element_bytes: int, head_dim: int) -> Configuration:
        return candidate if name == kernel else configuration(architecture, name, element_bytes, head_dim)

    return mock.patch.object(attention_op, "configuration", instead)


def with_rows(text: str, tuned: dict[Key, Configuration], origin: str) -> str:
    """`configurations.json` with the rows of `tuned` replaced or added, one row per line."""
    content = json.loads(text)
    rows = {Key(*(row[name] for name in Key.__dataclass_fields__)): row for row in content["rows"]}
    rows |= {key: {**vars(key), **vars(chosen), "origin": origin} for key, chosen in tuned.items()}
    lines = ",\n".join("  " + json.dumps(row) for row in rows.values())
    return f'{{\n "default": {json.dumps(content["default"])},\n "rows": [\n{lines}\n ]\n}}\n'


def _wrong(given: list[Tensor], exact: list[Tensor], allowed: list[float]) -> str:
    """What is beyond its tolerance; empty if all numbers are right."""
    with poisoned():
        ours = values_and_gradients(partial(attention, backend="triton"), given)
    errors = [(o - e).abs().max().item() for o, e in zip(ours, exact, strict=True)]
    right = all(error <= limit for error, limit in zip(errors, allowed, strict=True))  # NaN is not
    return "" if right else f"WRONG NUMBERS {[f'{error:.1e}' for error in errors]}"


def _seconds(kernel: str, given: list[Tensor]) -> float:
    """The seconds of the forward kernel, or of both backward kernels, of which one is being varied."""
    q, k, v, dout = given
    if kernel == "forward":
        return median_seconds(lambda: torch.ops.sweep.attention(q, k, v, None, None, LENGTH), rounds=10)
    out, lse = torch.ops.sweep.attention(q, k, v, None, None, LENGTH)
    kept = (q, k, v, None, None, out, lse, LENGTH)
    return median_seconds(lambda: torch.ops.sweep.attention_backward(dout, *kept), rounds=10)


if __name__ == "__main__":
    sys.exit(main())
