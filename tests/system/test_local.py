"""A launch on this machine, as people start it: Ctrl-C leaves everything resumable, the same command goes on."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from sweep.cli import main
from sweep.common.checkout import ROOT
from sweep.common.files import read_json_lines
from sweep.runs import claim
from sweep.runs.rundir import RunDir
from sweep.runs.sweepdir import SweepDir
from sweep.verbs.plan import plan_here
from sweep.workers import local
from sweep.workers.progress_table import ProgressTable
from tests.helpers import tiny

pytestmark = pytest.mark.usefixtures("end_processes")


class NoMirror:
    """In the place of what mirrors a launch to W&B."""

    def news(self):
        return []

    def close(self):
        return []


@pytest.fixture
def grid(overrides):
    """Two families, long enough to be interrupted."""
    return [*overrides, "sweep.name=small", tiny.steps(400), "seed=0,1", "eval.log_every_steps=50", "run.workers=2"]


def launch(arguments, through=()):
    """A launch in a process of its own; `through` is what starts it, such as a shell."""
    return subprocess.Popen(
        [*through, sys.executable, "-m", "sweep", "launch", "--no-report", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_until_begun(process, trunks):
    """Until a worker has written a row."""
    end = time.monotonic() + 60
    while not any(trunk.metrics.exists() for trunk in trunks):
        assert time.monotonic() < end, "the workers did not begin"
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)


def test_ctrl_c_leaves_everything_resumable_and_the_same_command_goes_on(grid, workspace):
    plan = plan_here(grid)
    first = launch(grid)
    trunks = [RunDir.of_trunk(plan.runs, family[0].family_id) for family in plan.families()]
    wait_until_begun(first, trunks)
    os.kill(first.pid, signal.SIGINT)
    _, said = first.communicate(timeout=60)
    assert first.returncode == 75, said
    assert "stopping: each worker finishes its step and saves" in said
    assert "exit status 75" in said
    assert "Traceback" not in said
    assert "stopped" in [attempt["outcome"] for trunk in trunks for attempt in read_json_lines(trunk.attempts)[-1:]]
    assert len(plan.done()) < 2

    second = launch([*grid, "run.workers=1"])
    _, said = second.communicate(timeout=120)
    assert second.returncode == 0, said
    assert "2 of 2 trials have a record" in said
    interrupted = next(trunk for trunk in trunks if len(tiny.lines(trunk.attempts)) == 4)
    trial = next(t for t in plan.trials if t.family_id == interrupted.path.name)
    assert tiny.train(replace(plan, trials=[trial]), workspace / "alone") == 0
    assert tiny.everything(plan.runs, trial.trial_id) == tiny.everything(workspace / "alone", trial.trial_id)


def test_workers_stop_too_where_nobody_can_be_told(grid, workspace):
    """As when a terminal is closed: SIGHUP comes, and what is said goes nowhere."""
    plan = plan_here(grid)
    process = launch(grid)
    trunks = [RunDir.of_trunk(plan.runs, family[0].family_id) for family in plan.families()]
    wait_until_begun(process, trunks)
    end = time.monotonic() + 60
    process.stderr.close()
    os.kill(process.pid, signal.SIGHUP)
    process.wait(60)
    begun = [trunk for trunk in trunks if trunk.attempts.exists()]
    while any(read_json_lines(trunk.attempts)[-1]["event"] == "start" for trunk in begun):
        assert time.monotonic() < end, "a worker goes on unseen"
        time.sleep(0.1)
    assert "stopped" in [read_json_lines(trunk.attempts)[-1]["outcome"] for trunk in begun]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_launch_in_the_background_of_a_script_stops_too(grid, workspace, number):
    """A shell has what a script starts with `&` ignore SIGINT, and so do the processes of some CI."""
    plan = plan_here(grid)
    process = launch(grid, through=["sh", "-c", 'trap "" INT; exec "$@"', "sh"])
    trunks = [RunDir.of_trunk(plan.runs, family[0].family_id) for family in plan.families()]
    wait_until_begun(process, trunks)
    os.kill(process.pid, number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 75, said
    assert "stopping: each worker finishes its step and saves" in said
    stopped = 0
    for trunk, (trial,) in zip(trunks, plan.families(), strict=True):
        if trunk.attempts.exists() and read_json_lines(trunk.attempts)[-1]["outcome"] == "stopped":
            stopped += 1
            assert [*trunk.path.glob("*.pt"), *RunDir.of_trial(plan.runs, trial.trial_id).path.glob("*.pt")]
    assert stopped


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_told_to_stop_while_it_measures(overrides, workspace, number):
    """Nothing goes on unseen, and nothing was begun."""
    process = launch([*overrides, "budget.tokens=40M", "seed=0,1,2,3", "wandb.mode=off"])
    while "measuring what is faster" not in (line := process.stderr.readline()):
        assert line, "it ended"
    end = time.monotonic() + 60
    while not (found := psutil.Process(process.pid).children(recursive=True)):
        assert time.monotonic() < end, "nothing measures"
    time.sleep(1.0)
    os.kill(process.pid, number)
    _, said = process.communicate(timeout=20)
    assert (process.returncode, said) == (75, "stopped before any training; launch again\n")
    psutil.wait_procs(found, timeout=10)
    assert not [one for one in found if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    assert not Path("runs/trunks").exists()


# ---- without processes of torch ----


def fake_workers(monkeypatch, *codes):
    """Workers that are one line of Python each; Popen objects, as they are started."""
    started = []

    def start(plan, sweep, number, workers):
        assert workers == len(codes)
        started.append(subprocess.Popen([sys.executable, "-c", codes[number]], start_new_session=True))
        return started[-1]

    monkeypatch.setattr(local, "_start", start)
    monkeypatch.setattr(local, "worker_count", lambda plan: len(codes))
    monkeypatch.setattr(local, "REFRESH_SECONDS", 0.02)
    return started


@pytest.fixture
def small(overrides, workspace):
    return tiny.make_sweep([*overrides, tiny.steps(20, 40)])


@pytest.mark.parametrize(
    ("codes", "status"),
    [
        (["exit(0)", "exit(0)"], 0),
        (["exit(1)", "exit(0)"], 1),
        (["exit(75)", "exit(0)"], 75),
        (["exit(75)", "exit(1)"], 1),
        (["import os; os.kill(os.getpid(), 15)", "exit(0)"], 75),
        (["import os; os.kill(os.getpid(), 9)"], 1),
        ([], 0),
    ],
)
def test_the_exit_status_tells(small, monkeypatch, codes, status):
    plan, sweep = small
    fake_workers(monkeypatch, *codes)
    assert local.launch(plan, sweep, Console(quiet=True), NoMirror).status == status


SLEEPS = "import signal, time; signal.signal(15, lambda *a: exit(75)); time.sleep(30)"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_launch_that_is_told_to_stop_tells_its_workers(small, monkeypatch, number):
    """Also where it is a terminal that was closed, or a plain kill: nobody trains on unseen."""
    plan, sweep = small
    started = fake_workers(monkeypatch, SLEEPS, SLEEPS)
    monkeypatch.setattr(local, "_watch", lambda *args: (time.sleep(0.3), os.kill(os.getpid(), number), time.sleep(5)))
    kept = signal.getsignal(signal.SIGHUP)
    try:
        launched = local.launch(plan, sweep, Console(quiet=True), NoMirror)
    finally:
        signal.signal(signal.SIGHUP, kept)
    assert launched.status == 75
    assert [worker.poll() for worker in started] == [75, 75]


def test_workers_do_not_outlive_a_launch_that_failed(small, monkeypatch):
    plan, sweep = small
    started = fake_workers(monkeypatch, SLEEPS)

    def fail(*args):
        time.sleep(0.3)
        raise ValueError("a bug in the table")

    monkeypatch.setattr(local, "_watch", fail)
    with pytest.raises(ValueError, match="a bug in the table"):
        local.launch(plan, sweep, Console(quiet=True), NoMirror)
    assert started[0].poll() == 75


def test_there_are_never_more_workers_than_families_to_train(small):
    plan, _ = small
    plan.config.run.workers = 5
    assert local.worker_count(plan) == 1
    for trial in plan.trials:
        path = RunDir.of_trial(plan.runs, trial.trial_id).record
        path.parent.mkdir(parents=True)
        path.write_text("{}")
    assert local.worker_count(plan) == 0


def test_the_live_table_shows_who_trains_what(small):
    plan, _ = small
    assert tiny.train(plan) == 0
    board = ProgressTable(plan)
    assert board.done == {t.trial_id for t in plan.trials}
    trial = plan.trials[0]
    board.beats = [claim.Heartbeat(trial_id=trial.trial_id, step=5, steps=20, loss_nats=4.25, tokens_per_second=1000.0)]
    with open(os.devnull, "w") as nowhere:
        console = Console(width=120, record=True, file=nowhere)
        console.print(board)
    shown = console.export_text()
    for part in (trial.trial_id, "5/20", "4.2500", "1,000", "1.9 s", "2/2 trials"):
        assert part in shown
    assert board.time_left() == 0.0 or board.time_left() != board.time_left()


def test_a_launch_with_nothing_left_starts_no_worker(overrides, workspace, capsys, monkeypatch):
    grid = [*overrides, "sweep.name=small", tiny.steps(20, 40)]
    plan = plan_here(grid)
    assert tiny.train(plan) == 0
    monkeypatch.setattr(local.subprocess, "Popen", None)
    assert main(["launch", "--no-report", *grid]) == 0
    said = capsys.readouterr().err
    assert "all 2 trials are done" in said
    assert "2 of 2 trials have a record" in said
    assert SweepDir.find("small").settings().command[-len(grid) :] == grid


def test_a_launch_begins_by_saying_what_workers_of_another_still_train(overrides, workspace, capsys, monkeypatch):
    grid = [*overrides, "sweep.name=small", tiny.steps(20), "seed=0,1"]
    plan = plan_here(grid)
    said = []
    monkeypatch.setattr(local, "launch", lambda *args: said.append(capsys.readouterr().err) or local.Launched(75, 0.1))
    held = claim.acquire(RunDir.of_trunk(plan.runs, plan.families()[0][0].family_id).path)
    assert main(["launch", "--no-report", *grid]) == 75
    held.release()
    assert f"being trained by another launch: {plan.families()[0][0].family_id}: host " in said[0]


def test_failures_and_kills_are_said_while_it_runs(small, monkeypatch, capsys):
    plan, sweep = small
    fake_workers(monkeypatch, "print('failed: 3k-x: disk full'); print('noise')", "import os; os.kill(os.getpid(), 9)")
    start = local._start

    def logged(plan, folder, number, workers):
        with open(folder.logs / f"worker-{number}.log", "a") as log:
            log.write("failed: 3k-x: disk full\nnoise\n" if number == 0 else "")
        return start(plan, folder, number, workers)

    monkeypatch.setattr(local, "_start", logged)
    sweep.logs.mkdir(parents=True, exist_ok=True)
    (sweep.logs / "worker-0.log").write_text("failed: of an earlier launch\n")
    assert local.launch(plan, sweep, Console(stderr=True), NoMirror).status == 1
    said = capsys.readouterr().err
    assert said.count("failed: 3k-x: disk full") == 1
    assert "noise" not in said
    assert "earlier" not in said
    assert "was killed by SIGKILL" in said
