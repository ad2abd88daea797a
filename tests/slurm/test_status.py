"""The state of every trial from real run folders, claims and submissions; what the queue says is given by hand here.

On a real Slurm: tests/system/test_slurm_verbs.py.
"""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import psutil
import pytest

from slurm import commands
from slurm.queue_state import QueueState, ask
from slurm.submission import JobRef, Submission
from sweep.cli import main
from sweep.common import files
from sweep.common.checkout import ROOT
from sweep.runs import attempt_log, claim
from sweep.runs.claim import Holder, Job
from sweep.runs.rundir import RunDir
from sweep.runs.sweepdir import SweepDir
from sweep.verbs import cancel, launch
from sweep.verbs.status import look, to_json
from tests.helpers import tiny
from tests.helpers.made_up import answer, element, elsewhere, end, family_of, hold, record, start, submission

pytestmark = pytest.mark.usefixtures("end_processes")


@pytest.fixture
def small(overrides, workspace):
    """Two families of two budgets: (plan, sweep)."""
    return tiny.make_sweep([*overrides, tiny.steps(20, 40), "seed=0,1"])


def states(sweep):
    return {trial.trial_id: (trial.state, trial.note) for trial in look(sweep).trials}


# ---- without Slurm ----


def test_nothing_begun_is_missing(small):
    _, sweep = small
    status = look(sweep)
    assert status.counts() == {"missing": 4}
    assert [trial.trial_id for trial in status.trials] == [line.trial_id for line in sweep.planned()]
    assert (status.queue.answers, status.queue.problems) == (True, [])
    assert to_json(status)["slurm"] == {"answers": None, "jobs": {}}  # which was not asked


def test_records_claims_and_attempts_say_what_became_of_each(small):
    plan, sweep = small
    short, long, trunk = family_of(plan)
    other_short, other_long, other_trunk = family_of(plan, 1)
    record(plan, short)
    record(plan, other_short, "diverged")
    hold(trunk, Holder.here(), trial_id=long.trial_id, step=10, tokens_per_second=128.0)
    start(trunk)
    start(other_trunk)  # and then SIGKILL
    status = {trial.trial_id: trial for trial in look(sweep).trials}
    assert [status[t.trial_id].state for t in (short, long, other_short, other_long)] == [
        "finished", "running", "diverged", "lost",
    ]  # fmt: skip
    running = status[long.trial_id]
    assert (running.step, running.steps, running.seconds_left) == (10, 40, 30.0)
    assert running.where == claim.current_holder(trunk.path).host
    assert "exited without reporting a result" in status[other_long.trial_id].note


def test_the_others_of_a_family_that_is_trained_wait_for_it_or_have_failed_in_it(small):
    plan, sweep = small
    short, long, trunk = family_of(plan)
    hold(trunk, Holder.here(), trial_id=long.trial_id, step=3)
    start(trunk)
    assert states(sweep)[short.trial_id] == ("waiting", "its family is being trained")
    error = RunDir.of_trial(plan.runs, short.trial_id).error
    error.parent.mkdir(parents=True)
    error.write_text("Traceback (most recent call last):\n  File x\n    y()\nRuntimeError: out of luck\nin two lines\n")
    assert states(sweep)[short.trial_id] == ("failed", "RuntimeError: out of luck")
    os.utime(error, (1, 1))  # of an earlier attempt: it may still come to this trial again
    assert states(sweep)[short.trial_id] == ("waiting", "its family is being trained")


@pytest.mark.parametrize(
    ("outcome", "error", "state", "note"),
    [
        ("failed", "RuntimeError: bad", "failed", "RuntimeError: bad"),
        ("given up", "given up after 3 attempts", "given up", "given up after 3 attempts"),
        ("stopped", None, "missing", "stopped with everything saved"),
        ("lost", None, "missing", "not reached"),
    ],
)
def test_how_the_last_attempt_ended(small, outcome, error, state, note):
    plan, sweep = small
    short, _, trunk = family_of(plan)
    start(trunk)
    end(trunk, outcome, error=error)
    got = states(sweep)[short.trial_id]
    assert got[0] == state
    assert got[1].startswith(note)


