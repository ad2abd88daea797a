"""How fast one device trains a sweep of small models: one model, a stack of models, and a ladder from grid to records.

  python -m benchmarks.sweep_throughput single [--cpu]   tokens/s and MFU of one model, beside a plain PyTorch loop
  python -m benchmarks.sweep_throughput stack  [--cpu]   4 learning rates × 4 seeds in a stack, and one at a time
  python -m benchmarks.sweep_throughput ladder [--cpu]   5 sizes × 5 isoFLOP budgets, end to end

On a GPU each command takes at most 8 minutes with compiling, and goes on where it was stopped: the sizes that were
measured with this code on this device are kept in `--state`. Numbers are checked before anything is timed, and the
contenders take turns. `--cpu` does the same with models a hundred times smaller, to show that it works.

A step takes 16 sequences of 256 tokens, the default of `conf/train.yaml`, unless a size names another batch. The plain
loop is written in the manner of nanoGPT: the same architecture through torch.compile, fused AdamW, SDPA, bf16 on CUDA,
random batches from the mapped shard, and without our determinism. Our loop is the step that training runs: on CUDA that
of a stack, captured as a graph. `--free` also times it with `run.deterministic=false`.

The ladder has no condition on tokens per parameter: within 5 to 500, 11 of its 25 points would be left, none of them of
the largest size (1e16 FLOPs are 1.5 tokens for each parameter of 29M).
"""

import argparse
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.provenance import save
from models.gpt import GPT, parameter_groups
from sweep.common.checkout import ROOT
from sweep.common.devices import device_model, resolve_device
from sweep.common.files import append_json, read_json, read_json_lines, write_json_lines
from sweep.config.compose import compose
from sweep.config.schema import RunOptions
from sweep.data.prepare import prepare
from sweep.data.tokens import Tokens
from sweep.plan.resolve import resolve
from sweep.plan.trial import Trial
from sweep.runs.environment import code_hash
from sweep.train import loop
from sweep.train.curve import Curve, State
from sweep.train.determinism import prepare_torch
from sweep.train.setup import Setup
from sweep.train.stack import Stack
from sweep.workers.ceiling import flops_ceiling

ROUNDS, SECONDS_PER_ROUND, WARM_UP_STEPS = 5, 1.0, 3
LR_MULTIPLIERS, SEEDS = (0.5, 1.0, 2.0, 4.0), (0, 1, 2, 3)
NOT_DETERMINISTIC = ("plain", "ours_free")  # of the contenders


@dataclass(frozen=True)
class Scale:
    """What is measured on a kind of device. Sizes are `params` or `params@SEQUENCESxTOKENS`."""

    single: tuple[str, ...]
    stack: tuple[str, ...]
    batch: str  # sequences x their tokens, of a size that does not say another
    data: tuple[str, ...]  # these and the following are Hydra overrides
    ladder: tuple[str, ...]
    run: tuple[str, ...]


GPU = Scale(
    single=("1M", "3M", "10M", "30M", "30M@128x512", "125M@128x512"),
    stack=("1M", "3M", "10M"),
    batch="16x256",
    data=("data.tokenizer.vocab_size=4096",),
    ladder=(
        "model.params=1M,3M,7M,16M,29M", "budget.flops=3e14,7e14,1.7e15,4e15,1e16", "schedule.warmup_tokens=256k",
        "seq_len=512", "batch.sequences=32", "eval.sequences=64",
    ),
    run=("run.device=cuda", "run.compile=true", "run.graph=true"),
)  # fmt: skip
CPU = Scale(
    single=("12k", "98k"),
    stack=("3k", "7k", "28k", "98k"),
    batch="8x128",
    data=(),
    ladder=(
        "model.params=3k,7k", "budget.flops=2e9,4e9", "schedule.warmup_tokens=2k", "seq_len=128", "batch.sequences=8",
    ),
    run=("run.device=cpu",),
)  # fmt: skip


@dataclass(frozen=True)
class Single:
    """One model's speed by each contender."""

    params_non_embedding: int
    batch_tokens: int
    tokens_per_second: dict[str, int]
    ours_over_plain: float
    mfu: dict[str, float]
    ceiling_tflops: float


@dataclass(frozen=True)
class Stacked:
    """The speed of all models of a stack together, beside that of one."""

    params_non_embedding: int
    batch_tokens: int
    tokens_per_second: dict[str, int]
    over_alone: dict[str, float]
    over_best_alone: dict[str, float]


