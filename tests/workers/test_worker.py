"""A worker stops when told, keeps one trial's failure from the others, and shares a runs folder with other workers."""

import itertools
import json
import os
import shutil
import signal
import time
from collections import defaultdict
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from sweep.cli import main
from sweep.common import files
from sweep.common.errors import UserError
from sweep.runs import attempt_log, claim
from sweep.runs.rundir import RunDir
from sweep.runs.state import NoQueue
from sweep.train import loop
from sweep.train.setup import Setup
from sweep.verbs.plan import plan_here
from sweep.workers.families import train_families
from sweep.workers.local import held_elsewhere
from sweep.workers.worker import Worker
from tests.helpers import tiny
from tests.helpers.killed import start


@pytest.fixture(scope="module")
def plan(overrides):
    """Two families of two budgets."""
    return plan_here([*overrides, tiny.steps(20, 40), "seed=0,1"])


@pytest.fixture(scope="module")
def uninterrupted(plan, tmp_path_factory):
    runs = tmp_path_factory.mktemp("whole") / "runs"
    assert tiny.train(plan, runs) == 0
    return runs


def assert_equal(plan, runs, uninterrupted):
    for trial in plan.trials:
        assert tiny.everything(runs, trial.trial_id) == tiny.everything(uninterrupted, trial.trial_id)


def before_step(monkeypatch, step, action):
    """Do something once, before the update that follows this many steps."""
    update, done = loop.update, []

    def acting(setup, state, lr):
        if state.step >= step and not done:
            done.append(step)
            action()
        return update(setup, state, lr)

    monkeypatch.setattr(loop, "update", acting)
    return done


# ---- told to stop ----


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2])
@pytest.mark.parametrize("step", [10, 17])
def test_a_signal_saves_and_asks_to_be_run_again(plan, uninterrupted, workspace, monkeypatch, number, step):
    """Step 10 is in the trunk, step 17 in the first trial's cooldown."""
    with monkeypatch.context() as patched:
        assert before_step(patched, step, lambda: os.kill(os.getpid(), number)) == []
        worker = Worker(plan.runs, Path(plan.config.paths.tokens), plan.config.run, "cpu")
        worker.stop.listen()
        assert train_families(worker, plan.families()) == 75
    short, family = plan.families()[0][0], plan.families()[0]
    trunk = RunDir.of_trunk(plan.runs, short.family_id)
    if step == 10:
        assert trunk.stable_steps() == [11]  # the step was finished
    else:
        assert RunDir.of_trial(plan.runs, min(family, key=lambda t: t.tokens).trial_id).checkpoint.exists()
    assert files.read_json_lines(trunk.attempts)[-1]["outcome"] == "stopped"
    assert not RunDir.of_trunk(plan.runs, plan.families()[1][0].family_id).path.exists()  # not begun
    assert not list(plan.runs.rglob("record.json"))
    assert tiny.train(plan) == 0
    assert_equal(plan, plan.runs, uninterrupted)