def test_chained_errors_show_the_last_one(small):
    plan, sweep = small
    short, _, trunk = family_of(plan)
    start(trunk)
    end(trunk, "failed", error="?")
    try:
        try:
            raise ValueError("first")
        except ValueError as error:
            raise RuntimeError("second") from error
    except RuntimeError:
        import traceback

        text = traceback.format_exc()
    files.write(RunDir.of_trial(plan.runs, short.trial_id).error, lambda file: file.write(text.encode()))
    assert states(sweep)[short.trial_id] == ("failed", "RuntimeError: second")


def test_damage_is_said_of_the_trial_that_has_it(small):
    plan, sweep = small
    short, long, trunk = family_of(plan)
    record(plan, short)
    RunDir.of_trial(plan.runs, short.trial_id).record.write_text('{"status"')
    trunk.path.mkdir(parents=True)
    trunk.attempts.write_text("{\n{}\n")
    got = states(sweep)
    assert (got[short.trial_id][0], got[long.trial_id][0]) == ("damaged", "failed")
    assert "record.json: damaged" in got[short.trial_id][1]
    assert "delete it" in got[short.trial_id][1]
    assert "attempts.jsonl:1: damaged (" in got[long.trial_id][1]


# ---- with submissions ----


def test_a_submission_of_an_earlier_version_reads_the_same(small):
    """Its arrays said at which element they begin twice."""
    made = submission(*small)
    path = made.folder / "submission.json"
    value = files.read_json(path)
    value["chunks"][0] |= {"tasks": [11, 21], "offset": 11}
    files.write_json(path, value)
    (chunk,) = Submission.read(made.folder).chunks
    assert (chunk.tasks, chunk.index(12), chunk.task(1)) == ((11, 21), 1, 12)


@pytest.fixture
def slurm(monkeypatch):
    """A queue and accounting that say what a test tells them to."""
    return partial(answer, monkeypatch)


def test_what_waits_says_why(small, slurm):
    plan, sweep = small
    submission(plan, sweep)
    slurm(element())
    assert set(states(sweep).values()) == {("queued", "Priority")}
    slurm(element("COMPLETING", "None"))
    assert set(states(sweep).values()) == {("queued", "COMPLETING")}
    slurm(element("RUNNING", "None"))
    assert set(states(sweep).values()) == {("waiting", "its job is starting")}
    assert {trial.where for trial in look(sweep).trials} == {"n1 job 7_0"}


def test_an_element_that_has_begun_a_family_trains_another_until_it_is_started_anew(small, slurm):
    plan, sweep = small
    _, long, trunk = family_of(plan)
    submission(plan, sweep, age=900)
    start(trunk, age=100, job=elsewhere().job)
    hold(trunk, elsewhere(), trial_id=long.trial_id, step=5)
    waiting = family_of(plan, 1)[0].trial_id
    slurm(replace(element("RUNNING"), run_seconds=120))
    assert states(sweep)[waiting] == ("waiting", "its job runs, and trains another family")
    slurm(replace(element("RUNNING"), run_seconds=10))
    assert states(sweep)[waiting] == ("waiting", "its job is starting")


def test_an_element_without_a_written_id_is_found_by_its_name(small, slurm):
    plan, sweep = small
    submission(plan, sweep, job_id=None)
    slurm(element(job_id=99))
    assert {trial.where for trial in look(sweep).trials} == {"job 99_0"}
    slurm()
    assert set(states(sweep).values()) == {("missing", "never started")}


