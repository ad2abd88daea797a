"""Seconds to submit 1,000 trials to Slurm, beside submitit's `map_array` of as many no-ops on the same cluster.

  pip install submitit && python -m benchmarks.slurm_submission

The two take turns on a real Slurm on this machine (tools.devcluster), whose jobs are held so that none takes the
processor from what is measured. Each trial is a family and an array element of its own: the most elements that so many
trials can be. A launch is timed in parts: planning, the copy of the code, and the rest, which is what Slurm costs. Of
the rest it also measures this process's own processor time, which does not depend on what else the machine does. Only
this benchmark needs submitit.
"""

import importlib.metadata
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.provenance import save
from slurm import code_snapshot, commands, submit
from sweep.data.placeholder import PlaceholderTokens
from sweep.plan.plan import Plan, absolute_paths, make_plan
from tools.devcluster.cluster import Cluster, Settings

TRIALS = 1000
REPEATS = 5
OVERRIDES = [
    "model.params=3k,5k,7k,12k,19k,28k,55k,98k,187k,442k",
    "budget.flops=1e12",
    f"seed=range({TRIALS // 10})",
    "data=markov",
    "cluster=slurm",
    "cluster.device_name=CPU",
    "cluster.seconds_per_step=100",
    "cluster.slurm.gpus=0",
    "cluster.slurm.cpus=1",
    "cluster.slurm.memory_gib=null",
    "cluster.slurm.time_buckets=[10m]",
    "cluster.slurm.paths_are_shared=true",
    "cluster.slurm.sbatch_lines=[--hold]",
    "cluster.slurm.long_families=requeue",  # all are, so that no element holds two
]


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="bench-", dir="/tmp") as folder:
        Path(folder).chmod(0o755)  # munge asks for that
        cluster = Cluster(Path(folder) / "slurm")
        cluster.up(Settings(max_array_size=TRIALS + 1))
        try:
            os.environ["SLURM_CONF"] = str(cluster.conf)
            measured = measure(Path(folder), cluster)
        finally:
            cluster.down()
    path = save("slurm_submission", ["hydra-core", "submitit"], measured)
    sys.stdout.write(path.read_text())


def measure(folder: Path, cluster: Cluster) -> dict[str, object]:
    ours: list[dict[str, float]] = []
    theirs = []
    for repeat in range(REPEATS):
        ours.append(one_launch(folder / f"sweep-{repeat}"))
        clear(cluster)
        theirs.append(one_map_array(folder / f"submitit-{repeat}"))
        clear(cluster)
    return {
        "command": "python -m benchmarks.slurm_submission",
        "slurm": cluster.ask("sbatch", "--version").strip(),
        "trials": TRIALS,
        "array_elements": TRIALS,
        "launch_seconds": {phase: spread([one[phase] for one in ours]) for phase in ours[0]},
        "submitit_map_array_seconds": spread(theirs),
        "load_of_the_machine": os.getloadavg()[0],
        "target_seconds": {"beyond_planning_and_copy": 1.0},
    }


def one_launch(folder: Path) -> dict[str, float]:
    """The seconds of each part of a launch in an empty folder."""
    began = time.perf_counter()
    plan = planned(folder)
    planning = time.perf_counter() - began
    began = time.perf_counter()
    code_snapshot.take(plan.sweep.path / "code")
    copying = time.perf_counter() - began
    began, began_processor = time.perf_counter(), time.process_time()
    made = submit.submit(plan, OVERRIDES).draft
    rest = time.perf_counter() - began  # with the code's hash once more
    processor = time.process_time() - began_processor
    assert made is not None
    assert len(made.elements) == TRIALS == len(commands.queued(chunk.name for chunk in made.submission.chunks))
    return {
        "planning": planning,
        "code_copy": copying,
        "beyond_planning_and_copy": rest,
        "processor_beyond_planning_and_copy": processor,
    }


def planned(folder: Path) -> Plan:
    paths = [f"paths.{name}={folder / name}" for name in ("runs", "sweeps", "tokens")]
    data = PlaceholderTokens(64, "0123456789abcdef")  # for the launch it is there
    return absolute_paths(make_plan([*OVERRIDES, *paths], lambda config, root: data))


def one_map_array(folder: Path) -> float:
    """Seconds that submitit takes for as many elements that do nothing."""
    import submitit

    executor = submitit.SlurmExecutor(folder=folder)
    executor.update_parameters(time=10, cpus_per_task=1, additional_parameters={"hold": True})
    began = time.perf_counter()
    jobs = executor.map_array(nothing, range(TRIALS))
    seconds = time.perf_counter() - began
    assert len(jobs) == TRIALS
    return seconds


def nothing(number: int) -> int:
    return number


def clear(cluster: Cluster) -> None:
    """End all jobs and wait until the queue is empty."""
    cluster.ask("scancel", "--user=root")
    while cluster.ask("squeue", "--noheader"):
        time.sleep(0.5)


def spread(seconds: list[float]) -> dict[str, float]:
    return {"min": min(seconds), "median": statistics.median(seconds), "max": max(seconds)}


if __name__ == "__main__":
    importlib.metadata.version("submitit")  # before a cluster is brought up for nothing
    main()
