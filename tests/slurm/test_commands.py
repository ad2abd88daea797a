"""What Slurm's programs print, read; and a controller that is away for a moment."""

import os
import time

import pytest

from slurm import commands
from slurm.commands import Job, NotAnswering, Refused
from sweep.common.errors import UserError
from tests.helpers.slurm_cluster import wait_until


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("3", [3]), ("0-3", [0, 1, 2, 3]), ("1,4-6%2", [1, 4, 5, 6]), ("0-8:4", [0, 4, 8]), ("2-3,5-6%1", [2, 3, 5, 6])],
)
def test_array_indices(text, numbers):
    assert commands.indices(text) == numbers


@pytest.mark.parametrize(
    ("text", "seconds"), [("0:05", 5), ("12:34", 754), ("1:00:00", 3600), ("2-01:00:00", 176400), ("UNLIMITED", None)]
)
def test_times(text, seconds):
    assert commands.clock(text) == seconds


def test_jobs_get_a_chosen_part_of_the_environment(monkeypatch):
    for name in ("WANDB_API_KEY", "SBATCH_PARTITION", "SLURM_JOB_ID", "MY_TOKEN"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("HF_HOME", "/hf")
    monkeypatch.setenv("SLURM_CONF", "/slurm.conf")
    got = commands.job_environment()
    assert {"PATH", "HF_HOME", "SLURM_CONF"} <= got.keys()
    assert not {"WANDB_API_KEY", "SBATCH_PARTITION", "SLURM_JOB_ID", "MY_TOKEN"} & got.keys()
    assert commands.job_environment(["MY_TOKEN"])["MY_TOKEN"] == "x"


def test_without_slurm_it_is_one_line(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert not commands.available()
    with pytest.raises(UserError, match="squeue is not on PATH"):
        commands.queued(["x"])


@pytest.fixture
def script(tmp_path):
    """A job that waits; `script(name, *directives)`."""

    def make(name, *directives):
        lines = [f"#SBATCH --job-name={name}", "#SBATCH --output=/dev/null", *(f"#SBATCH {d}" for d in directives)]
        path = tmp_path / "job.sbatch"
        path.write_text("\n".join(["#!/bin/bash", *lines, "sleep 60", ""]))
        return path

    return make


CLUSTERS = ("cluster", "cluster_without_accounting")


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.slurm) for name in CLUSTERS])
def slurm(request, monkeypatch):
    """A cluster with sacct and one without; its queue is empty again at the end."""
    cluster = request.getfixturevalue(request.param)
    monkeypatch.setenv("SLURM_CONF", str(cluster.conf))
    yield cluster
    cluster.ask("scancel", "--user=root")
    wait_until(lambda: not cluster.ask("squeue", "--noheader"), cluster=cluster)


def test_jobs_by_name_while_they_wait_run_and_end(slurm, script):
    began = time.time()
    job_id = commands.submit(script("q.1-abc", "--array=0-9%1"), "q.1-abc")
    wait_until(lambda: any(job.state == "RUNNING" for job in commands.queued(["q.1-abc", "no.such"])))
    jobs = commands.queued(["q.1-abc", "no.such"])
    assert sorted(job.index for job in jobs) == list(range(10))
    (running,) = (job for job in jobs if job.state == "RUNNING")
    assert (running.element, running.node) == (f"{job_id}_0", "n1")
    waiting = next(job for job in jobs if job.index == 9)
    assert waiting == Job(job_id, 9, "q.1-abc", "PENDING", waiting.reason, "", 0)
    assert commands.find("q.1-abc", since=began) == job_id
    assert commands.find("no.such", since=began) is None
    commands.cancel([f"{job_id}_{index}" for index in range(1, 10)])
    wait_until(lambda: [job.index for job in commands.queued(["q.1-abc"])] == [0])
    commands.cancel([str(job_id), "999999"])  # one that nobody knows is no error
    wait_until(lambda: not commands.queued(["q.1-abc"]))
    assert commands.find("q.1-abc", since=began) == job_id
    assert commands.queued([]) == []