def test_a_failed_family_of_a_running_element_is_failed_and_of_a_requeued_one_queued(small, slurm):
    plan, sweep = small
    short, _, trunk = family_of(plan)
    submission(plan, sweep, age=900)
    start(trunk, job=Job("7_0", "small.001.0-ab", 0, "c", "n1"))
    end(trunk, "failed", error="RuntimeError: bad")
    slurm(element("RUNNING"))
    assert states(sweep)[short.trial_id] == ("failed", "RuntimeError: bad")
    slurm(element("PENDING", "BeginTime"))
    assert states(sweep)[short.trial_id] == ("queued", "BeginTime")


def test_a_job_that_ended_before_training_is_failed_or_lost_with_the_end_of_its_log(small, slurm):
    plan, sweep = small
    made = submission(plan, sweep)
    slurm()
    assert set(states(sweep).values()) == {("lost", "its job ended before training began: it left no log")}
    (made.folder / "logs" / "7_0.log").write_text("one\nn1: cannot read runs\n\n")
    slurm(ended={(7, 0): commands.Ended("FAILED", 1, 2, "n1")})
    assert set(states(sweep).values()) == {
        ("failed", "its job ended (FAILED, exit status 1) before training began: n1: cannot read runs")
    }
    slurm(ended={(7, 0): commands.Ended("NODE_FAIL", 0, 2, "n1")})
    assert {state for state, _ in states(sweep).values()} == {"lost"}
    slurm(ended={(7, 0): commands.Ended("CANCELLED", 0, 0, "")})
    assert set(states(sweep).values()) == {("missing", "its job was cancelled")}


def test_data_that_could_not_be_prepared_is_what_failed(small, slurm):
    """Slurm ends the arrays that wait for it: CANCELLED would be the wrong word."""
    plan, sweep = small
    made = submission(plan, sweep)
    made.prepare = JobRef("small.001.prepare-ab", "prepare.sbatch", 6)
    made.write()
    ended = {(7, 0): commands.Ended("CANCELLED", 0, 0, ""), (6, None): commands.Ended("FAILED", 2, 3, "n1")}
    slurm(commands.Job(6, None, "small.001.prepare-ab", "RUNNING", "None", "n1", 1), element(reason="Dependency"))
    assert set(states(sweep).values()) == {("queued", "Dependency")}
    (made.folder / "logs" / "prepare-6.log").write_text("python -m sweep prepare: corpus.jsonl: no such file\n")
    slurm(ended=ended)
    assert set(states(sweep).values()) == {
        ("failed", "its data was not prepared: python -m sweep prepare: corpus.jsonl: no such file")
    }
    files.write_json(made.folder / "prepared.json", {})
    assert set(states(sweep).values()) == {("missing", "its job was cancelled")}


def test_an_attempt_of_before_the_submission_does_not_stand_for_it(small, slurm):
    plan, sweep = small
    short, _, trunk = family_of(plan)
    submission(plan, sweep, age=60)
    start(trunk, age=600)
    end(trunk, "failed", error="RuntimeError: bad")
    slurm()
    assert states(sweep)[short.trial_id][0] == "lost"


def test_a_silent_claim_of_a_job_that_is_gone_is_lost_with_what_accounting_says(small, slurm):
    plan, sweep = small
    short, _, trunk = family_of(plan)
    submission(plan, sweep, age=900)
    start(trunk, job=elsewhere().job)
    hold(trunk, elsewhere(), age=300, trial_id=short.trial_id, step=5)
    slurm(ended={(7, 0): commands.Ended("NODE_FAIL", 0, 300, "n1")})
    state, note = states(sweep)[short.trial_id]
    assert state == "lost"
    assert note.endswith("exited without reporting a result: NODE_FAIL by Slurm")
    slurm()  # no accounting
    assert states(sweep)[short.trial_id][1].endswith("exited without reporting a result")


