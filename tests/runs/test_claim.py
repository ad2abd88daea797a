"""One worker per family, by exclusive creation alone; taken over only from a process that is gone."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace

import pytest

from sweep.common import files
from sweep.common.errors import UserError
from sweep.common.files import create_json, write_json
from sweep.runs import claim
from sweep.runs.claim import Claim, Holder, Job


@pytest.fixture
def dead():
    """A process that has ended and been waited for."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    holder = replace(Holder.here(), pid=process.pid)
    process.wait()
    return holder


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(claim, "HEARTBEAT_SECONDS", 0.02)


def put(folder, holder, number=1, beat_age=0.0):
    """A claim as another process would have left it."""
    folder.mkdir(exist_ok=True)
    assert create_json(folder / f"claim.{number:06d}.json", asdict(holder))
    write_json(folder / "heartbeat.json", {"generation": number, "time": time.time() - beat_age, "step": 7})


def race(folder, barrier, results):
    barrier.wait()
    held = claim.acquire(folder)
    results.put(held.generation if held else None)
    barrier.wait()  # nobody leaves, and so becomes stale, before all have tried
    os._exit(0)


def test_of_racing_processes_one_gets_it(tmp_path):
    context = multiprocessing.get_context("fork")
    for turn in range(1, 5):
        barrier, results = context.Barrier(6), context.SimpleQueue()
        racers = [context.Process(target=race, args=(tmp_path, barrier, results)) for _ in range(6)]
        for racer in racers:
            racer.start()
        got = [results.get() for _ in racers]
        for racer in racers:
            racer.join()
        # The winner of the turn before is gone without a release: it is taken over, by one again.
        assert sorted(got, key=str) == [turn, *[None] * 5]


def test_a_released_claim_is_free_at_once_and_numbers_go_up(tmp_path):
    first = claim.acquire(tmp_path)
    assert claim.acquire(tmp_path) is None
    assert claim.holder_of(tmp_path).startswith(
        f"host {first.holder.host}, process {os.getpid()}, last heartbeat 0 s ago"
    )
    assert claim.held_by(tmp_path).heartbeat.nonce == first.holder.nonce
    first.release()
    assert claim.held_by(tmp_path) is None
    assert claim.holder_of(tmp_path) != ""
    second = claim.acquire(tmp_path)
    assert (first.generation, second.generation) == (1, 2)
    second.release()


def test_a_dead_process_is_taken_over_however_fresh_its_heartbeat(tmp_path, dead):
    put(tmp_path, dead)
    assert claim.held_by(tmp_path) is None
    held = claim.acquire(tmp_path)
    assert held.generation == 2
    held.release()


@pytest.mark.parametrize("change", [{"boot_id": "before the reboot"}, {"started": 1.0}])
def test_a_pid_that_was_given_again_is_not_the_holder(tmp_path, change):
    """This very process has the pid; it began at another time, or the machine did."""
    put(tmp_path, replace(Holder.here(), **change))
    held = claim.acquire(tmp_path)
    assert held is not None
    held.release()


def test_a_zombie_is_gone(tmp_path):
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    try:
        time.sleep(0.1)
        put(tmp_path, replace(Holder.here(), pid=pid))
        assert claim.held_by(tmp_path) is None
    finally:
        os.waitpid(pid, 0)


def test_a_living_process_keeps_its_claim_though_its_heartbeat_is_old(tmp_path):
    """A laptop that slept, or a process that was stopped: its process is there, so its claim counts."""
    put(tmp_path, Holder.here(), beat_age=1e6)
    assert claim.acquire(tmp_path) is None


@pytest.mark.parametrize("change", [{"host": "elsewhere"}, {"pid_namespace": "pid:[1]"}])
def test_a_silent_claim_from_elsewhere_stays_until_a_person_says_so(tmp_path, change):
    put(tmp_path, replace(Holder.here(), **change), beat_age=claim.STALE_SECONDS + 60)
    assert claim.acquire(tmp_path) is None
    assert "last heartbeat 180 s ago" in claim.holder_of(tmp_path)
    assert "python -m sweep clean --claims" in claim.holder_of(tmp_path)
    assert claim.is_silent(tmp_path)
    assert claim.force_release(tmp_path)
    assert not claim.force_release(tmp_path)
    assert not claim.is_silent(tmp_path)
    held = claim.acquire(tmp_path)
    assert held.generation == 2
    held.release()


def test_a_claim_from_elsewhere_that_beats_is_not_silent(tmp_path):
    put(tmp_path, replace(Holder.here(), host="elsewhere"))
    assert not claim.is_silent(tmp_path)
    assert claim.held_by(tmp_path).heartbeat.step == 7
    assert claim.acquire(tmp_path) is None
    assert "clean --claims" not in claim.holder_of(tmp_path)


# ---- Slurm jobs ----

JOB = Job(id="42_3", name="small.001.0-abc", restart=1, cluster="c", node="n1")
LONG_AGO = claim.SILENT_SECONDS + 10


def elsewhere(job=JOB):
    """A process on a node that cannot be looked at from here."""
    return replace(Holder.here(), host="elsewhere", job=job)