@dataclass(frozen=True)
class Ladder:
    """A ladder from grid to records."""

    overrides: list[str]
    wall_seconds: float
    launches: int
    flops_useful: float
    worker_seconds: float
    sweep_efficiency: float | None
    trials: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("single", "stack", "ladder"))
    parser.add_argument("--cpu", action="store_true", help="models a hundred times smaller, on the CPU")
    parser.add_argument("--free", action="store_true", help="with `single`: also without determinism")
    parser.add_argument("--state", type=Path, default=Path("runs/sweep_throughput"), help="where measurements are kept")
    args = parser.parse_args()
    device, scale = ("cpu", CPU) if args.cpu else (resolve_device("cuda"), GPU)
    args.state.mkdir(parents=True, exist_ok=True)
    measured: dict[str, object] = {
        "command": f"python -m benchmarks.sweep_throughput {args.part}{' --cpu' if args.cpu else ''}"
    }
    kept = args.state / f"{args.part}-{device}{'-free' if args.free else ''}.jsonl"
    if args.part == "ladder":
        measured |= asdict(ladder(args.state / f"ladder-{device}", scale))
    elif args.part == "single":
        measured["rows"] = rows(kept, scale.single, partial(single, scale=scale, device=device, free=args.free), device)
    else:
        measured["rows"] = rows(kept, scale.stack, partial(stack, scale=scale, device=device), device)
    path = save(f"sweep_throughput_{args.part}_{device}", ["torch", "triton", "numpy"], measured, device)
    sys.stdout.write(path.read_text())


def rows(
    kept: Path, sizes: tuple[str, ...], measure: Callable[[str], Single | Stacked], device: str
) -> list[dict[str, object]]:
    """A row for each size. Those that were measured before, with this code on this device, are read from `kept`."""
    here = {"code": code_hash(), "device": device_model(device), "torch": torch.__version__}

    def done() -> dict[str, dict[str, object]]:
        return {row["size"]: row for row in read_json_lines(kept) if here.items() <= row.items()}

    for size in sizes:
        if size not in done():
            append_json(kept, {"size": size, **here, **asdict(measure(size))})
            print(f"{size}: measured", file=sys.stderr, flush=True)
    return [{key: value for key, value in done()[size].items() if key not in here} for size in sizes]


# ---- one model, and a stack of them ----


def single(size: str, scale: Scale, device: str, free: bool) -> Single:
    """Time one model in the product's loop and in a plain loop."""
    trial, tokens, options = a_trial(size, scale, device)
    check_numbers([trial], tokens, options, device)
    contenders = {"plain": Plain(trial, tokens, device).step}
    if device == "cuda":
        contenders["ours"] = stacked_step([trial], tokens, options, device)
    else:
        contenders["ours"] = alone_step(trial, tokens, options, device)
    if free and device == "cuda":
        with nothing_deterministic():  # it is compiled and captured here
            contenders["ours_free"] = stacked_step([trial], tokens, options, device)
    speeds = in_turns(contenders, trial.config.batch_tokens)
    ceiling = flops_ceiling(Path("runs"), device, trial.config.precision)
    flops = float(trial.flops_per_token.exact)
    return Single(
        params_non_embedding=trial.params_non_embedding,
        batch_tokens=trial.config.batch_tokens,
        tokens_per_second=speeds,
        ours_over_plain=round(speeds["ours"] / speeds["plain"], 3),
        mfu={name: round(speed * flops / ceiling, 4) for name, speed in speeds.items()},
        ceiling_tflops=round(ceiling / 1e12, 3),
    )


def stack(size: str, scale: Scale, device: str) -> Stacked:
    """Time all learning rates and seeds at once, a quarter of them, and one at a time in two ways."""
    base, tokens, options = a_trial(size, scale, device)
    optim = base.config.optim
    trials = [
        replace(base, config=replace(base.config, seed=seed, optim=replace(optim, lr=optim.lr * multiplier)))
        for multiplier in LR_MULTIPLIERS
        for seed in SEEDS
    ]
    check_numbers(trials[:: len(SEEDS) + 1], tokens, options, device)  # no two of one learning rate or of one seed
    tokens_of_step = base.config.batch_tokens
    contenders = {
        "alone": alone_step(base, tokens, options, device),
        "alone_as_stack_of_1": stacked_step(trials[:1], tokens, options, device),
        f"stack_of_{len(SEEDS)}": stacked_step(trials[: len(SEEDS)], tokens, options, device),
        f"stack_of_{len(trials)}": stacked_step(trials, tokens, options, device),
    }
    at_once = {name: int(name.rpartition("_")[2]) if "stack" in name else 1 for name in contenders}
    speeds = in_turns(contenders, tokens_of_step, at_once)
    best_alone = max(speeds["alone"], speeds["alone_as_stack_of_1"])
    return Stacked(
        params_non_embedding=base.params_non_embedding,
        batch_tokens=tokens_of_step,
        tokens_per_second=speeds,
        over_alone={name: round(speed / speeds["alone"], 3) for name, speed in speeds.items()},
        over_best_alone={name: round(speed / best_alone, 3) for name, speed in speeds.items()},
    )


