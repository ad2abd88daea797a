"""Find this GPU's fastest attention tiles and write them to `kernels/configurations.json`.

  python -m benchmarks.tune_attention [--head-dims 64 128] [--minutes 8] [--dry]

For each padded head dimension and kernel in bf16, every candidate's numbers are checked against fp64, and those that
are right are timed at 64k tokens of 2,048 tokens a sequence. A candidate that does not fit the chip is reported and
passed over; what is not reached in time keeps its row. Afterwards run `python -m benchmarks.compile_ahead` (the table
of registers) and `python -m benchmarks.attention` (the numbers of everything).
"""

import argparse
import itertools
import json
import sys
import time
from datetime import UTC, datetime
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.runtime.errors import OutOfResources

from benchmarks.attention import TOKENS, WIDTH, Case, inputs, tolerance, values_and_gradients
from benchmarks.gpu_timing import median_seconds
from kernels import attention_op, reference
from kernels.attention import attention
from kernels.configurations import KERNELS, PATH, Configuration, Key, architecture_of, configuration

HEAD_DIMS, LENGTH = (16, 32, 64, 128), 2048


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
    tuned = {}
    for head_dim, kernel in itertools.product(args.head_dims, KERNELS):
        key = Key(architecture_of(device), kernel, 2, head_dim)
        best = fastest(key, deadline)
        if best is not None:
            tuned[key] = best
        print(key, "→", best, flush=True)
    if not args.dry:
        origin = f"{torch.cuda.get_device_name()}, triton {triton.__version__}, {datetime.now(UTC).date()}"
        PATH.write_text(with_rows(PATH.read_text(), tuned, origin))
    return 0


def candidates(kernel: str, head_dim: int) -> list[Configuration]:
    """Tiles that could be fast: as large as accumulators of at most 128 fp32 registers a thread allow."""
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
    """The fastest candidate whose numbers are right, the shipped one among them; None when there was no time."""
    case = Case(LENGTH, key.block_d, WIDTH // key.block_d, WIDTH // key.block_d)
    generator = torch.Generator("cuda").manual_seed(time.time_ns() % 2**32)
    small = inputs(case, 1, torch.bfloat16, "cuda", generator)
    exact = values_and_gradients(reference.attention, {}, [x.double() for x in small])
    spec = values_and_gradients(reference.attention, {}, small)
    allowed = [tolerance(e, s) for e, s in zip(exact, spec, strict=True)]
    given = inputs(case, TOKENS // LENGTH, torch.bfloat16, "cuda", generator)
    chosen, chosen_seconds = None, float("inf")
    now = configuration(key.architecture, key.kernel, key.element_bytes, key.block_d)
    for candidate in dict.fromkeys([now, *candidates(key.kernel, key.block_d)]):
        if time.monotonic() > deadline:
            break
        with using(key.kernel, candidate):
            try:
                errors = [(a - e).abs().max() for a, e in zip(_run(small), exact, strict=True)]
            except (OutOfResources, RuntimeError) as error:
                print(f"  {candidate}: {error}".splitlines()[0], flush=True)
                continue
            if not all(error <= limit for error, limit in zip(errors, allowed, strict=True)):
                print(f"  {candidate}: WRONG NUMBERS {[f'{e:.1e}' for e in errors]}", flush=True)
                continue
            seconds = _seconds(key.kernel, given)
        print(f"  {candidate}: {seconds * 1e6:.0f} us", flush=True)
        if seconds < chosen_seconds:
            chosen, chosen_seconds = candidate, seconds
    return chosen


def using(kernel: str, candidate: Configuration) -> Any:
    """A context in which one kernel runs with `candidate`, the others with what is shipped."""

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


def _run(given: list[Tensor]) -> list[Tensor]:
    return values_and_gradients(attention, {"backend": "triton"}, given)


def _seconds(kernel: str, given: list[Tensor]) -> float:
    """Of the forward or of both backward kernels, of which one is being varied."""
    q, k, v, dout = given
    if kernel == "forward":
        run = {"run": lambda: torch.ops.sweep.attention(q, k, v, None, None, LENGTH)}
    else:
        out, lse = torch.ops.sweep.attention(q, k, v, None, None, LENGTH)
        run = {"run": lambda: torch.ops.sweep.attention_backward(dout, q, k, v, None, None, out, lse, LENGTH)}
    return median_seconds(run, rounds=10)["run"]


if __name__ == "__main__":
    sys.exit(main())
