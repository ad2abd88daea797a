"""Seconds to plan 1,000 trials as `python -m sweep plan` does: the grid, ids, counts, conditions and estimates.

python -m benchmarks.planning
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.provenance import save
from sweep.data.placeholder import PlaceholderTokens
from sweep.plan.plan import make_plan

REPEATS = 5
OVERRIDES = [
    "model.params=3k,5k,7k,12k,19k,28k,55k,98k,187k,442k",
    "budget.flops=1e12,2e12,3e12,6e12,1e13",
    "optim.lr_multiplier=0.25,0.5,1,2,4",
    "seed=range(4)",
    'sweep.where=["tokens_per_param >= 1"]',
    "data=markov",
]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        paths = [f"paths.{name}={Path(folder) / name}" for name in ("runs", "sweeps", "tokens")]
        seconds = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            plan = make_plan([*OVERRIDES, *paths], lambda config, root: PlaceholderTokens(64))
            plan.families()
            plan.done()
            seconds.append(time.perf_counter() - start)
    measured = {
        "command": "python -m benchmarks.planning",
        "trials": len(plan.trials),
        "seconds": {"min": min(seconds), "median": statistics.median(seconds), "max": max(seconds)},
        "target_seconds": 5,
    }
    path = save("planning", ["hydra-core", "omegaconf"], measured)
    sys.stdout.write(path.read_text())


if __name__ == "__main__":
    main()