@pytest.mark.parametrize(
    ("gone", "beat_age", "taken"),
    [(True, LONG_AGO, True), (True, 5.0, False), (False, 1e6, False), (None, 1e6, False)],
)
def test_a_claim_is_taken_over_from_a_job_that_is_gone_and_silent(tmp_path, gone, beat_age, taken):
    """A process can outlive its job on a node that lost its controller; an unanswered question proves nothing."""
    put(tmp_path, elsewhere(), beat_age=beat_age)
    asked = []

    def job_is_gone(job):
        asked.append(job)
        return gone

    held = claim.acquire(tmp_path, job_is_gone)
    assert (held is not None) == taken
    assert asked == ([JOB] if beat_age > claim.SILENT_SECONDS else [])
    assert taken or "host elsewhere, job 42_3, process" in claim.holder_of(tmp_path)
    if held:
        held.release()


def in_job(monkeypatch, restart, task=3):
    monkeypatch.setenv("SLURM_JOB_ID", "45")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "42")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(task))
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "c")
    monkeypatch.setenv("SLURM_RESTART_COUNT", str(restart))


@pytest.mark.parametrize(
    ("restart", "task", "beat_age", "taken"),
    [(2, 3, LONG_AGO, True), (2, 3, 1.0, False), (1, 3, LONG_AGO, False), (2, 4, LONG_AGO, False)],
)
def test_a_requeued_job_takes_its_own_claim_over_without_asking_slurm(
    tmp_path, monkeypatch, restart, task, beat_age, taken
):
    in_job(monkeypatch, restart, task)
    put(tmp_path, elsewhere(), beat_age=beat_age)
    assert claim.is_of_our_job_before(tmp_path) == ((restart, task) == (2, 3))
    held = claim.acquire(tmp_path)
    assert (held is not None) == taken
    if held:
        assert held.holder.job == Job("42_3", "", 2, "c", "")
        assert json.loads((tmp_path / "claim.000002.json").read_text())["job"]["restart"] == 2
        held.release()


def test_where_the_process_can_be_looked_at_its_job_does_not_matter(tmp_path, dead):
    """Nodes of a test cluster share a machine."""
    put(tmp_path, replace(Holder.here(), job=JOB), beat_age=1e6)
    assert claim.acquire(tmp_path, lambda job: True) is None
    put(tmp_path, replace(dead, job=JOB), number=2)
    held = claim.acquire(tmp_path, lambda job: False)
    assert held.generation == 3
    held.release()


def test_an_array_is_not_its_last_element(monkeypatch):
    assert Job.here() is None
    in_job(monkeypatch, 0)
    assert Job.here().id == "42_3"
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID")
    assert Job.here().id == "45"


def test_a_claim_of_another_version_is_named(tmp_path):
    files.write_json(tmp_path / "claim.000001.json", {"host": "x", "who": "?"})
    with pytest.raises(UserError, match=r"claim\.000001\.json: damaged \(boot_id is missing\); delete it"):
        claim.acquire(tmp_path)


def wait_until(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.005)


def test_the_heartbeat_is_renewed_and_carries_the_progress(tmp_path, quick):
    held = claim.acquire(tmp_path)
    first = claim.held_by(tmp_path).heartbeat
    held.report({"step": 12, "phase": "stable"})
    wait_until(lambda: claim.held_by(tmp_path).heartbeat.step == 12)
    assert claim.held_by(tmp_path).heartbeat.time > first.time
    held.release()


@pytest.mark.parametrize("how", ["released by a person", "taken over"])
def test_a_lost_claim_is_noticed_and_stops_beating(tmp_path, quick, how):
    held = claim.acquire(tmp_path)
    if how == "taken over":
        put(tmp_path, Holder.here(), number=2)
    else:
        claim.force_release(tmp_path)
    wait_until(lambda: held.lost)
    write_json(tmp_path / "heartbeat.json", {"of": "the new holder"})
    time.sleep(0.1)
    assert json.loads((tmp_path / "heartbeat.json").read_text()) == {"of": "the new holder"}
    held.release()  # of its own generation: the new one stands
    assert (claim.held_by(tmp_path) is not None) == (how == "taken over")


def test_a_stopped_process_that_lost_its_claim_learns_of_it(tmp_path):
    """SIGSTOP and SIGCONT: the real thing."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        claim.HEARTBEAT_SECONDS = 0.02
        held = claim.acquire(tmp_path)
        os.write(writer, b"1")
        wait_until(lambda: held.lost, 20)
        os._exit(42)
    os.read(reader, 1)
    os.kill(pid, signal.SIGSTOP)
    assert claim.acquire(tmp_path) is None  # stopped is not gone
    claim.force_release(tmp_path)
    mine = claim.acquire(tmp_path)
    os.kill(pid, signal.SIGCONT)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 42
    assert not mine.lost
    assert isinstance(mine, Claim)
    mine.release()


def test_a_full_disk_does_not_end_the_heartbeat(tmp_path, quick, monkeypatch):
    held = claim.acquire(tmp_path)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(files.os, "fsync", full)
        time.sleep(0.1)
    assert not held.lost
    held.report({"step": 3, "phase": "stable"})
    wait_until(lambda: claim.held_by(tmp_path).heartbeat.step == 3)
    held.release()
