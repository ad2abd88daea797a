"""Our cross-entropy on a CUDA device: first its numbers, then its speed and memory. About two minutes on an H200.

  python -m benchmarks.cross_entropy [--check-only]

Numbers: fresh random inputs of both forms, plain and fused with the projection, every type, against fp64. A
device that passes this and `benchmarks.attention` is entered in `kernels/checked.json`, see there.
Speed: 64k rows of bf16 logits, loss and gradient together, beside PyTorch's eager and compiled and Liger-Kernel's if it
is installed; bytes per second count the logits read once and the gradient written once. The fused form: time and
peak memory of loss and gradients from a width of 768. A contender that fails is named with its reason.

Writes `kernels/checked.json` after the check and `benchmarks/results/cross_entropy.json` after each timed case.

On a machine without a GPU, `TRITON_INTERPRET=1 … --check-only --device cpu` runs the check itself on tiny shapes.
"""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.gpu_checks import check_first, faults, poisoned
from benchmarks.gpu_timing import copy_bytes_per_second, race
from benchmarks.provenance import save
from kernels import cross_entropy_op, reference
from kernels.cross_entropy import CHUNK_LOGITS, cross_entropy

ROWS, WIDTH = 65_536, 768
SHARE = 0.3  # of a loss, to check what scales gradients
VOCABULARIES = (1024, 4096, 8192, 32_768, 50_304)
TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class PlainRow:
    """A line of the result: the loss and the gradient of logits that are there."""

    form: str
    vocabulary: int
    bytes_per_second: dict[str, int]  # by contender
    ours_over: dict[str, float]  # our speed over each other contender's
    of_copy_ceiling: float | None  # our speed over that of a copy; None where ours failed
    not_run: dict[str, str]  # contender -> why it did not run


@dataclass(frozen=True)
class FusedRow:
    """A line of the result: the loss and the gradients from the inputs of the projection to logits."""

    form: str
    vocabulary: int
    width: int
    chunk_rows: int
    seconds: dict[str, float]  # by contender
    peak_bytes: dict[str, int]
    not_run: dict[str, str]


def main(argv: list[str] | None = None) -> int:
    return check_first("cross_entropy", __doc__, argv, check, lambda seed: time_all())


def time_all() -> None:
    """Both forms; the result file is written after each case, so that a run that is stopped keeps what it has."""
    ceiling = copy_bytes_per_second()
    rows: list[PlainRow | FusedRow] = []
    report = {"command": "python -m benchmarks.cross_entropy", "copy_bytes_per_second": ceiling, "rows": rows}
    plain = (partial(time_plain, vocabulary, ceiling) for vocabulary in VOCABULARIES)
    fused = (partial(time_fused, vocabulary) for vocabulary in VOCABULARIES[2:])
    cases: list[Callable[[], PlainRow | FusedRow]] = [*plain, *fused]
    for case in cases:
        rows.append(case())
        save("cross_entropy", ["torch", "triton"], report, "cuda")
    print(json.dumps(report, default=asdict))


def check(device: str, seed: int) -> list[str]:
    """What is wrong, a line each."""
    generator = torch.Generator(device).manual_seed(seed)
    shapes = ((3, 5), (7, 300)) if device == "cpu" else ((1, 2), (33, 129), (512, 8192), (257, 50_257))
    kinds = ("fp16", "fp32") if device == "cpu" else tuple(TYPES)  # the interpreter computes bf16 wrongly
    checks = []
    for rows, vocabulary in shapes:
        for kind in kinds:
            checks.append((f"{rows}x{vocabulary} {kind}", partial(check_plain, rows, vocabulary, kind, generator)))
            checks.append(
                (f"fused {rows}x{vocabulary} {kind}", partial(check_fused, rows, vocabulary, kind, generator))
            )
    with poisoned():
        return faults(checks)


def check_plain(rows: int, vocabulary: int, kind: str, generator: torch.Generator) -> Iterator[str]:
    logits = (4 * torch.randn(rows, vocabulary, device=generator.device, generator=generator)).to(TYPES[kind])
    targets = torch.randint(vocabulary, (rows,), device=generator.device, generator=generator)
    exact = loss_and_gradients(reference.cross_entropy, targets, logits.double(), share=SHARE)
    spec = loss_and_gradients(lambda x, t: reference.cross_entropy(x.float(), t), targets, logits, share=SHARE)
    ours = loss_and_gradients(_ours, targets, logits, share=SHARE)
    return _beyond(exact, spec, ours, torch.finfo(TYPES[kind]).eps)


