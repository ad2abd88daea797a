"""What the W&B mirror costs: a sweep's training speed with it (offline) and without, taking turns in one run.

  python -m benchmarks.wandb_cost [--rounds 6]

Each turn launches the same two trials of about a minute in empty folders, with as many workers as there are cores, so
that the sidecar has no core to itself: the worst case, and the default cadence. Speed is tokens over the seconds that
the trials took; CPU seconds are all of the machine's, so that nothing wandb starts is missed. Turns alternate, because
the machine's speed drifts; the ratio is the median over rounds, and `spread_of_off_over_off` says how far turns without
W&B differ among themselves.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from benchmarks.provenance import save
from sweep.environment import ROOT

SWEEP = ["sweep=default", "schedule=cosine", "model.params=40k,55k", "budget.flops=1.8e12"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6, help="pairs of turns, 3 minutes each (default: 6)")
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
        before, began = busy_seconds(), time.monotonic()
        environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
        subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
        cpu_seconds, seconds = busy_seconds() - before, time.monotonic() - began
        records = [json.loads(path.read_text()) for path in folder.glob("runs/*/record.json")]
        mirrored = len(list(folder.glob("runs/*/wandb/mirrored.json")))
        assert mirrored == (len(records) if mode == "offline" else 0)
    took = [record["wall_seconds"] for record in records]
    return {
        "trials": len(records),
        "tokens_per_second": sum(record["tokens"] for record in records) / sum(took),
        "seconds_of_a_trial": statistics.median(took),
        "launch_seconds": seconds,
        "cpu_seconds": cpu_seconds,
    }


def busy_seconds() -> float:
    """CPU seconds of every process on this machine since it started."""
    times = psutil.cpu_times()
    return times.user + times.nice + times.system


if __name__ == "__main__":
    main()
