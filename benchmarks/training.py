"""Training speed by model size on this device, beside a minimal PyTorch loop on the same shapes in the same process.

  python -m benchmarks.training [--threads 1]

The plain loop is the model, fused AdamW, clipping and a random batch from the memory-mapped shard: no schedule,
logging, checkpoints or claims. Both loops take turns, round by round, because the machine's speed drifts; the ratio is
the median over rounds. Validation and samples, which a plain loop does not have, are left out of both.
"""

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.provenance import save
from models.gpt import GPT
from sweep.common.devices import resolve_device
from sweep.config.compose import compose
from sweep.data.prepare import prepare
from sweep.data.tokens import Tokens
from sweep.plan.resolve import resolve
from sweep.plan.trial import Trial
from sweep.train import loop
from sweep.train.curve import Curve, State
from sweep.train.determinism import prepare_torch
from sweep.train.setup import Setup

SIZES = ("3k", "12k", "28k", "55k", "98k", "187k", "442k")
ROUNDS = 9
SECONDS_PER_ROUND = 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    device = resolve_device("auto")
    rows = [measure(size, device, args.threads) for size in SIZES]
    command = f"python -m benchmarks.training --threads {args.threads}"
    measured = {"command": command, "device_kind": device, "rows": rows}
    path = save("training", ["torch", "numpy"], measured, device)
    sys.stdout.write(path.read_text())


def measure(size: str, device: str, threads: int) -> dict:
    """Median tokens per second of both loops, and the median over the rounds of plain time / our time."""
    config = compose(
        [f"model.params={size}", "budget.tokens=1G", "seq_len=128", "batch.sequences=8", "eval.sample_tokens=0",
         "eval.first_step=1000000000", "schedule.warmup_tokens=16k", f"run.threads={threads}"]
    )  # fmt: skip
    prepare_torch(config.run, device)
    tokens = prepare(config.data, Path(config.paths.tokens))
    trial = resolve(config, tokens, device)
    setup = Setup.of(trial, tokens, config.run, device, "sdpa", execution_class="benchmark")
    with tempfile.TemporaryDirectory() as folder:
        ours = Ours(setup, Path(folder))
        plain = Plain(trial, tokens, device)
        steps = max(5, round(SECONDS_PER_ROUND / max(ours.time(5), plain.time(5)) * 5))
        rounds = [(ours.time(steps), plain.time(steps)) for _ in range(ROUNDS)]
    speed = steps * trial.config.batch_tokens
    return {
        "params_non_embedding": trial.params_non_embedding,
        "tokens_per_second": round(speed / statistics.median(mine for mine, _ in rounds)),
        "plain_tokens_per_second": round(speed / statistics.median(theirs for _, theirs in rounds)),
        "speed_ratio_ours_over_plain": round(statistics.median(theirs / mine for mine, theirs in rounds), 4),
        "spread_of_ratio": [round(f(theirs / mine for mine, theirs in rounds), 4) for f in (min, max)],
        "steps_per_round": steps,
    }


class Ours:
    """The product's training loop, which also writes its rows to files."""

    def __init__(self, setup: Setup, folder: Path):
        self.curve = Curve(
            setup=setup,
            state=State.fresh(setup),
            length=None,
            metrics=folder / "metrics.jsonl",
            samples=folder / "samples.jsonl",
        )

    def time(self, steps: int) -> float:
        start = time.perf_counter()
        loop.train(self.curve, self.curve.state.step + steps)
        self.curve.state.loss_sum.item()
        return time.perf_counter() - start


class Plain:
    """The training loop that one would write in twenty lines."""

    def __init__(self, trial: Trial, tokens: Tokens, device: str):
        self.config, self.device = trial.config, device
        self.data = tokens.train
        self.model = GPT(replace(trial.config.model)).to(device)
        self.model.init_weights(0)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, fused=True)
        self.rng = np.random.default_rng(0)

    def time(self, steps: int) -> float:
        start = time.perf_counter()
        batch, seq_len = self.config.batch_sequences, self.config.model.seq_len
        for _ in range(steps):
            starts = self.rng.integers(0, len(self.data) - seq_len - 1, batch)
            rows = np.stack([self.data[s : s + seq_len + 1] for s in starts]).astype(np.int64)
            rows_BT = torch.from_numpy(rows).to(self.device)
            self.optimizer.zero_grad(set_to_none=True)
            loss = self.model.loss(rows_BT[:, :-1], rows_BT[:, 1:])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
        loss.item()
        return time.perf_counter() - start


if __name__ == "__main__":
    main()
