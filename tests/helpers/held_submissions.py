"""Submissions to a real Slurm whose jobs are held, so that none runs."""

from pathlib import Path

import pytest

from slurm.submission import submissions
from sweep.cli import main
from sweep.runs.sweepdir import SweepDir
from tests.helpers import tiny
from tests.helpers.slurm_cluster import wait_until

HELD = [
    "cluster=slurm",
    "cluster.device_name=null",
    "cluster.device_memory_gib=null",
    "cluster.seconds_per_step=30",  # so that an element of half an hour holds one family
    "cluster.slurm.gpus=0",
    "cluster.slurm.cpus=1",
    "cluster.slurm.memory_gib=null",
    "cluster.slurm.collector.cpus=1",
    "cluster.slurm.paths_are_shared=true",
    "cluster.slurm.sbatch_lines=[--hold]",
    "sweep.name=held",
    tiny.steps(20),
]


@pytest.fixture
def launch_held(cluster, overrides, workspace, monkeypatch, capsys):
    """`launch(*overrides)` → (exit status, stdout, stderr), as typed in an empty folder on the cluster."""
    monkeypatch.setenv("SLURM_CONF", str(cluster.conf))

    def typed(*more, options=()):
        status = main(["launch", *options, *overrides, *HELD, *more])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    yield typed
    cluster.ask("scancel", "--user=root")
    wait_until(lambda: not cluster.ask("squeue", "--noheader"), cluster=cluster)


def there():
    return submissions(SweepDir(Path("sweeps/held").absolute()))


def families(submission):
    return [family for task in submission.tasks() for family in task.families]