def a_trial(size: str, scale: Scale, device: str) -> tuple[Trial, Tokens, RunOptions]:
    params, _, batch = size.partition("@")
    sequences, seq_len = (batch or scale.batch).split("x")
    shape = [f"model.params={params}", f"batch.sequences={sequences}", f"seq_len={seq_len}"]
    config = compose([*shape, "budget.tokens=1G", "schedule.warmup_tokens=16k", *scale.data, *scale.run])
    prepare_torch(config.run, device)
    tokens = prepare(config.data, Path(config.paths.tokens))
    return resolve(config, tokens, device), tokens, config.run


def setup_of(trial: Trial, tokens: Tokens, options: RunOptions, device: str, model: GPT | None = None) -> Setup:
    return Setup.of(trial, tokens, options, device, "sdpa", execution_class="benchmark", shared_model=model)


def alone_step(trial: Trial, tokens: Tokens, options: RunOptions, device: str) -> Callable[[], torch.Tensor]:
    """The step of `loop.train`: compiled where the options say so, with its batches from the host."""
    setup = setup_of(trial, tokens, options, device)
    state = State.fresh(setup)

    def step() -> torch.Tensor:
        loop.update(setup, state, trial.config.optim.lr)
        state.step += 1
        return state.loss_sum

    return step


def stacked_step(trials: list[Trial], tokens: Tokens, options: RunOptions, device: str) -> Callable[[], torch.Tensor]:
    """The step of a stack: on CUDA captured as one graph, with its data on the device."""
    made, _ = make_stack(trials, tokens, options, device)

    def step() -> torch.Tensor:
        made.update()
        return made.loss_sum_K

    return step


def make_stack(trials: list[Trial], tokens: Tokens, options: RunOptions, device: str) -> tuple[Stack, list[Curve]]:
    made = Stack(setup_of(trials[0], tokens, options, device), len(trials), graph=device == "cuda")
    curves = []
    for trial in trials:
        setup = setup_of(trial, tokens, options, device, made.scratch_model)
        curves.append(Curve(setup, State.fresh(setup)))
        made.seat(curves[-1])
    return made, curves


