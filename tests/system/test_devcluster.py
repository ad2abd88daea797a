"""The real Slurm that tests run on: it comes up, goes down, and does to jobs what clusters do."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from sweep.common.errors import UserError
from tests.helpers.slurm_cluster import ROOT, clear, elements, ended, processes, release, submit, wait_until
from tools.devcluster import cluster as devcluster
from tools.devcluster.cluster import Cluster, Settings

# A batch script whose step says what it is told and leaves with the exit status that means "again".
STEP = """\
echo "start ${SLURM_RESTART_COUNT:-0} on $SLURMD_NODENAME"
srun --overlap python3 -uc '
import signal, sys, time
def leave(number, frame):
    print("step got", signal.Signals(number).name)
    sys.exit(75)
signal.signal(signal.SIGTERM, leave)
print("step is there")
time.sleep(600)
'
if [ $? = 75 ]; then scontrol requeue ${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID; fi
sleep 60
"""


@pytest.fixture
def slurm(cluster):
    """The cluster, without any jobs before and after."""
    clear(cluster)
    yield cluster
    for daemon in cluster.daemons:
        cluster.start(daemon)
    clear(cluster)


@pytest.fixture
def folder(slurm):  # which skips where there is no Slurm
    """Of another cluster; what a failed test leaves running in it is ended."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    yield folder
    if Cluster(folder).exists:
        Cluster(folder).down()
    elif folder.exists():
        folder.rmdir()


def command(*arguments: object, **options) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "tools.devcluster", *map(str, arguments)]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, **options)


def restarts(cluster: Cluster, element: str) -> int:
    return int(cluster.ask("squeue", "--noheader", f"--jobs={element}", "--Format=RestartCnt").split()[0])


def sleeping(cluster: Cluster) -> int:
    return sum(line.startswith("sleep 300") for line in processes(cluster))


def test_one_command_brings_a_cluster_up_and_one_takes_it_down(cluster, folder):
    up = command("up", "--no-accounting", "--nodes", 1, "--gpus", 3, "--folder", folder)
    assert (up.returncode, up.stdout) == (0, f"export SLURM_CONF={folder}/slurm.conf\n")
    assert "python -m sweep launch sweep=lr cluster=devcluster" in up.stderr
    assert f"python -m tools.devcluster down --folder {folder}" in up.stderr
    other = Cluster(folder)
    assert command("status", "--folder", folder).returncode == 0
    assert other.ask("sinfo", "--noheader", "--Node", "--partition=high", "--format=%N %T %G") == "n1 idle gpu:3\n"

    job = submit(other, "trap '' TERM; setsid sleep 300 & sleep 301; sleep 302")
    wait_until(lambda: elements(other, job) == {str(job): "RUNNING"}, cluster=other)
    assert cluster.ask("squeue", "--noheader") == ""  # clusters do not mix
    again = command("up", "--folder", folder)
    assert again.returncode == 2
    assert f"{folder}: a cluster runs here already" in again.stderr

    assert command("ctld", "stop", "--folder", folder).returncode == 0
    status = command("status", "--folder", folder)
    assert status.returncode == 1
    assert "stopped: slurmctld\n" in status.stdout
    assert "301" in "".join(processes(other))
    assert command("down", "--folder", folder).returncode == 0
    assert not folder.exists()
    assert processes(other) == []
    assert cluster.running() == cluster.daemons


def test_a_held_cluster_goes_down_with_who_started_it_even_while_it_comes_up(folder):
    words = [sys.executable, "-m", "tools.devcluster", "up", "--hold", "--no-accounting", "--folder", str(folder)]
    with subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as up:
        wait_until(lambda: (folder / "pid" / "munged").exists())
        up.stdin.close()
        up.stdout.close()
    assert not folder.exists()
    assert processes(Cluster(folder)) == []


def test_what_stands_in_the_way_is_said_in_one_line(cluster, folder, monkeypatch):
    (folder / "thesis.tex").touch()
    assert "not a cluster's folder" in command("up", "--folder", folder).stderr
    (folder / "thesis.tex").unlink()
    assert f"{folder}: no cluster here" in command("down", "--folder", folder).stderr
    monkeypatch.setattr(devcluster, "PATH", "/nowhere")
    with pytest.raises(UserError, match=r"apt install munge slurm-client slurmctld slurmd$"):
        Cluster(folder).up(Settings(accounting=False))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(UserError, match="run this as root"):
        Cluster(folder).up(Settings())


def test_a_daemon_that_does_not_start_is_named_with_the_end_of_its_log(cluster, folder):
    with pytest.raises(UserError, match=r"^slurmctld: ended at its start; the end of .*MaxArraySize.*$"):
        Cluster(folder).up(Settings(accounting=False, max_array_size=-5))
    assert processes(Cluster(folder)) == []


