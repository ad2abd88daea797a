"""What the W&B mirror costs training: tokens/s while it runs (offline) and while it is stopped, in turns in one launch.

  python -m benchmarks.wandb_cost [--minutes 8]

One launch trains two trials on two cores, as many workers as there are cores, so that the mirror has no core to itself:
the worst case. From the first rows that it has mirrored on, the mirror and wandb's service are stopped (SIGSTOP) for
20 seconds, go on for 20, and so forth; at the default cadence that is two looks a turn. The machine's speed drifts by
more than what is measured, so the ratio is the median over pairs of turns, each the median speed of its rows. What
piles up while they are stopped is mirrored in the turn after it, so the ratio, if anything, overstates the cost. What
starting takes is in `mirror_cpu_seconds`: all that the mirror and wandb's service used from the launch to its end.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

from benchmarks.provenance import save
from sweep.common.checkout import ROOT
from sweep.common.files import Tail

FLOPS_PER_MINUTE = 1.6e12  # of each trial, roughly, on two shared cores
TURN_SECONDS = 20.0
POLL_SECONDS = 0.25
SETTLE_SECONDS = 1.0  # after a change of turns


@dataclass
class Watch:
    """A launch while it trains: the rows of its trials as they come, and the mirror's turns."""

    runs: Path
    launch: psutil.Process
    rows: list[tuple[float, float, float]] = field(default_factory=list)  # when written, seconds, tokens/s
    turns: list[tuple[float, bool]] = field(default_factory=list)  # since when the mirror has run, or not
    cpu_seconds: dict[int, float] = field(default_factory=dict)  # of each of the mirror's processes
    tails: dict[Path, Tail] = field(default_factory=dict)
    tokens: dict[Path, int] = field(default_factory=dict)  # of the last row

    def look(self) -> None:
        """New rows, and what the mirror has used until now."""
        for path in self.runs.glob("*/metrics.jsonl"):
            for line in self.tails.setdefault(path, Tail(path)).lines():
                row = json.loads(line)
                seconds = (row["tokens"] - self.tokens.get(path, 0)) / row["tokens_per_second"]
                self.tokens[path] = row["tokens"]
                if row["val_loss_nats"] is None:
                    self.rows.append((time.monotonic(), seconds, row["tokens_per_second"]))
        for process in self.mirror():
            try:
                used = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            self.cpu_seconds[process.pid] = used.user + used.system

    def mirror(self) -> list[psutil.Process]:
        """The sidecar and what it started."""
        for process in self.launch.children():
            if process.cmdline()[-1:] == ["mirror"]:
                return [process, *process.children(recursive=True)]
        return []

    def take_turn(self, runs: bool) -> None:
        for process in self.mirror():
            process.send_signal(signal.SIGCONT if runs else signal.SIGSTOP)
        self.turns.append((time.monotonic(), runs))

    def ratios(self) -> list[float]:
        """Speed in a turn with the mirror over that in the neighbouring turn without."""
        speeds: dict[int, list[float]] = defaultdict(list)
        starts = np.array([start for start, _ in self.turns])
        for written, seconds, speed in self.rows:
            turn = int(np.searchsorted(starts, written)) - 1
            if turn >= 0 and written - seconds > starts[turn] + SETTLE_SECONDS:
                speeds[turn].append(speed)
        medians = {turn: statistics.median(of) for turn, of in speeds.items()}
        pairs = [(turn, turn + 1) for turn in range(0, len(self.turns), 2) if {turn, turn + 1} <= medians.keys()]
        return [medians[a] / medians[b] if self.turns[a][1] else medians[b] / medians[a] for a, b in pairs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8, help="about so long (default: 8)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        watch, outcome = observe(Path(name), args.minutes)
    ratios = watch.ratios()
    print([round(ratio, 3) for ratio in ratios], file=sys.stderr)
    low, high = median_interval(ratios)
    measured = {
        "command": f"python -m benchmarks.wandb_cost --minutes {args.minutes:g}",
        **outcome,
        "turn_seconds": TURN_SECONDS,
        "pairs_of_turns": len(ratios),
        "speed_ratio_mirror_over_none": round(statistics.median(ratios), 4),
        "interval_90": [round(low, 4), round(high, 4)],
        "mirror_cpu_seconds": round(sum(watch.cpu_seconds.values()), 2),
    }
    path = save("wandb_cost", ["wandb", "torch"], measured)
    sys.stdout.write(path.read_text())


def observe(folder: Path, minutes: float) -> tuple[Watch, dict[str, object]]:
    """Launch in an empty folder, and take turns until it ends."""
    grid = ["sweep=default", "schedule=cosine", "sweep.where=[]", "model.params=38k,55k"]
    grid += [f"budget.flops={minutes * FLOPS_PER_MINUTE:.3g}", "wandb.mode=offline"]
    paths = [f"paths.runs={folder}/runs", f"paths.sweeps={folder}/sweeps", f"paths.tokens={ROOT}/tokens"]
    command = [sys.executable, "-m", "sweep", "launch", "--no-report", *grid, *paths]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    began = time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
    watch = Watch(folder / "runs", psutil.Process(process.pid))
    try:
        for _ in polls(process):
            watch.look()
            started = len(list(folder.glob("runs/wandb/offline-run-*/*.wandb"))) == 2
            ended = any(folder.glob("runs/*/record.json"))
            last, runs = watch.turns[-1] if watch.turns else (0.0, False)
            if started and not ended and time.monotonic() - last > TURN_SECONDS:
                watch.take_turn(not runs)
            elif ended and not runs:
                watch.take_turn(True)
    finally:
        if process.poll() is None:
            watch.take_turn(True)  # the launch waits for its mirror, which must not stay stopped
    assert process.returncode == 0, "the launch failed; run it by itself to see why"
    records = [json.loads(path.read_text()) for path in folder.glob("runs/*/record.json")]
    mirrored = len(list(folder.glob("runs/*/wandb/mirrored.json")))
    assert mirrored == len(records) == 2
    return watch, {
        "sweep": grid,
        "seconds_of_a_trial": [round(record["wall_seconds"], 1) for record in records],
        "launch_seconds": round(time.monotonic() - began, 1),
    }


def polls(process: subprocess.Popen[bytes]) -> Iterator[None]:
    while process.poll() is None:
        time.sleep(POLL_SECONDS)
        yield


def median_interval(values: list[float], draws: int = 4000) -> tuple[float, float]:
    """The central 90% of the median, by bootstrap."""
    generator = np.random.default_rng(0)
    medians = np.median(generator.choice(values, (draws, len(values))), axis=1)
    return tuple(np.quantile(medians, (0.05, 0.95)))


if __name__ == "__main__":
    main()