class Plain:
    """The loop that one would write in twenty lines, in the manner of nanoGPT."""

    def __init__(self, trial: Trial, tokens: Tokens, device: str):
        self.config, self.device, self.data = trial.config, device, tokens.train
        model = GPT(trial.config.model).to(device).init_weights(0)
        self.parameters = [*model.parameters()]
        self.loss = torch.compile(model.loss, dynamic=False) if device == "cuda" else model.loss
        groups = parameter_groups(model, trial.config.optim.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=trial.config.optim.lr, betas=(0.9, 0.95), fused=True)
        self.rng = np.random.default_rng(0)

    def step(self) -> torch.Tensor:
        batch, seq_len = self.config.batch_sequences, self.config.model.seq_len
        starts = self.rng.integers(0, len(self.data) - seq_len - 1, batch)
        rows = torch.from_numpy(np.stack([self.data[s : s + seq_len + 1] for s in starts]).astype(np.int64))
        rows_BT = rows.pin_memory().to(self.device, non_blocking=True) if self.device == "cuda" else rows
        with torch.autocast(self.device, torch.bfloat16, enabled=self.config.precision == "bf16"):
            loss = self.loss(rows_BT[:, :-1], rows_BT[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()


@contextmanager
def nothing_deterministic() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def check_numbers(trials: list[Trial], tokens: Tokens, options: RunOptions, device: str) -> None:
    """Train ten steps in a stack, and each trial alone without compiling. The losses must agree up to rounding."""
    steps, bound = 10, 2e-2 if trials[0].config.precision == "bf16" else 1e-4
    made, curves = make_stack(trials, tokens, options, device)
    for _ in range(steps):
        made.update()
    for trial, curve in zip(trials, curves, strict=True):
        setup = setup_of(trial, tokens, replace(options, compile=False), device)
        state = State.fresh(setup)
        for _ in range(steps):
            loop.update(setup, state, curve.lr(state.step))
            state.step += 1
        found, expected = curve.state.loss_sum.item() / steps, state.loss_sum.item() / steps
        if not abs(found - expected) <= bound * expected:
            raise SystemExit(f"{trial.trial_id}: mean loss {found} in a stack and {expected} alone; nothing was timed")


def in_turns(
    contenders: dict[str, Callable[[], torch.Tensor]], tokens_of_step: int, at_once: dict[str, int] | None = None
) -> dict[str, int]:
    """Tokens per second of each contender: the median over rounds in which all of them take turns.

    Without a GPU the seconds are CPU seconds of this process, so that other programs on the machine count for less.
    """
    now = time.perf_counter if torch.cuda.is_available() else time.process_time

    def seconds_of(name: str, steps: int) -> float:
        with nothing_deterministic() if name in NOT_DETERMINISTIC else nullcontext():
            start = now()
            for _ in range(steps):
                last = contenders[name]()
            last.sum().item()  # waits for the device
            return (now() - start) / steps

    steps = {}
    for name in contenders:
        seconds_of(name, WARM_UP_STEPS)  # compiled here, what was not before
        steps[name] = max(3, round(SECONDS_PER_ROUND / seconds_of(name, 1)))
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(ROUNDS):
        for name in contenders:
            seconds[name].append(seconds_of(name, steps[name]))
    return {
        name: round((at_once or {}).get(name, 1) * tokens_of_step / statistics.median(values))
        for name, values in seconds.items()
    }


# ---- a ladder, end to end ----


def ladder(folder: Path, scale: Scale) -> Ladder:
    """Launch a ladder, or go on with it. Its seconds are those of all its launches together."""
    folder.mkdir(parents=True, exist_ok=True)
    overrides = [
        "sweep.name=ladder", *scale.ladder, *scale.data, *scale.run, "eval.sample_tokens=0", "wandb.mode=off",
        "run.checkpoint_seconds=30", f"paths.runs={folder.resolve() / 'runs'}", f"paths.sweeps={folder.resolve()}",
    ]  # fmt: skip
    data = compose([*scale.data, "budget.tokens=1G"])
    prepare(data.data, Path(data.paths.tokens))
    launches = folder / "launches.jsonl"
    end_of_killed(launches, folder / "runs")
    append_json(launches, {"started": time.time(), "ended": None})
    status = interruptible([sys.executable, "-m", "sweep", "launch", "--no-report", *overrides])
    end_last(launches, time.time())
    if status:
        raise SystemExit(f"the launch ended with {status}; the same command goes on")
    subprocess.run([sys.executable, "-m", "sweep", "collect", folder.resolve() / "ladder"], cwd=ROOT, check=True)
    meta = read_json(folder / "ladder" / "meta.json")
    return Ladder(
        overrides=[text for text in overrides if not text.startswith("paths.")],
        wall_seconds=round(sum(row["ended"] - row["started"] for row in read_json_lines(launches)), 1),
        launches=len(read_json_lines(launches)),
        flops_useful=meta["flops_total"] - meta["flops_saved"],
        worker_seconds=round(meta["worker_seconds"], 1),
        sweep_efficiency=meta["efficiency"],
        trials=len(read_json_lines(folder / "ladder" / "plan.jsonl")),
    )


def interruptible(command: list[str]) -> int:
    """Run a command and return its exit status. Whoever stops us stops it, so that no training goes on unmeasured."""
    for number in (signal.SIGINT, signal.SIGTERM):  # SIGINT too: in the background of a script it begins ignored
        signal.signal(number, signal.default_int_handler)
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)  # Ctrl-C reaches us alone
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGTERM)
        return process.wait()


def end_of_killed(launches: Path, runs: Path) -> None:
    """Where the end of the last launch was never noted, take the time of the last file that it wrote."""
    rows = read_json_lines(launches)
    if rows and rows[-1]["ended"] is None:
        written = [path.stat().st_mtime for path in runs.rglob("*")]
        end_last(launches, max([rows[-1]["started"], *written]))


def end_last(launches: Path, ended: float) -> None:
    rows = read_json_lines(launches)
    write_json_lines(launches, [*rows[:-1], {**rows[-1], "ended": ended}])


if __name__ == "__main__":
    main()
