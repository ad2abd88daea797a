"""A real Slurm for tests (tools/devcluster), brought up once and taken down however the tests end."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sweep.common.checkout import ROOT
from sweep.common.errors import UserError
from tools.devcluster.cluster import Cluster

REQUIRED = os.environ.get("SWEEP_REQUIRE_SLURM") == "1"  # set by .ci/run
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED"}


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Two nodes of two GPUs with sacct; Slurm's commands find it by `cluster.environment()`."""
    yield from running_cluster("--accounting")


@pytest.fixture(scope="session")
def cluster_without_accounting() -> Iterator[Cluster]:
    yield from running_cluster("--no-accounting")


def running_cluster(*options: str) -> Iterator[Cluster]:
    """A cluster that goes down when our end of its standard input closes, which a kill of the tests does too."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # short, and open to munge, unlike pytest's own
    command = [sys.executable, "-m", "tools.devcluster", "up", "--hold", "--folder", str(folder), *options]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, start_new_session=True, **pipes) as up:
        if not up.stdout.readline():
            reason = up.stderr.read().decode().strip()
            shutil.rmtree(folder)
            pytest.fail(reason) if REQUIRED else pytest.skip(reason)
        yield Cluster(folder)
        up.stdin.close()
        assert up.wait(60) == 0, up.stderr.read().decode()
    assert not folder.exists()


def submit(cluster: Cluster, script: str, *options: str) -> int:
    """The job's id (the array's) of a bash script given as text."""
    command = ["sbatch", "--parsable", "--output=/dev/null", *options]
    text = "#!/bin/bash\n" + script
    environment = cluster.environment()
    ended = subprocess.run(command, env=environment, input=text, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return int(ended.stdout)


def elements(cluster: Cluster, job: int) -> dict[str, str]:
    """State of every element, ended ones too, by name: `7_0`, or `7` of a job that is no array."""
    said = cluster.ask("squeue", "--noheader", "--array", "--states=all", f"--jobs={job}", "--format=%F_%K %T")
    return {name.removesuffix("_N/A"): state for name, state in (line.split() for line in said.splitlines())}


def ended(cluster: Cluster, job: int) -> bool:
    return set(elements(cluster, job).values()) <= ENDED


def release(cluster: Cluster, element: str) -> None:
    """A requeued element may start now, instead of after its waiting time."""

    def pending() -> bool:
        return elements(cluster, int(element.partition("_")[0]))[element] == "PENDING"

    wait_until(pending, cluster=cluster)
    time.sleep(2)  # what is left of its last start is being removed; on the same node a new one would be hit by that
    try:
        cluster.ask("scontrol", "update", f"JobId={element}", "StartTime=now")
    except UserError:
        assert not pending()  # its waiting time was over


def wait_until(true: Callable[[], object], seconds: float = 60, cluster: Cluster | None = None) -> None:
    """Looks again and again; fails with the queue of `cluster`, where one is given."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            pytest.fail(
                f"not so after {seconds} s\n{cluster.ask('squeue', '--array', '--states=all') if cluster else ''}"
            )
        time.sleep(0.2)


def clear(cluster: Cluster) -> None:
    """No jobs are left, and all nodes are idle."""
    cluster.ask("scancel", "--user=root", "--signal=KILL", "--full")
    cluster.ask("scancel", "--user=root")
    wait_until(lambda: set(cluster.node_states().values()) == {"idle"})


def processes(cluster: Cluster) -> list[str]:
    """Command lines of all that has to do with a cluster: working in its folder, or pointed at it."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            here = os.readlink(entry / "cwd").startswith(str(cluster.folder))
            told = f"SLURM_CONF={cluster.conf}".encode() in (entry / "environ").read_bytes().split(b"\0")
            if here or told:
                found.append((entry / "cmdline").read_text().replace("\0", " "))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return found