def test_the_verb_exits_with_75_and_goes_on_when_run_again(
    overrides, uninterrupted, plan, workspace, monkeypatch, capsys
):
    arguments = ["train", *overrides, tiny.steps(40), "seed=0"]
    with monkeypatch.context() as patched:
        before_step(patched, 35, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert main(arguments) == 75
    assert "not finished; the same command goes on from runs/" in capsys.readouterr().err
    assert main(arguments) == 0
    captured = capsys.readouterr()
    (trial,) = [t for t in plan.trials if (t.config.seed, t.config.steps) == (0, 40)]
    assert captured.out.startswith("finished: ")
    assert "step      40" in captured.err
    assert "step      32" not in captured.err  # it did not start over
    assert tiny.everything("runs", trial.trial_id) == tiny.everything(uninterrupted, trial.trial_id)
    assert main(arguments) == 0  # nothing to do
    assert "step" not in capsys.readouterr().err.replace("steps", "")


# ---- failures ----


def test_a_failing_trial_stops_neither_its_family_nor_the_others(plan, uninterrupted, workspace, monkeypatch):
    victim = min(plan.families()[0], key=lambda t: t.tokens)
    said = []
    with monkeypatch.context() as patched:
        train = loop.train

        def fail(curve, until):
            if curve.length == victim.config.steps and curve.setup.config.seed == victim.config.seed:
                raise RuntimeError("out of luck\nin two lines")
            train(curve, until)

        patched.setattr(loop, "train", fail)
        assert tiny.train(plan, log=said.append) == 1
    assert said == [f"failed: {victim.trial_id}: RuntimeError: out of luck"]
    run = RunDir.of_trial(plan.runs, victim.trial_id)
    text = run.error.read_text()
    assert text.startswith("Traceback (most recent call last)")
    assert "in two lines" in text
    assert plan.done() == {t.trial_id for t in plan.trials} - {victim.trial_id}
    last = files.read_json_lines(RunDir.of_trunk(plan.runs, victim.family_id).attempts)[-1]
    assert (last["outcome"], last["error"]) == ("failed", "RuntimeError: out of luck")
    assert tiny.train(plan) == 0
    assert not run.error.exists()
    assert_equal(plan, plan.runs, uninterrupted)


def test_a_damaged_trunk_fails_its_family_alone_and_names_the_file(plan, uninterrupted, workspace):
    family, other = plan.families()
    short = min(family, key=lambda t: t.tokens)
    assert tiny.train(replace(plan, trials=[short])) == 0
    stable = RunDir.of_trunk(plan.runs, short.family_id).stable(16)
    stable.write_bytes(stable.read_bytes()[:-100])
    said = []
    assert tiny.train(plan, log=said.append) == 1
    (line,) = said
    assert f"{stable}: damaged checkpoint (" in line
    assert "delete it to go on" in line
    assert {t.trial_id for t in other} | {short.trial_id} == plan.done()
    long = max(family, key=lambda t: t.tokens)
    assert RunDir.of_trial(plan.runs, long.trial_id).error.read_text() in line  # a person's matter: no traceback
    stable.unlink()
    assert tiny.train(plan) == 0
    assert_equal(plan, plan.runs, uninterrupted)


def test_missing_and_damaged_tokens_fail_in_one_line(plan, prepared, workspace):
    fingerprint = plan.trials[0].config.data.fingerprint
    said = []
    worker = Worker(plan.runs, workspace / "tokens", plan.config.run, "cpu", log=said.append)
    assert train_families(worker, plan.families()) == 1
    assert len(said) == 2
    assert all("no prepared tokens here; run: python -m sweep prepare" in line for line in said)
    shutil.copytree(prepared[1], workspace / "tokens")
    shard = workspace / "tokens" / fingerprint / "train.bin"
    shard.write_bytes(shard.read_bytes()[:-2])
    said.clear()
    assert train_families(worker, plan.families()) == 1
    assert len(said) == 2
    assert all(f"{shard}: damaged (" in line and "\n" not in line for line in said)


# ---- attempts without progress ----


@pytest.fixture
def lone(plan):
    """A single trial."""
    return replace(plan, trials=[max(plan.trials, key=lambda t: t.tokens)])


def fail_at(patched, step):
    """From now on every attempt fails before the update that follows this many steps."""
    update = loop.update

    def failing(setup, state, lr):
        if state.step >= step:
            raise RuntimeError("always here")
        return update(setup, state, lr)

    patched.setattr(loop, "update", failing)


def test_a_family_that_never_gets_further_is_given_up_until_a_person_says_retry(
    lone, uninterrupted, workspace, monkeypatch
):
    trunk = RunDir.of_trunk(lone.runs, lone.trials[0].family_id)
    said = []
    with monkeypatch.context() as patched:
        fail_at(patched, 17)
        for _ in range(2):
            assert tiny.train(lone, max_attempts=2, log=said.append) == 1
    assert tiny.train(lone, max_attempts=2, log=said.append) == 1  # it would succeed now, but nobody said so
    given_up = (
        f"{lone.trials[0].family_id}: given up after 2 attempts without progress (the last: RuntimeError: always here)"
    )
    assert said[-1] == f"failed: {given_up}; `python -m sweep retry SWEEP` tries again"
    assert [one.outcome for one in attempt_log.read(trunk)] == ["failed", "failed", "given up"]
    assert attempt_log.is_given_up(trunk)
    attempt_log.retry(trunk)
    assert not attempt_log.is_given_up(trunk)
    assert tiny.train(lone, max_attempts=2, log=said.append) == 0
    for trial in lone.trials:
        assert tiny.everything(lone.runs, trial.trial_id) == tiny.everything(uninterrupted, trial.trial_id)


def test_progress_between_failures_starts_the_count_anew(lone, workspace, monkeypatch):
    """However often it ends, as long as each attempt saves something first."""
    config = replace(lone.config, run=replace(lone.config.run, checkpoint_seconds=0.0))
    plan = replace(lone, config=config)
    for step in (5, 10, 12, 15, 20):
        with monkeypatch.context() as patched:
            fail_at(patched, step)
            assert tiny.train(plan, max_attempts=1) == 1
    assert tiny.train(plan, max_attempts=1) == 0


def test_killed_attempts_count_and_a_persons_ctrl_c_does_not(lone, workspace):
    trunk = RunDir.of_trunk(lone.runs, lone.trials[0].family_id)
    saved = attempt_log.SavedState()
    job = {"id": "4_2", "name": "x", "restart": 0, "cluster": "c", "node": "n1"}
    start = {"time": 0.0, "host": "h", "pid": 1, "saved_state": asdict(saved)}
    tiny.attempt(trunk, "start", attempt=1, **start)  # and then SIGKILL
    tiny.attempt(trunk, "start", attempt=2, job=None, **start)
    tiny.attempt(trunk, "end", attempt=2, time=1.0, outcome="stopped", error=None)
    assert len(attempt_log.without_progress(trunk, saved)) == 1
    tiny.attempt(trunk, "start", attempt=3, job=job, **start)
    tiny.attempt(
        trunk, "end", attempt=3, time=1.0, outcome="stopped", error=None
    )  # a time limit too short for one step
    assert [one.number for one in attempt_log.without_progress(trunk, saved)] == [1, 3]
    assert attempt_log.without_progress(trunk, replace(saved, records=1)) == []
    assert tiny.train(lone, max_attempts=3) == 0


def test_a_damaged_list_of_attempts_fails_its_family_alone(plan, workspace):
    family, other = plan.families()
    trunk = RunDir.of_trunk(plan.runs, family[0].family_id)
    trunk.path.mkdir(parents=True)
    trunk.attempts.write_text('half a li\n{"event": "start"}\n')
    said = []
    assert tiny.train(plan, log=said.append) == 1
    assert plan.done() == {t.trial_id for t in other}
    assert f"{trunk.attempts}:1: damaged (" in said[0]


# ---- out of device memory: a loss that raises the error of a full GPU, there being none here ----


@pytest.fixture
def small_device(monkeypatch):
    """A device that holds this many sequences at a time."""

    def hold(sequences, after_calls=0):
        loss_of, calls = Setup.loss_of, []

        def loss_or_error(setup, inputs_BT, targets_BT):
            calls.append(len(inputs_BT))
            if len(calls) > after_calls and len(inputs_BT) > sequences:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return loss_of(setup, inputs_BT, targets_BT)

        monkeypatch.setattr(Setup, "loss_of", loss_or_error)
        return calls

    return hold


def test_a_full_device_gets_the_largest_micro_batch_that_fits(plan, workspace, small_device):
    """The same bits as with that micro-batch from the start, and the same class."""
    family = plan.families()[0]
    options = replace(plan.config.run, micro_batch_sequences=1)
    by_hand = replace(plan, trials=family, config=replace(plan.config, run=options))
    assert tiny.train(by_hand, workspace / "by hand") == 0
    calls = small_device(1)
    said = []
    assert tiny.train(replace(plan, trials=family), log=said.append) == 0
    assert calls[:2] == [4, 2]
    assert [line.partition(": ")[2] for line in said] == [
        "out of device memory with 4 sequences at a time; going on with 2",
        "out of device memory with 2 sequences at a time; going on with 1",
    ]
    rows = tiny.lines(RunDir.of_trunk(plan.runs, family[0].family_id).attempts)
    assert [row["micro_batch_sequences"] for row in rows if row["event"] == "out of memory"] == [2, 1]
    for trial in family:
        assert tiny.everything(plan.runs, trial.trial_id) == tiny.everything(workspace / "by hand", trial.trial_id)
        env = json.loads(RunDir.of_trial(plan.runs, trial.trial_id).env.read_text())
        assert env["class"]["micro_batch_sequences"] == env["options"]["micro_batch_sequences"] == 1
        one, two = (tiny.record(runs, trial.trial_id) for runs in (plan.runs, workspace / "by hand"))
        assert one["execution_classes"] == two["execution_classes"] == [env["execution_class"]]


def test_it_goes_on_from_its_last_checkpoint_and_the_next_attempt_remembers(plan, workspace, small_device, monkeypatch):
    trial = plan.trials[0]
    config = replace(plan.config, run=replace(plan.config.run, checkpoint_seconds=0.0))
    alone = replace(plan, trials=[trial], config=config)
    calls = small_device(2, after_calls=10)
    steps = []
    update = loop.update

    def noted(setup, state, lr):
        steps.append(state.step)
        if state.step == 14:
            monkeypatch.setattr(loop, "update", update)
            os.kill(os.getpid(), signal.SIGTERM)
        return update(setup, state, lr)

    monkeypatch.setattr(loop, "update", noted)
    worker = Worker(plan.runs, Path(config.paths.tokens), config.run, "cpu")
    worker.stop.listen()
    assert train_families(worker, [[trial]]) == 75
    (again,) = {step for step in steps if steps.count(step) == 2}
    assert steps == [*range(again + 1), *range(again, 15)]  # one step twice, none lost
    calls.clear()
    assert tiny.train(alone) == 0
    assert max(calls) == 2  # it does not try what was too much
    assert len(tiny.record(plan.runs, trial.trial_id)["execution_classes"]) == 2


def test_one_sequence_that_does_not_fit_fails_in_one_line(plan, workspace, small_device):
    small_device(0)
    said = []
    assert tiny.train(replace(plan, trials=plan.trials[:1]), log=said.append) == 1
    assert said[-1].startswith(f"failed: {plan.trials[0].trial_id}: out of device memory with one sequence at a time;")
    assert "Traceback" not in RunDir.of_trial(plan.runs, plan.trials[0].trial_id).error.read_text()


# ---- claims ----


def test_a_requeued_job_waits_for_its_own_earlier_process(plan, uninterrupted, workspace, monkeypatch):
    """Its node lost the controller and goes on for a while; two never train at once."""
    for name, value in {"JOB_ID": "7", "RESTART_COUNT": "1", "CLUSTER_NAME": "c"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setattr(claim, "SILENT_SECONDS", 1.0)
    monkeypatch.setattr(claim, "HEARTBEAT_SECONDS", 0.1)
    trial = plan.trials[0]
    trunk = RunDir.of_trunk(plan.runs, trial.family_id).path
    before = replace(claim.Holder.here(), host="elsewhere", job=claim.Job("7", "x", 0, "c", "n1"))
    files.create_json(trunk / "claim.000001.json", asdict(before))
    files.write_json(trunk / "heartbeat.json", {"time": (last_beat := time.time())})
    assert tiny.train(replace(plan, trials=[trial])) == 0
    (start_row,) = [row for row in tiny.lines(trunk / "attempts.jsonl") if row["event"] == "start"]
    assert start_row["time"] > last_beat + 1.0
    assert start_row["job"] == {"id": "7", "name": "", "restart": 1, "cluster": "c", "node": ""}
    assert tiny.everything(plan.runs, trial.trial_id) == tiny.everything(uninterrupted, trial.trial_id)


def test_a_family_that_another_worker_holds_is_left_to_it(plan, workspace):
    first, second = plan.families()
    held = claim.acquire(RunDir.of_trunk(plan.runs, first[0].family_id).path)
    assert tiny.train(plan) == 0
    assert plan.done() == {t.trial_id for t in second}
    (line,) = held_elsewhere(plan, NoQueue())
    assert line.startswith(f"{first[0].family_id}: host ")
    held.release()
    assert held_elsewhere(plan, NoQueue()) == []


def test_a_lost_claim_saves_nothing_more(plan, workspace, monkeypatch):
    """Another worker has the folder now: its checkpoint must not be overwritten."""
    monkeypatch.setattr(claim, "HEARTBEAT_SECONDS", 0.01)
    trial = plan.trials[0]
    trunk = RunDir.of_trunk(plan.runs, trial.family_id)

    def lose():
        claim.force_release(trunk.path)
        time.sleep(0.2)

    before_step(monkeypatch, 10, lose)
    assert tiny.train(replace(plan, trials=[trial])) == 0
    assert trunk.stable_steps() == []
    assert [row.get("outcome") for row in tiny.lines(trunk.attempts)] == [None, "lost"]
    assert not RunDir.of_trial(plan.runs, trial.trial_id).record.exists()


def test_weights_stay_only_where_they_are_wanted(plan, workspace):
    config = replace(plan.config, run=replace(plan.config.run, keep_weights=False))
    assert tiny.train(replace(plan, trials=plan.trials[:1], config=config)) == 0
    assert not list(plan.runs.rglob("model.pt"))


def test_a_trial_json_of_another_trial_is_not_overwritten(plan, workspace):
    one, two = plan.trials[:2]
    one.keep(RunDir.of_trial(plan.runs, two.trial_id).trial)
    said = []
    assert tiny.train(replace(plan, trials=[two]), log=said.append) == 1
    assert "holds another trial than its folder's name says" in said[0]
    with pytest.raises(UserError):
        two.keep(RunDir.of_trial(plan.runs, two.trial_id).trial)


# ---- processes ----


@pytest.mark.slow
def test_workers_on_one_runs_folder_never_hold_a_family_at_once(overrides, plan, uninterrupted, workspace):
    """Three processes, four families."""
    more, sweep = tiny.make_sweep([*overrides, tiny.steps(20, 40), "seed=0,1,2,3"])
    said, err = start(sweep.path, "together", 3)
    assert [line["ended"] for line in said] == [0, 0, 0], err
    assert more.done() == {t.trial_id for t in more.trials}
    spans, by_pid = defaultdict(list), defaultdict(int)
    for family in more.families():
        rows = tiny.lines(RunDir.of_trunk(more.runs, family[0].family_id).attempts)
        ends = {row["attempt"]: row for row in rows if row["event"] == "end"}
        for row in rows:
            if row["event"] == "start":
                by_pid[row["pid"]] += 1
                spans[row["family_id"]].append((row["time"], ends[row["attempt"]]["time"]))
        assert [row["outcome"] for row in ends.values()].count("done") == len(ends)
    assert len(spans) == len(more.families())
    for held in spans.values():
        held.sort()
        assert all(one[1] <= two[0] for one, two in itertools.pairwise(held))
    assert len(by_pid) >= 2, err  # more than one of them did something
    assert_equal(plan, more.runs, uninterrupted)
    speeds = tiny.lines(more.runs / "speeds.jsonl")
    assert len(speeds) == len(more.trials)  # every trial was trained once


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_everything_done_stays(overrides, plan, uninterrupted, workspace):
    """A limit on file sizes, as strict as a full disk: metrics fit, weights do not; then neither do checkpoints."""
    small, sweep = tiny.make_sweep([*overrides, tiny.steps(20, 40), "seed=0", "run.checkpoint_seconds=1"])
    state = 3 * 4 * small.trials[0].params_total
    moments = workspace / "moments.json"
    moments.write_text(
        json.dumps([["full disk", None, state // 2], ["SIGTERM", None, 24], ["full disk", None, state // 2]])
    )
    said, err = start(sweep.path, moments)
    assert [line["ended"] for line in said if "ended" in line] == [1, 75, 1]
    trunk = RunDir.of_trunk(small.runs, small.trials[0].family_id)
    assert "Traceback" not in err
    lines = [line for line in err.splitlines() if line.startswith("failed: ")]
    assert len(lines) >= 2
    assert all(line.endswith(": File too large; free some space and run again, what is done is kept") for line in lines)
    assert str(trunk.path / "stable-") in lines[0]
    assert trunk.stable_steps()  # what the second worker saved
    short, long = sorted(small.trials, key=lambda t: t.tokens)
    assert tiny.everything(small.runs, short.trial_id) == tiny.everything(uninterrupted, short.trial_id)
    assert small.done() == {short.trial_id}
    assert not list(small.runs.rglob(".*.tmp"))
    assert tiny.train(small) == 0
    assert tiny.everything(small.runs, long.trial_id) == tiny.everything(uninterrupted, long.trial_id)