def test_a_living_claim_on_another_node_runs_and_a_silent_one_is_said(small, slurm):
    plan, sweep = small
    short, _, trunk = family_of(plan)
    submission(plan, sweep, age=900)
    start(trunk, job=elsewhere().job)
    hold(trunk, elsewhere(), age=1, trial_id=short.trial_id, step=5)
    slurm(element("RUNNING"))
    assert states(sweep)[short.trial_id] == ("running", "")
    files.write_json(trunk.path / "heartbeat.json", {"time": time.time() - 300, "trial_id": short.trial_id, "step": 5})
    state, note = states(sweep)[short.trial_id]
    assert state == "stalled"
    assert note.startswith("no heartbeat for 5 m 00 s, and nobody here can tell whether its process lives")


def test_with_the_controller_down_the_run_folders_are_shown_and_one_line_says_so(small, slurm):
    plan, sweep = small
    short, long, trunk = family_of(plan)
    record(plan, short)
    submission(plan, sweep)
    hold(trunk, elsewhere(), trial_id=long.trial_id, step=5)
    slurm(answers=False)
    status = look(sweep)
    (problem,) = status.queue.problems
    assert problem == (
        "squeue: Unable to contact slurm controller (connect failure); what follows is from the run folders alone"
    )
    got = states(sweep)
    assert (got[short.trial_id][0], got[long.trial_id][0]) == ("finished", "running")
    assert got[family_of(plan, 1)[0].trial_id] == ("queued", "submitted; Slurm does not answer")