def check_fused(rows: int, vocabulary: int, kind: str, generator: torch.Generator) -> Iterator[str]:
    normal = (torch.randn(n, 64, device=generator.device, generator=generator) for n in (rows, vocabulary))
    x, head = (values.to(TYPES[kind]) for values in normal)
    targets = torch.randint(vocabulary, (rows,), device=generator.device, generator=generator)
    exact = loss_and_gradients(_plain, targets, x.double(), head.double())
    spec = loss_and_gradients(lambda x, head, t: _plain(x, head, t, torch.float32), targets, x, head)
    fused = loss_and_gradients(lambda x, head, t: _fused(x, head, t, 5), targets, x, head)
    return _beyond(exact, spec, fused, torch.finfo(TYPES[kind]).eps)


def _beyond(exact: list[Tensor], spec: list[Tensor], ours: list[Tensor], eps: float) -> Iterator[str]:
    """Errors above twice the specification's own and a few units in the last place."""
    for name, e, s, o in zip(("loss", "first gradient", "second gradient"), exact, spec, ours, strict=False):
        size = e.abs().max().item()
        ulps = 2 * eps * size * (name != "loss") + 8 * torch.finfo(torch.float32).eps * max(1.0, size)
        error, tolerance = (o - e).abs().max().item(), 2 * (s - e).abs().max().item() + ulps
        if not error <= tolerance:  # NaN is not
            yield f"{name} is off by {error:.2e}, more than {tolerance:.2e}"


def loss_and_gradients(run: Callable[..., Tensor], targets: Tensor, *inputs: Tensor, share: float = 1) -> list[Tensor]:
    """The gradients are of `share` of the loss, as where micro-batches are accumulated."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    loss = run(*leaves, targets)
    return [loss.detach(), *torch.autograd.grad(loss, leaves, torch.full_like(loss, share))]


def time_plain(vocabulary: int, ceiling: float) -> PlainRow:
    """Bytes per second of loss and gradient, and ours over each other's."""
    logits = torch.randn(ROWS, vocabulary, device="cuda", dtype=torch.bfloat16)
    targets = torch.randint(vocabulary, (ROWS,), device="cuda")
    compiled = torch.compile(_torch, dynamic=False)
    losses = {"triton": _ours, "eager": _torch, "compiled": compiled, "liger": _liger}
    seconds, why_not = race({name: partial(loss_and_gradients, f, targets, logits) for name, f in losses.items()})
    speeds = {name: 2 * logits.nbytes / s for name, s in seconds.items()}
    ours = speeds.get("triton")  # none where it failed
    row = PlainRow(
        form="plain",
        vocabulary=vocabulary,
        bytes_per_second={name: round(speed) for name, speed in speeds.items()},
        ours_over={name: round(ours / v, 3) for name, v in speeds.items() if ours and name != "triton"},
        of_copy_ceiling=ours and round(ours / ceiling, 3),
        not_run=why_not,
    )
    print(row, flush=True)
    return row


def time_fused(vocabulary: int) -> FusedRow:
    """Seconds and peak bytes of loss and gradients from the projection's inputs."""
    x = torch.randn(ROWS, WIDTH, device="cuda", dtype=torch.bfloat16)
    head = torch.randn(vocabulary, WIDTH, device="cuda", dtype=torch.bfloat16) / WIDTH**0.5
    targets = torch.randint(vocabulary, (ROWS,), device="cuda")
    chunk = max(1, CHUNK_LOGITS // vocabulary)
    losses = {
        "fused": lambda x, head, t: _fused(x, head, t, chunk),
        "linear, then triton": lambda x, head, t: _ours(F.linear(x, head), t),
        "linear, then compiled": torch.compile(lambda x, head, t: _torch(F.linear(x, head), t), dynamic=False),
    }
    runs: dict[str, Callable[[], object]] = {
        name: partial(loss_and_gradients, f, targets, x, head) for name, f in losses.items()
    }
    seconds, why_not = race(runs)
    peaks = {}
    for name in seconds:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        runs[name]()
        peaks[name] = torch.cuda.max_memory_allocated() - before
    row = FusedRow("fused", vocabulary, WIDTH, chunk, seconds, peaks, why_not)
    print(row, flush=True)
    return row


def _plain(x: Tensor, head: Tensor, targets: Tensor, softmax_type: torch.dtype = torch.float64) -> Tensor:
    return reference.cross_entropy(F.linear(x, head).to(softmax_type), targets)


def _fused(x: Tensor, head: Tensor, targets: Tensor, chunk_rows: int) -> Tensor:
    return cross_entropy_op.linear_cross_entropy(x, head, targets, chunk_rows)


def _ours(logits: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(logits, targets, backend="triton")


def _torch(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), targets)


def _liger(logits: Tensor, targets: Tensor) -> Tensor:
    from liger_kernel.transformers.functional import liger_cross_entropy

    return liger_cross_entropy(logits, targets)


if __name__ == "__main__":
    sys.exit(main())