def test_an_array_is_throttled_and_each_element_has_a_gpu_of_its_own(slurm, tmp_path):
    job = submit(
        slurm,
        f'echo "$(date +%s.%N) start $SLURM_ARRAY_TASK_ID $SLURMD_NODENAME:$CUDA_VISIBLE_DEVICES" >>{tmp_path}/log\n'
        f"[ $(hostname) = $SLURMD_NODENAME ] || exit 1\nsrun sleep 1.5\n"
        f'echo "$(date +%s.%N) end $SLURM_ARRAY_TASK_ID $SLURMD_NODENAME:$CUDA_VISIBLE_DEVICES" >>{tmp_path}/log\n',
        "--array=0-4%3",
        "--gpus=1",
    )
    wait_until(lambda: ended(slurm, job), cluster=slurm)
    assert set(elements(slurm, job).values()) == {"COMPLETED"}  # each node has a host name of its own
    held: set[str] = set()
    most = 0
    for line in sorted((tmp_path / "log").read_text().splitlines()):
        _, what, _, gpu = line.split()
        assert gpu in {"n1:0", "n1:1", "n2:0", "n2:1"}
        assert (gpu in held) == (what == "end")
        held ^= {gpu}
        most = max(most, len(held))
    assert most == 3
    assert not held
    largest = slurm.settings.max_array_size - 1
    with pytest.raises(AssertionError, match="Invalid job array specification"):
        submit(slurm, "true", f"--array={largest}-{largest + 1}")


def test_preemption_tells_the_step_and_requeues_that_element_alone(slurm, tmp_path):
    low = submit(slurm, STEP, "--array=0-1", "--gpus=2", "--requeue", "--open-mode=append", f"--output={tmp_path}/%a")
    logs = [tmp_path / "0", tmp_path / "1"]
    wait_until(lambda: all(log.exists() and "step is there" in log.read_text() for log in logs), cluster=slurm)
    high = submit(slurm, "sleep 2", "--partition=high", "--gpus=2")
    wait_until(lambda: "PENDING" in elements(slurm, low).values(), cluster=slurm)
    (told,) = [index for index in (0, 1) if "step got SIGTERM" in logs[index].read_text()]
    assert elements(slurm, low) == {f"{low}_{told}": "PENDING", f"{low}_{1 - told}": "RUNNING"}
    wait_until(lambda: ended(slurm, high), cluster=slurm)
    release(slurm, f"{low}_{told}")
    wait_until(lambda: logs[told].read_text().count("step is there") == 2, cluster=slurm)
    assert "start 1 on" in logs[told].read_text()
    assert restarts(slurm, f"{low}_{told}") == 1
    assert restarts(slurm, f"{low}_{1 - told}") == 0


def test_one_element_is_requeued_also_the_one_whose_id_is_the_arrays(slurm):
    job = submit(slurm, "sleep 60", "--array=0-2", "--requeue")
    wait_until(lambda: set(elements(slurm, job).values()) == {"RUNNING"}, cluster=slurm)
    slurm.ask("scontrol", "requeue", f"{job}_2")
    wait_until(lambda: elements(slurm, job)[f"{job}_2"] == "PENDING", cluster=slurm)
    release(slurm, f"{job}_2")
    wait_until(lambda: set(elements(slurm, job).values()) == {"RUNNING"}, cluster=slurm)
    assert [restarts(slurm, f"{job}_{index}") for index in range(3)] == [0, 0, 1]


def test_accounting_is_there_or_says_that_it_is_not(slurm, cluster_without_accounting):
    job = submit(slurm, "exit 3", "--account=research")
    wait_until(lambda: ended(slurm, job), cluster=slurm)
    show = ("sacct", "--allocations", "--noheader", "--parsable2", f"--jobs={job}", "--format=state,exitcode,account")
    wait_until(lambda: slurm.ask(*show) == "FAILED|3:0|research\n", cluster=slurm)
    with pytest.raises(AssertionError, match="Invalid account"):
        submit(slurm, "true", "--account=nobody")
    with pytest.raises(UserError, match="accounting storage is disabled"):
        cluster_without_accounting.ask("sacct")


def test_jobs_survive_their_slurmd_and_the_controller(slurm, tmp_path):
    job = submit(slurm, f"echo start >>{tmp_path}/$SLURM_ARRAY_TASK_ID; sleep 6", "--array=0-1", "--gpus=2")
    late = submit(slurm, "true", f"--dependency=afterany:{job}")
    wait_until(lambda: set(elements(slurm, job).values()) == {"RUNNING"}, cluster=slurm)
    at = ("--folder", slurm.folder)
    assert command("slurmd", "n1", "stop", *at).returncode == 0
    assert command("ctld", "restart", *at).returncode == 0
    assert command("slurmd", "n1", "start", *at).returncode == 0
    assert set(elements(slurm, job).values()) == {"RUNNING"}
    wait_until(lambda: ended(slurm, late), cluster=slurm)
    assert set(elements(slurm, job).values()) == {"COMPLETED"}
    assert [(tmp_path / name).read_text() for name in "01"] == ["start\n", "start\n"]


def test_a_crashed_node_loses_its_jobs_and_they_are_requeued(slurm):
    job = submit(slurm, "sleep 300", "--array=0-1", "--gpus=2", "--requeue")
    wait_until(lambda: sleeping(slurm) == 2, cluster=slurm)
    at = ("--folder", slurm.folder)
    assert command("slurmd", "n2", "crash", *at).returncode == 0
    assert sleeping(slurm) == 1
    slurm.ask("scontrol", "update", "NodeName=n2", "State=DOWN", "Reason=crash")  # rather than wait for SlurmdTimeout
    wait_until(lambda: sorted(elements(slurm, job).values()) == ["PENDING", "RUNNING"], cluster=slurm)
    assert command("slurmd", "n2", "start", *at).returncode == 0
    release(slurm, next(element for element, state in elements(slurm, job).items() if state == "PENDING"))
    wait_until(lambda: set(elements(slurm, job).values()) == {"RUNNING"}, cluster=slurm)
