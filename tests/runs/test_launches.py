"""A launch that is alive can be told from one that was killed, whatever killed it."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace

import pytest

from sweep.common.checkout import ROOT
from sweep.common.files import write_json
from sweep.runs import launches
from sweep.runs.claim import STALE_SECONDS, Holder
from sweep.runs.launches import Launch
from sweep.runs.state import States
from sweep.verbs.status import look
from tests.helpers import tiny
from tests.helpers.made_up import end, family_of, start


def test_it_is_there_while_it_lasts(tmp_path):
    with launches.announced(tmp_path, {"b", "a"}):
        (one,) = launches.alive(tmp_path)
        assert (one.process.pid, one.families) == (os.getpid(), ["a", "b"])
        assert one.includes("a")
        assert not one.includes("c")
    assert launches.alive(tmp_path) == []


def test_a_killed_one_counts_for_nothing_and_the_next_removes_what_it_left(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from sweep.runs import launches\n"
        "with launches.announced(Path(sys.argv[1])):\n    print(flush=True); time.sleep(60)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        (one,) = launches.alive(tmp_path)
        assert (one.process.pid, one.includes("any")) == (process.pid, True)
        process.send_signal(signal.SIGKILL)
    assert launches.alive(tmp_path) == []
    (left,) = (tmp_path / "launches").iterdir()
    with launches.announced(tmp_path):
        assert not left.exists()


@pytest.mark.parametrize(("age", "alive"), [(5.0, True), (STALE_SECONDS + 5, False)])
def test_on_another_host_its_file_has_to_be_renewed(tmp_path, age, alive):
    now = time.time()
    one = Launch(replace(Holder.here(), host="elsewhere"), began=now - 500, renewed=now - age)
    write_json(tmp_path / "launches" / "x.json", asdict(one))
    assert (launches.alive(tmp_path) != []) == alive


def test_it_renews_its_file(tmp_path, monkeypatch):
    monkeypatch.setattr(launches, "RENEW_SECONDS", 0.02)
    with launches.announced(tmp_path):
        (first,) = launches.alive(tmp_path)
        stop = time.monotonic() + 10
        while launches.alive(tmp_path)[0].renewed == first.renewed:
            assert time.monotonic() < stop
            time.sleep(0.01)


def test_what_a_launch_has_still_to_do_waits_and_what_it_has_tried_does_not(overrides, workspace):
    """An invitation to launch again would be wrong of the former."""
    plan, sweep = tiny.make_sweep([*overrides, tiny.steps(20, 40), "seed=0,1"])
    _, long, trunk = family_of(plan)
    start(trunk, age=600)
    end(trunk, "failed", error="RuntimeError: of a launch before", age=500)
    assert look(sweep).counts() == {"failed": 2, "missing": 2}
    with launches.announced(sweep.path):
        assert look(sweep).counts() == {"waiting": 4}
        start(trunk, number=2, age=0)
        end(trunk, "failed", number=2, error="RuntimeError: again", age=0)
        assert look(sweep).counts() == {"failed": 2, "waiting": 2}
    with launches.announced(sweep.path, [family_of(plan, 1)[0].family_id]):
        assert look(sweep).counts() == {"failed": 2, "waiting": 2}
        assert States(plan.runs, launches=launches.alive(sweep.path)).trial(long.trial_id, long.family_id).reason == (
            "RuntimeError: again"
        )
    assert look(sweep).counts() == {"failed": 2, "missing": 2}


def test_beside_a_launch_that_is_alive_nobody_is_invited_to_launch_again(overrides, workspace):
    """Its worker was killed, or it is stopping: what it leaves is for a launch after it."""
    plan, sweep = tiny.make_sweep([*overrides, tiny.steps(20, 40)])
    _, _, trunk = family_of(plan)
    with launches.announced(sweep.path):
        start(trunk, age=0.0)
        killed = look(sweep).trials[0]
        assert (killed.state, "its launch (host" in killed.note) == ("lost", True)
        end(trunk, "stopped", age=0.0)
        stopped = look(sweep).trials[0]
        assert (stopped.state, "once that has ended" in stopped.note) == ("missing", True)
    assert look(sweep).trials[0].note == "stopped with everything saved; launch again to go on"


def test_a_launch_that_is_stopping_comes_to_no_family_any_more(overrides, workspace):
    _, sweep = tiny.make_sweep([*overrides, tiny.steps(20, 40)])
    told_to_stop = threading.Event()
    with launches.announced(sweep.path, is_stopping=told_to_stop.is_set):
        assert {trial.state for trial in look(sweep).trials} == {"waiting"}
        told_to_stop.set()
        end_of_patience = time.monotonic() + 10
        while not launches.alive(sweep.path)[0].stopping:
            assert time.monotonic() < end_of_patience
            time.sleep(0.05)
        assert {trial.state for trial in look(sweep).trials} == {"missing"}
    assert not (sweep.path / "launches").exists()


def test_a_damaged_file_is_only_a_hint_less(tmp_path):
    with launches.announced(tmp_path):
        (tmp_path / "launches" / "x.json").write_text("{")
        assert len(launches.alive(tmp_path)) == 1