def test_how_jobs_ended(cluster, cluster_without_accounting, script, monkeypatch):
    monkeypatch.setenv("SLURM_CONF", str(cluster_without_accounting.conf))
    assert commands.ended([1], since=0) is None
    monkeypatch.setenv("SLURM_CONF", str(cluster.conf))
    path = script("q.2-abc", "--array=0-1")
    path.write_text(path.read_text().replace("sleep 60", "exit 3"))
    began = time.time()
    job_id = commands.submit(path, "q.2-abc")
    wait_until(lambda: len(commands.ended([job_id], since=began - 5)) == 2)
    found = commands.ended([job_id, 999999], since=began - 5)
    assert {key: (one.state, one.exit_code) for key, one in found.items()} == {
        (job_id, 0): ("FAILED", 3),
        (job_id, 1): ("FAILED", 3),
    }
    assert commands.ended([], since=0) == {}


def test_a_refused_job_is_refused_and_not_found_by_its_name(slurm, script):
    with pytest.raises(Refused, match=r"sbatch: .*Invalid feature specification"):
        commands.submit(script("q.3-abc", "--constraint=nope"), "q.3-abc")
    assert commands.find("q.3-abc", since=time.time() - 60) is None


def test_variables_that_change_what_programs_do_are_not_passed_to_them(slurm, script, monkeypatch):
    monkeypatch.setenv("SQUEUE_FORMAT", "%i")
    monkeypatch.setenv("SQUEUE_STATES", "RUNNING")
    monkeypatch.setenv("SBATCH_PARTITION", "nope")
    monkeypatch.setenv("SBATCH_ARRAY_INX", "0-3")
    job_id = commands.submit(script("q.4-abc", "--hold"), "q.4-abc")
    assert [(job.element, job.state) for job in commands.queued(["q.4-abc"])] == [(str(job_id), "PENDING")]


def test_a_job_sees_what_it_is_passed_and_no_other_secret(slurm, script, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_API_KEY", "kept")
    monkeypatch.setenv("MY_TOKEN", "passed")
    path = script("q.6-abc")
    path.write_text(path.read_text().replace("sleep 60", f"echo $MY_TOKEN.$WANDB_API_KEY.$HOME > {tmp_path}/seen"))
    commands.submit(path, "q.6-abc", passed_on=["MY_TOKEN"])
    wait_until(lambda: (tmp_path / "seen").exists() and (tmp_path / "seen").read_text())
    assert (tmp_path / "seen").read_text() == f"passed..{os.environ['HOME']}\n"


def test_a_controller_that_is_away(cluster_without_accounting, script, monkeypatch, capsys):
    monkeypatch.setenv("SLURM_CONF", str(cluster_without_accounting.conf))
    monkeypatch.setattr(commands, "CALL_SECONDS", 2)  # Slurm's programs would try for 20
    monkeypatch.setattr(commands, "IMPATIENT_SECONDS", 1)
    path = script("q.5-abc", "--hold")
    cluster_without_accounting.stop("slurmctld")
    try:
        for ask in (
            lambda: commands.queued(["x"], patience_seconds=0),
            lambda: commands.cancel(["1"], patience_seconds=0),
        ):
            with pytest.raises(NotAnswering, match="did not answer"):
                ask()
        with pytest.raises(NotAnswering):
            commands.submit(path, "q.5-abc", patience_seconds=3)
        assert "Slurm's controller does not answer; trying again for 3 s" in capsys.readouterr().err
        if os.fork() == 0:  # comes back while we wait for it
            time.sleep(1)
            cluster_without_accounting.start("slurmctld")
            os._exit(0)
        job_id = commands.submit(path, "q.5-abc", patience_seconds=60)
        os.wait()
    finally:
        cluster_without_accounting.start("slurmctld")
    assert [job.job_id for job in commands.queued(["q.5-abc"])] == [job_id]
    commands.cancel([str(job_id)])
