"""What the W&B mirror costs: a sweep's training speed with it (offline) and without, taking turns in one run.

  python -m benchmarks.wandb_cost [--rounds 6]

Each turn launches the same small sweep in empty folders with as many workers as there are cores, so that the sidecar
has no core to itself. Speed is tokens over the seconds that the trials themselves took; CPU seconds are those of the
whole launch, the sidecar included. Turns alternate, because the machine's speed drifts; the ratio is the median over
rounds, and `spread_of_off_over_off` says how far turns without W&B differ among themselves.
"""

import argparse
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.provenance import save
from sweep.environment import ROOT

SWEEP = ["sweep=default", "model.params=3k,19k", "budget.flops=4e10,7.5e10,1.4e11"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    args = parser.parse_args()
    turn("off")  # data prepared, files in memory
    rounds = []
    for number in range(args.rounds):
        order = ("off", "offline") if number % 2 else ("offline", "off")
        measured = {mode: turn(mode) for mode in order}
        rounds.append(measured)
        print({mode: round(one["tokens_per_second"]) for mode, one in measured.items()}, file=sys.stderr)
    ratios = [one["offline"]["tokens_per_second"] / one["off"]["tokens_per_second"] for one in rounds]
    again = [b["off"]["tokens_per_second"] / a["off"]["tokens_per_second"] for a, b in itertools.pairwise(rounds)]
    measured = {
        "command": f"python -m benchmarks.wandb_cost --rounds {args.rounds}",
        "sweep": SWEEP,
        "trials": rounds[0]["off"]["trials"],
        "seconds_of_a_trial": round(statistics.median(one["off"]["seconds_of_a_trial"] for one in rounds), 2),
        "speed_ratio_offline_over_off": round(statistics.median(ratios), 4),
        "spread_of_ratio": [round(min(ratios), 4), round(max(ratios), 4)],
        "spread_of_off_over_off": [round(min(again), 4), round(max(again), 4)],
        **{
            key: {mode: round(statistics.median(one[mode][key] for one in rounds), 1) for mode in rounds[0]}
            for key in ("launch_seconds", "cpu_seconds")
        },
    }
    path = save("wandb_cost", ["wandb", "torch"], measured)
    sys.stdout.write(path.read_text())


def turn(mode: str) -> dict[str, float]:
    """One launch in an empty folder."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = [f"paths.runs={folder}/runs", f"paths.sweeps={folder}/sweeps", f"paths.tokens={ROOT}/tokens"]
        command = [sys.executable, "-m", "sweep", "launch", "--no-report", *SWEEP, *paths, f"wandb.mode={mode}"]
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
        subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
        after, seconds = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic() - began
        records = [json.loads(path.read_text()) for path in folder.glob("runs/*/record.json")]
        mirrored = len(list(folder.glob("runs/*/wandb/mirrored.json")))
        assert mirrored == (len(records) if mode == "offline" else 0)
    steps = [record["tokens"] * (1 - record["shared_steps"] / record["steps_done"]) for record in records]
    own = [record["own_seconds"] for record in records]
    return {
        "trials": len(records),
        "tokens_per_second": sum(steps) / sum(own),
        "seconds_of_a_trial": statistics.median(own),
        "launch_seconds": seconds,
        "cpu_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
    }


if __name__ == "__main__":
    main()
