"""Seconds to collect 10,000 finished runs: the first time, and again when nothing has changed.

  python -m benchmarks.collecting

The runs are made up (a record, 40 metrics rows and 5 samples each, four budgets a family), the collecting is real.
"""

import json
import statistics
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from benchmarks.provenance import save
from sweep.data.placeholder import PlaceholderTokens
from sweep.plan.plan import make_plan
from sweep.plan.storage import save as save_plan
from sweep.plan.trial import Trial
from sweep.runs.collect import Collected, collect
from sweep.runs.record import Record
from sweep.runs.rundir import RunDir
from sweep.runs.sweepdir import SweepDir

TRIALS = 10_000
ROWS, SAMPLES = 40, 5
WARM_REPEATS = 5
OVERRIDES = [
    "model.params=3k,5k,7k,12k,19k,28k,55k,98k,187k,442k",
    "budget.flops=1e12,2e12,4e12,8e12",
    f"seed=range({TRIALS // 40})",
    "data=markov",
]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        paths = [f"paths.{name}={Path(folder) / name}" for name in ("runs", "sweeps", "tokens")]
        plan = make_plan([*OVERRIDES, *paths], lambda config, root: PlaceholderTokens(64))
        sweep = SweepDir(Path(folder) / "sweeps" / "big")
        save_plan(plan, sweep, OVERRIDES)
        for trial in plan.trials:
            make_run(RunDir.of_trial(plan.runs, trial.trial_id), trial)
        cold, collected = timed(sweep)
        warm = [timed(sweep)[0] for _ in range(WARM_REPEATS)]
    measured = {
        "command": "python -m benchmarks.collecting",
        "trials": len(collected.table),
        "curve_rows": len(collected.curves),
        "cold_seconds": cold,
        "unchanged_seconds": {"min": min(warm), "median": statistics.median(warm), "max": max(warm)},
        "target_seconds": {"cold": 10, "unchanged": 2},
    }
    path = save("collecting", ["pandas", "pyarrow"], measured)
    sys.stdout.write(path.read_text())


def timed(sweep: SweepDir) -> tuple[float, Collected]:
    start = time.perf_counter()
    collected = collect(sweep)
    return time.perf_counter() - start, collected


def make_run(run: RunDir, trial: Trial) -> None:
    """Write the files of a finished run, with made-up numbers."""
    run.path.mkdir(parents=True)
    steps = [max(1, trial.config.steps * (i + 1) // ROWS) for i in range(ROWS)]
    row = {"phase": "stable", "lr": 0.01, "train_loss_nats": 3.2, "grad_norm": 0.5, "val_loss_nats": 3.3}
    lines = [{"step": s, "tokens": s * 4096, "flops": s * 1e8, **row, "tokens_per_second": 1e5} for s in steps]
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    sample = {"tokens": 1000, "prompt": "def f(", "text": "x" * 200}
    run.samples.write_text("".join(json.dumps({"step": s, **sample}) + "\n" for s in steps[:SAMPLES]))
    record = Record(
        trial_id=trial.trial_id,
        family_id=trial.family_id,
        status="finished",
        params=trial.params_by_group,
        params_non_embedding=trial.params_non_embedding,
        params_total=trial.params_total,
        tokens=trial.tokens,
        flops=trial.flops,
        flops_per_token=float(trial.flops_per_token.exact),
        steps_done=trial.config.steps,
        loss_nats=3.3,
        best_loss_nats=3.3,
        best_tokens=trial.tokens,
        train_loss_nats=3.2,
        bits_per_byte=2.1,
        shared_steps=trial.config.branch_step,
        wall_seconds=10.0,
        own_seconds=2.0,
        tokens_per_second=1e5,
        device="none",
        execution_class="none",
        execution_classes=["none"],
        code_hash="none",
        finished_at=0.0,
    )
    run.record.write_text(json.dumps(asdict(record), indent=1))


if __name__ == "__main__":
    main()