def test_a_machine_without_slurm_conf_is_one_line_that_names_it(small, tmp_path, monkeypatch, capsys):
    plan, sweep = small
    submission(plan, sweep)
    said = """squeue: error: resolve_ctls_from_dns_srv: res_nsearch error: Unknown host
squeue: error: fetch_config: DNS SRV lookup failed
squeue: error: _establish_config_source: failed to fetch config
squeue: fatal: Could not establish a configuration source
"""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("sbatch", "squeue", "scancel", "scontrol"):
        (programs / name).write_text(f"#!/bin/sh\nprintf '%s' '{said}' >&2\nexit 1\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.delenv("SLURM_CONF", raising=False)
    assert main(["status", "small"]) == 0
    assert capsys.readouterr().out.splitlines()[1] == (
        "squeue: found no slurm.conf; set SLURM_CONF to the path of the cluster's; what follows is from the run "
        "folders alone"
    )


@pytest.mark.parametrize("damage", ["{", "[]", '{"chunks": []}', '{"chunks": [{"name": "x"}]}'])
def test_a_damaged_submission_is_one_line_and_the_others_count(small, slurm, damage):
    plan, sweep = small
    submission(plan, sweep)
    damaged = submission(plan, sweep, number=2, job_id=11)
    (damaged.folder / "submission.json").write_text(damage)
    slurm(element())
    status = look(sweep)
    (problem,) = status.queue.problems
    assert "002/submission.json: damaged" in problem
    assert status.counts() == {"queued": 4}


def test_the_newest_submission_that_is_in_the_queue_counts(small, slurm):
    plan, sweep = small
    submission(plan, sweep, age=900)
    submission(plan, sweep, number=2, job_id=11)
    slurm(element("PENDING", "Resources", job_id=11, number=2))
    assert {trial.where for trial in look(sweep).trials} == {"job 11_0"}
    asked = ask(sweep)
    assert isinstance(asked, QueueState)
    assert asked.job_is_gone(Job("7_0", "small.001.0-ab", 0, "c", "n1")) is True
    assert asked.job_is_gone(Job("5_0", "of another sweep", 0, "c", "n1")) is True  # Slurm is asked about it
    assert asked.job_is_gone(Job("5_0", "of another sweep", 0, "of another cluster", "n1")) is None


# ---- the verbs ----


def test_status_shows_totals_reasons_and_errors(small, slurm, capsys):
    plan, sweep = small
    short, long, trunk = family_of(plan)
    record(plan, short)
    submission(plan, sweep)
    start(trunk, age=10)
    end(trunk, "failed", error="RuntimeError: bad", age=5)
    slurm(ended={(8, None): commands.Ended("COMPLETED", 0, 1, "n1")})
    assert main(["status", "small"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0] == "sweep small: 4 trials  1 finished  1 failed  2 lost"
    assert "collector: COMPLETED" in out
    assert long.trial_id in out
    assert "RuntimeError: bad" in out
    assert main(["status", "small", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["counts"] == {"finished": 1, "failed": 1, "lost": 2}
    assert {trial["trial_id"] for trial in told["trials"]} == {trial.trial_id for trial in plan.trials}
    assert main(["status", "small", "--all"]) == 0
    out = capsys.readouterr().out
    assert all(trial.trial_id in out for trial in plan.trials)
    assert main(["status"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["sweep", "trials"]
    assert lines[1].split() == ["small", "4", "1", "1", "2"]


def test_status_groups_what_went_wrong_alike(small, slurm, capsys):
    plan, sweep = small
    made = submission(plan, sweep)
    (made.folder / "logs" / "7_0.log").write_text("n1: cannot read runs\n")
    slurm(ended={(7, 0): commands.Ended("FAILED", 1, 2, "n1")})
    assert main(["status", "small"]) == 0
    (row,) = (line for line in capsys.readouterr().out.splitlines() if "cannot read runs" in line)
    assert row.split()[0] == "4"
    assert f"{sweep.planned()[0].trial_id}, …" in row
    assert main(["status", "small", "--all"]) == 0
    assert capsys.readouterr().out.count("cannot read runs") == 4


def test_status_watches_until_nothing_can_change(small, slurm, capsys, monkeypatch):
    plan, sweep = small
    submission(plan, sweep)
    slurm(element())

    def meanwhile(seconds):
        slurm()
        for trial in plan.trials:
            record(plan, trial)

    monkeypatch.setattr(time, "sleep", meanwhile)
    assert main(["status", "small", "--watch"]) == 0
    assert "4 finished" in capsys.readouterr().out


def test_unknown_names_are_told_what_there_is(small, capsys):
    plan, _ = small
    assert main(["status", "smal"]) == 2
    assert "smal: no such sweep; did you mean small? there are: small" in capsys.readouterr().err
    trial_id = plan.trials[0].trial_id
    assert main(["cancel", "small", trial_id[:-1] + "?"]) == 2
    assert f"no such run in sweep small; close to it: {trial_id}" in capsys.readouterr().err
    assert main(["logs", trial_id[:-1] + "?"]) == 2
    assert f"no such run in runs/ or any sweep; close to it: {trial_id}" in capsys.readouterr().err
    assert main(["retry", "small", "3"]) == 2
    assert "3: 4 runs begin with it: " in capsys.readouterr().err


def test_looking_starts_without_torch(small):
    """And without what takes as long."""
    code = (
        "import sys; from sweep.cli import main\n"
        "for arguments in (['status', 'small'], ['logs', sys.argv[1]], ['cancel', 'small']):\n"
        "    assert main(arguments) == 0\n"
        "print([name for name in ('torch', 'pandas', 'hydra', 'datasets', 'wandb') if name in sys.modules])"
    )
    plan, _ = small
    ended = subprocess.run(
        [sys.executable, "-c", code, plan.trials[0].trial_id],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == "[]"


def test_looking_changes_nothing(small, slurm):
    plan, sweep = small
    submission(plan, sweep, job_id=None)
    _, long, trunk = family_of(plan)
    start(trunk)
    hold(trunk, elsewhere(), trial_id=long.trial_id)
    slurm(element())

    def everything():
        return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in Path().rglob("*")}

    before = everything()
    main(["status", "small"])
    main(["logs", long.trial_id])
    assert everything() == before


# ---- logs ----


def test_logs_shows_the_attempts_their_files_in_order_and_the_error(small, slurm, capsys):
    plan, sweep = small
    short, _, trunk = family_of(plan)
    made = submission(plan, sweep)
    sweep.logs.mkdir()
    (sweep.logs / "worker-0.log").write_text("of the worker\n")
    os.utime(sweep.logs / "worker-0.log", (1, 1))
    (made.folder / "logs" / "7_0.log").write_text("of the element\n")
    start(trunk, log=str((sweep.logs / "worker-0.log").resolve()))
    end(trunk, "failed", error="RuntimeError: bad", age=595)
    start(trunk, number=2, age=5, job=Job("7_0", "n", 1, "c", "n1"), log=str(sweep.path / "gone.log"))
    error = RunDir.of_trial(plan.runs, short.trial_id).error
    files.write(error, lambda file: file.write(b"Traceback\n  x\nRuntimeError: bad\n"))
    assert main(["logs", short.trial_id]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("attempt 1: ")
    assert lines[0].endswith(" on h, failed after 5.0 s: RuntimeError: bad")
    assert lines[1].endswith(" on n1, job 7_0 (restart 1), no end")
    assert lines[2:] == [
        f"earlier: {(sweep.logs / 'worker-0.log').resolve()}",
        f"== {(made.folder / 'logs' / '7_0.log').resolve()}",
        "of the element",
        f"== {error}",
        "Traceback",
        "  x",
        "RuntimeError: bad",
    ]
    assert main(["logs", short.family_id, "--all"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines.index("of the worker") < lines.index("of the element")


def test_logs_ends_with_the_newest_job_even_if_it_never_came_to_the_run(small, slurm, capsys):
    plan, sweep = small
    short, _, trunk = family_of(plan)
    sweep.logs.mkdir()
    (sweep.logs / "worker-0.log").write_text("of the worker\n")
    start(trunk, log=str((sweep.logs / "worker-0.log").resolve()))
    made = submission(plan, sweep)
    (made.folder / "logs" / "7_0.log").write_text("n1: cannot read runs\n")
    assert main(["logs", short.trial_id]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("job 7_0 (submission 001 of sweep small): ended before it came to this run")
    assert lines[-1] == "n1: cannot read runs"
    record(plan, short)
    before = time.time() - 300
    os.utime(RunDir.of_trial(plan.runs, short.trial_id).record, (before, before))
    assert main(["logs", short.trial_id]) == 0  # the later job was for others of its family
    assert capsys.readouterr().out.splitlines()[-1] == "of the worker"


def test_logs_of_a_sweep_asks_for_a_run_of_it(small, capsys):
    assert main(["logs", "small"]) == 2
    assert "small is a sweep: give a run of it, `python -m sweep status small --all` lists" in capsys.readouterr().err


def test_logs_follows_until_there_is_a_record(small, capsys, monkeypatch):
    plan, sweep = small
    short, _, trunk = family_of(plan)
    sweep.logs.mkdir()
    log = sweep.logs / "worker-0.log"
    log.write_text("one\n")
    start(trunk, log=str(log))
    turns = []

    def meanwhile(seconds):
        turns.append(seconds)
        with open(log, "a") as file:
            file.write(f"turn {len(turns)}\n")
        if len(turns) == 3:
            record(plan, short)

    monkeypatch.setattr(time, "sleep", meanwhile)
    assert main(["logs", "-f", short.trial_id]) == 0
    assert capsys.readouterr().out.splitlines()[2:] == ["one", "turn 1", "turn 2", "turn 3"]


def test_logs_of_what_was_not_begun_says_so(small, capsys):
    plan, _ = small
    assert main(["logs", plan.trials[0].trial_id]) == 0
    assert "no log yet" in capsys.readouterr().err


# ---- cancel and retry ----


def test_cancel_ends_all_jobs_of_a_sweep_or_the_elements_of_a_run(small, slurm, capsys, monkeypatch):
    plan, sweep = small
    short, long, _ = family_of(plan)
    other_short, other_long, _ = family_of(plan, 1)
    record(plan, other_short)
    submission(plan, sweep)
    collector = commands.Job(8, None, "small.001.collector-ab", "PENDING", "Dependency", "", 0)
    slurm(element(), collector)
    monkeypatch.setattr(commands, "cancel", lambda targets: print(f"({' '.join(targets)})"))
    assert main(["cancel", "small", short.trial_id]) == 0
    named, *told = capsys.readouterr().out.splitlines()
    assert named.startswith("element 7_0 holds these unfinished runs too: ")
    assert set(named.partition("too: ")[2].split(", ")) == {long.trial_id, other_long.trial_id}
    assert told == ["(7_0)", "cancelled element 7_0"]
    assert main(["cancel", "small"]) == 0
    assert "cancelled job 8 (small.001.collector-ab)" in capsys.readouterr().out


def test_cancel_of_a_finished_run_leaves_its_element_to_the_others(small, slurm, capsys, monkeypatch):
    plan, sweep = small
    short, _, _ = family_of(plan)
    record(plan, short)
    submission(plan, sweep)
    slurm(element("RUNNING"))
    monkeypatch.setattr(commands, "cancel", lambda targets: pytest.fail(f"cancelled {targets}"))
    assert main(["cancel", "small", short.trial_id]) == 0
    assert capsys.readouterr().out == f"nothing to cancel: {short.trial_id} has its record\n"


@pytest.fixture
def worker(tmp_path):
    """Starts `python -m sweep work FOLDER`, of a package `sweep` that only waits."""
    package = tmp_path / "waiting" / "sweep"
    package.mkdir(parents=True)
    (package / "__main__.py").write_text("print(flush=True)\nimport time\ntime.sleep(120)\n")
    started = []

    def start(folder, *more):
        command = [sys.executable, "-m", "sweep", "work", str(folder.resolve()), *more]
        environment = {**os.environ, "PYTHONPATH": str(package.parent)}
        started.append(subprocess.Popen(command, cwd=package.parent, env=environment, stdout=subprocess.PIPE))
        started[-1].stdout.readline()
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def claimed_by(process):
    return replace(Holder.here(), pid=process.pid, started=psutil.Process(process.pid).create_time())


def test_cancel_stops_workers_that_have_claimed_nothing_yet(small, capsys, worker):
    _, sweep = small
    one, two = worker(sweep.path), worker(sweep.path, "--families", "f")
    element_of_slurm = worker(sweep.path, "--submission", "001", "--task", "0", "--worker")
    assert main(["cancel", "small"]) == 0
    assert (one.wait(30), two.wait(30), element_of_slurm.poll()) == (-signal.SIGTERM, -signal.SIGTERM, None)
    assert f"told worker {one.pid}, which trains nothing yet, to save and stop" in capsys.readouterr().out


def test_cancel_ends_a_local_launch_whose_workers_are_still_starting(overrides, workspace):
    grid = [*overrides, "sweep.name=small", tiny.steps(4000), "seed=0,1", "run.workers=2"]
    tiny.make_sweep(grid)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    launched = subprocess.Popen([sys.executable, "-m", "sweep", "launch", "--no-report", *grid], env=environment)
    end = time.monotonic() + 120
    while len(cancel._workers(SweepDir(Path("sweeps/small")))) < 2:
        assert launched.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)
    assert main(["cancel", "small"]) == 0
    assert launched.wait(60) == 75


def test_cancel_leaves_the_workers_of_another_sweep_with_the_same_runs(small, overrides, capsys, worker):
    plan, sweep = small
    _, other = tiny.make_sweep([*overrides, tiny.steps(20, 40), "seed=0,1"], name="other")
    short, long, trunk = family_of(plan)
    record(plan, short)
    process = worker(sweep.path)
    hold(trunk, claimed_by(process), trial_id=long.trial_id)
    assert main(["cancel", other.name]) == 0
    assert capsys.readouterr().out.startswith("nothing to cancel: ")
    assert process.poll() is None
    assert main(["cancel", "small", family_of(plan, 1)[0].trial_id]) == 0
    assert "train other runs, or nothing yet; `cancel small` stops them all" in capsys.readouterr().out
    assert process.poll() is None
    assert main(["cancel", "small", long.trial_id]) == 0
    assert f"told worker {process.pid}, which trains {long.family_id}" in capsys.readouterr().out
    assert process.wait(30) == -signal.SIGTERM


def test_cancel_says_when_there_is_nothing_and_when_slurm_does_not_answer(small, slurm, capsys):
    plan, sweep = small
    assert main(["cancel", "small"]) == 0
    assert "nothing to cancel" in capsys.readouterr().out
    submission(plan, sweep)
    slurm(answers=False)
    assert main(["cancel", "small"]) == 2
    assert "were not cancelled: Slurm does not answer" in capsys.readouterr().err


def test_cancel_names_the_workers_of_this_sweep_on_other_hosts(small, capsys):
    plan, sweep = small
    _, _, trunk = family_of(plan)
    _, _, other = family_of(plan, 1)
    for number, (one, log) in enumerate(((trunk, sweep.logs), (other, Path("sweeps/other/logs")))):
        hold(one, replace(Holder.here(), host="elsewhere", pid=42 + number))
        start(one, log=str((log / "worker-0.log").resolve()))
    assert main(["cancel", "small"]) == 0
    assert capsys.readouterr().err == f"{trunk.path.name}: trained on host elsewhere; there: kill -TERM 42\n"


def test_retry_forgets_failures_and_launches_only_these(small, slurm, capsys, monkeypatch):
    plan, sweep = small
    short, _, trunk = family_of(plan)
    start(trunk)
    end(trunk, "given up", error="given up after 3 attempts")
    error = RunDir.of_trial(plan.runs, short.trial_id).error
    files.write(error, lambda file: file.write(b"RuntimeError: bad\n"))
    launched = []
    monkeypatch.setattr(launch, "launch", lambda request: launched.append(request) or 0)
    assert main(["retry", "small", short.trial_id]) == 0
    assert not attempt_log.is_given_up(trunk)
    assert not error.exists()
    assert launched == [launch.Request(sweep.overrides(), only=frozenset({short.family_id}))]
    for trial in plan.trials:
        record(plan, trial)
    assert main(["retry", "small"]) == 0
    assert "nothing to retry" in capsys.readouterr().out


def test_retry_trains_here_what_was_given_up_and_nothing_else(small, capsys):
    """A sweep without Slurm, trained by a worker of its own."""
    plan, sweep = small
    short, long, trunk = family_of(plan)
    settings = asdict(sweep.settings())
    files.write_json(sweep.path / "sweep.json", {**settings, "overrides": [*sweep.overrides(), "sweep.name=small"]})
    start(trunk, number=0, standing={})
    end(trunk, "given up", number=0, error="given up after 3 attempts")
    assert main(["retry", "small", short.trial_id]) == 0
    assert {path.parent.name for path in plan.runs.glob("*/record.json")} == {short.trial_id, long.trial_id}
    told = [one.outcome for one in attempt_log.read(trunk)]
    assert told == ["given up", "done"]
    assert "2 of 2 trials have a record" in capsys.readouterr().err
    log = Path(attempt_log.read(trunk)[-1].start.log)
    assert log == (sweep.logs / "worker-0.log").resolve()
    assert f"{short.trial_id}: begins" in log.read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--submission", "002", "--task", "0"], "--submission=002: no such submission in sweeps/small/slurm"),
        (["--submission", "001", "--task", "3"], "--task=3: sweeps/small/slurm/001/tasks.jsonl has tasks 0 to 0"),
        (["--submission", "001"], "--task=None: "),
    ],
)
def test_an_element_that_is_not_there_is_one_line(small, capsys, arguments, said):
    plan, sweep = small
    submission(plan, sweep)
    assert main(["work", str(sweep.path), *arguments]) == 2
    assert said in capsys.readouterr().err
