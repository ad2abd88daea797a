"""Seconds that an array element with many trials adds to each trial, beyond the trial's training.

  python -m benchmarks.slurm_overhead [--trials 16]

A real Slurm on this machine (tools.devcluster) runs one element of one worker that trains families one after the
other, with W&B off. The overhead is the element's time by accounting minus the training time in the trials' records.
The same trials are also launched here without Slurm, with one worker: what the overheads differ by is due to Slurm.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.provenance import save
from slurm.submission import submissions
from sweep.common.checkout import ROOT
from sweep.runs.sweepdir import SweepDir
from tools.devcluster.cluster import Cluster, Settings

GRID = ["data=markov", "model.params=3k", "budget.tokens=300k", "seq_len=128", "batch.sequences=8", "wandb.mode=off"]
GRID += ["schedule.warmup_tokens=16k", "eval.sample_tokens=0", "sweep.name=packed"]
ON_SLURM = ["cluster=devcluster", "cluster.slurm.cpus=1", "cluster.slurm.workers=1", "cluster.slurm.time_buckets=[2h]"]
HERE = ["run.workers=1"]


@dataclass(frozen=True)
class Overhead:
    """The seconds of an element, or of a launch, beside those that its trials' training took."""

    seconds: float
    training_seconds: float
    overhead_seconds_per_trial: float
    overhead_share: float  # of the training's seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=16)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-", dir="/tmp") as folder:
        Path(folder).chmod(0o755)  # munge asks for that
        sweep_verb(Path(folder), "prepare", "data=markov")
        grid = [*GRID, f"seed=range({args.trials})"]
        cluster = Cluster(Path(folder) / "slurm")
        cluster.up(Settings())
        try:
            os.environ["SLURM_CONF"] = str(cluster.conf)
            on_slurm = packed(Path(folder) / "cluster", cluster, grid)
        finally:
            cluster.down()
        here = launched_here(Path(folder) / "here", grid)
    measured = {
        "command": f"python -m benchmarks.slurm_overhead --trials {args.trials}",
        "trials": args.trials,
        "packed_element": on_slurm,
        "launch_here": here,
        "load_of_the_machine": os.getloadavg()[0],
    }
    sys.stdout.write(save("slurm_overhead", ["torch"], measured).read_text())


def packed(folder: Path, cluster: Cluster, grid: list[str]) -> Overhead:
    """One element of the cluster: its seconds by accounting."""
    sweep_verb(folder, "launch", "--no-report", *grid, *ON_SLURM)
    (submission,) = submissions(SweepDir(folder / "sweeps" / "packed"))
    (array,) = submission.chunks
    assert len(submission.tasks()) == 1
    while cluster.ask("squeue", "--noheader"):
        time.sleep(1.0)
    asked = ["--noheader", "--parsable2", "--allocations", "--format=ElapsedRaw", f"--jobs={array.job_id}"]
    return overhead(folder, float(cluster.ask("sacct", *asked).split()[0]))


def launched_here(folder: Path, grid: list[str]) -> Overhead:
    """The same trials without Slurm: the seconds of the whole command, planning included."""
    began = time.perf_counter()
    sweep_verb(folder, "launch", "--no-report", *grid, *HERE)
    return overhead(folder, time.perf_counter() - began)


def overhead(folder: Path, seconds: float) -> Overhead:
    records = [json.loads(path.read_text()) for path in (folder / "runs").glob("*/record.json")]
    training = sum(record["wall_seconds"] for record in records)
    return Overhead(
        seconds=seconds,
        training_seconds=training,
        overhead_seconds_per_trial=(seconds - training) / len(records),
        overhead_share=seconds / training - 1,
    )


def sweep_verb(folder: Path, verb: str, *words: str) -> None:
    """Run a verb as typed in a folder. All folders share their tokens."""
    folder.mkdir(exist_ok=True)
    tokens = f"paths.tokens={(folder if verb == 'prepare' else folder.parent) / 'tokens'}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(
        [sys.executable, "-m", "sweep", verb, *words, tokens],
        cwd=folder,
        env=environment,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


if __name__ == "__main__":
    main()
