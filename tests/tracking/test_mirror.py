"""What W&B has of a trial is what its run directory has: every step once, whoever is killed, stopped or out of disk.

Read back with wandb's own reader from the files of all attempts.
"""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict, replace

import psutil
import pytest

from sweep.common.checkout import ROOT
from sweep.common.files import write_json
from sweep.common.units import short
from sweep.plan.storage import planned_trials
from sweep.plan.trial import Trial
from sweep.runs.rundir import RunDir
from sweep.runs.sweepdir import SweepDir
from sweep.tracking import follow, wandb_files
from sweep.tracking.follow import Follower
from tests.helpers import tiny
from tests.helpers.replay import PROJECT, Merged, Replay, wait_for

KEY = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def trained(overrides, tmp_path_factory):
    """(plan, runs) of a family of two trials with a row at every step."""
    folder = tmp_path_factory.mktemp("trained")
    paths = [f"paths.runs={folder}/runs", f"paths.sweeps={folder}/sweeps"]
    plan, _ = tiny.make_sweep([*overrides, *paths, tiny.steps(60, 100), "eval.log_every_steps=1"])
    assert tiny.train(plan) == 0
    return plan, folder / "runs"


@pytest.fixture
def again(trained, prepared, tmp_path):
    """The longer trial, to be given out again."""
    plan, runs = trained
    trial = max(plan.trials, key=lambda trial: trial.tokens)
    return Replay(runs, trial, tmp_path / "runs", prepared[1])


def merged(replay: Replay) -> Merged:
    return Merged(replay.runs, replay.trial.trial_id)


def assert_whole(replay: Replay) -> Merged:
    """Every step once and in order, with the values of the run directory, and the record as the summary."""
    found = merged(replay)
    assert found.steps == replay.steps
    for row, line in zip(found.rows, replay.lines, strict=True):
        logged = json.loads(line)
        assert row["tokens"] == logged["tokens"]
        assert row["flops"] == logged["flops"]
        assert row.get("loss/val_nats") == logged["val_loss_nats"]
        assert row.get("loss/train_nats") == logged["train_loss_nats"]
        assert row["optim/lr"] == logged["lr"]
    record = json.loads(replay.run.record.read_text())
    for key in ("status", "loss_nats", "bits_per_byte", "steps_done", "params", "execution_class", "code_hash"):
        assert found.summary[key] == record[key], key
    assert found.summary["tokens"] == record["tokens"]
    assert found.config["N"] == replay.trial.params_non_embedding
    assert found.exit_codes[-1] == 0
    assert json.loads((replay.run.path / "wandb" / "mirrored.json").read_text())["last_step"] == replay.steps[-1]
    return found


# ---- a plain run ----


@pytest.fixture(scope="module")
def launched(overrides, tmp_path_factory):
    """(plan, folder, what was said) of a launch from an empty folder, with a key in the environment."""
    folder = tmp_path_factory.mktemp("launched")
    grid = [*overrides, "sweep.name=small", tiny.steps(40, 60), "wandb.mode=offline", "wandb.every_seconds=0.5"]
    ended = subprocess.run(
        [sys.executable, "-m", "sweep", "launch", "--no-report", *grid],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "WANDB_API_KEY": KEY},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    trials = planned_trials(SweepDir(folder / "sweeps/small"))
    return trials, folder, ended.stderr


def test_each_trial_is_one_run_with_what_people_filter_by(launched):
    trials, folder, _ = launched
    for trial in trials:
        found = Merged(folder / "runs", trial.trial_id)
        assert len(found.files) == 1
        (about,) = (record["run"] for record in found.records if record["type"] == "run")
        assert about["run_id"] == about["display_name"] == trial.trial_id
        assert about["run_group"] == trial.family_id
        assert about["job_type"] == "trial"
        assert about["tags"] == ["small"]
        assert about["project"] == PROJECT
        config = found.config
        assert (config["N"], config["D"], config["C"]) == (trial.params_non_embedding, trial.tokens, trial.flops)
        assert config["size"] == short(trial.params_non_embedding)
        assert config["tokens_per_param"] == pytest.approx(trial.tokens_per_param)
        assert (config["lr"], config["seed"], config["depth"]) == (trial.config.optim.lr, 0, 1)
        assert Trial.decode(config["trial"], "W&B").trial_id == trial.trial_id


def test_its_history_is_the_run_directory_in_nats_and_bits_over_tokens_and_flops(launched, prepared):
    trials, folder, _ = launched
    meta = json.loads((prepared[1] / trials[0].config.data.fingerprint / "meta.json").read_text())
    for trial in trials:
        found = Merged(folder / "runs", trial.trial_id)
        rows = tiny.lines(RunDir.of_trial(folder / "runs", trial.trial_id).metrics)
        assert found.steps == [row["step"] for row in rows]
        steps = [record["metric"] for record in found.records if record["type"] == "metric"]
        assert ("*", "tokens") in [(step.get("glob_name"), step.get("step_metric")) for step in steps]
        for logged, row in zip(found.rows, rows, strict=True):
            assert logged["flops"] == row["flops"]
            assert logged["decay"] == (row["phase"] == "decay")
            assert logged["speed/flops_per_second"] == pytest.approx(
                row["tokens_per_second"] * trial.flops_per_token.exact
            )
            assert logged["speed/mfu"] == row["mfu"]
            if row["val_loss_nats"] is not None:
                bits = row["val_loss_nats"] / 0.6931471805599453 / meta["bytes_per_token"]
                assert logged["loss/val_bits_per_byte"] == pytest.approx(bits)
                assert logged["reference/bigram_nats"] == meta["reference_lines"]["bigram"]
        record = tiny.record(folder / "runs", trial.trial_id)
        assert found.rows[-1]["loss/val_bits_per_byte"] == pytest.approx(record["bits_per_byte"])
        assert found.summary["loss_nats"] == record["loss_nats"]
        table = json.loads((found.files[0].parent / "files" / found.summary["samples"]["path"]).read_text())
        assert table["columns"] == ["step", "tokens", "prompt", "text"]
        assert [row[3] for row in table["data"]] == [s["text"] for s in tiny.samples(folder / "runs", trial.trial_id)]


def test_a_launch_says_in_one_line_where_it_is_and_how_to_sync(launched):
    _, folder, said = launched
    (line,) = (line for line in said.splitlines() if "W&B" in line)
    assert line == ("W&B: 2 runs, offline in runs/wandb (as asked); upload: python -m sweep sync sweeps/small")
    assert not (folder / "wandb").exists()


def test_no_key_no_code_and_no_console_gets_into_any_file(launched):
    _, folder, _ = launched
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 20
    assert not [path for path in files if KEY.encode() in path.read_bytes()]
    kept = {path.name for path in (folder / "runs" / "wandb").rglob("files/**/*") if path.is_file()}
    assert all(name.endswith(".table.json") for name in kept), kept
    for trial in launched[0]:
        kinds = {record["type"] for record in Merged(folder / "runs", trial.trial_id).records}
        assert not kinds & {"output", "output_raw", "environment"}, kinds


def test_people_read_the_same_with_wandb_leet(launched):
    trials, folder, _ = launched
    (file,) = wandb_files.of_run(folder / "runs", trials[0].trial_id)
    shown = subprocess.run(
        [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)],
        env={**os.environ, "WANDB_ERROR_REPORTING": "false", "WANDB_MODE": "offline"},
        capture_output=True,
        text=True,
        check=True,
    )
    steps = [row["history"]["item"]["_step"] for row in map(json.loads, shown.stdout.splitlines()) if "history" in row]
    assert steps == Merged(folder / "runs", trials[0].trial_id).steps


# ---- killed ----


def cores_of(pid: int) -> list[psutil.Process]:
    return [child for child in psutil.Process(pid).children() if "wandb-core" in child.name()]


@pytest.mark.parametrize("victim", ["mirror", "wandb's service"])
def test_killed_within_a_second_of_a_row_and_gone_on(again, victim):
    with again.training():
        sidecar = again.sidecar()
        again.write(20)
        wait_for(again.has_begun)
        again.write(60)
        (core,) = cores_of(sidecar.process.pid)
        os.kill(sidecar.process.pid if victim == "mirror" else core.pid, signal.SIGKILL)
        again.write(70)
        if victim == "mirror":
            sidecar.close()
            psutil.wait_procs([core], timeout=10)
            sidecar = again.sidecar()
        again.write(50)  # training was killed too, and goes on from its checkpoint
        again.end()
    said = sidecar.close()
    found = assert_whole(again)
    assert found.exit_codes == [None, 0]
    assert len(said) == 1  # nothing that alarms: it went on by itself
    assert "upload: " in said[0]


def test_however_a_dead_service_shows_it_is_known():
    from wandb.sdk.lib.service.service_token import WandbServiceConnectionError
    from wandb.sdk.mailbox.mailbox import MailboxClosedError
    from wandb.sdk.mailbox.mailbox_handle import HandleAbandonedError

    for error in (WandbServiceConnectionError(), MailboxClosedError(), HandleAbandonedError(), BrokenPipeError()):
        assert follow.service_is_gone(error)
    assert not follow.service_is_gone(TimeoutError())


def test_killed_after_rows_were_durable_it_goes_on_behind_them(again):
    with again.training():
        sidecar = again.sidecar()
        again.write(40)
        wait_for(again.has_row)
        sidecar.process.kill()
        sidecar.close()
        held = wandb_files.last_step(again.runs, again.trial.trial_id, PROJECT, None)
        assert 0 < held <= again.steps[39]
        sidecar = again.sidecar()
        again.end()
    sidecar.close()
    found = assert_whole(again)
    second = [record["history"]["item"]["_step"] for record in found.attempts[1] if record["type"] == "history"]
    assert second[0] == held + 1


def test_preempted_three_times_it_is_one_run(again):
    for rows, back in ((30, 24), (55, 50), (80, 71)):
        with again.training():
            sidecar = again.sidecar()
            again.write(rows)
            wait_for(
                lambda rows=rows: wandb_files.last_step(again.runs, again.trial.trial_id, PROJECT, None) > rows - 20
            )
            os.kill(sidecar.process.pid, signal.SIGTERM)  # Slurm tells every process of the job
        sidecar.close()
        again.write(back)
    with again.training():
        sidecar = again.sidecar()
        again.end()
    sidecar.close()
    found = assert_whole(again)
    assert found.preempted == [True, True, True, False]
    assert found.exit_codes == [75, 75, 75, 0]


# ---- how trials end ----


def look(replay: Replay, last: bool = True) -> list[str]:
    """One look in this process; what it said."""
    said: list[str] = []
    follower = Follower(replay.task(), say=said.append)
    follower.look(last=last)
    return said


def test_a_diverged_trial_is_finished_and_says_so(again):
    """The run directory of one: no final loss, a last row without a number."""
    with again.training():
        again.end()
    last = json.loads(again.lines[-1]) | {"train_loss_nats": None, "val_loss_nats": None, "grad_norm": None}
    again.lines[-1] = json.dumps(last).encode() + b"\n"
    again.run.metrics.write_bytes(b"".join(again.lines))
    record = json.loads(again.run.record.read_text())
    write_json(again.run.record, record | {"status": "diverged", "loss_nats": None, "bits_per_byte": None})
    look(again)
    found = merged(again)
    assert found.steps == again.steps
    assert "loss/val_nats" not in found.rows[-1]
    assert (found.summary["status"], found.summary["loss_nats"], found.exit_codes) == ("diverged", None, [0])


def test_a_trial_that_failed_is_failed_with_its_reason_and_a_retry_goes_on(again):
    with again.training():
        again.write(30)
        follower = Follower(again.task())
        follower.look()
        again.run.error.write_text("Traceback\nRuntimeError: out of memory\n")
        os.utime(again.run.error, (follower.since + 5, follower.since + 5))
        follower.look()
        follower.look()  # says it once
        found = merged(again)
        assert (found.summary["status"], found.exit_codes) == ("failed", [1])
        assert found.summary["error"] == "RuntimeError: out of memory"
        again.end()
        follower.look()
    found = assert_whole(again)
    assert found.summary["status"] == "finished"


def test_a_finished_trial_is_mirrored_once_and_again_for_another_sweep(again):
    with again.training():
        again.end()
    look(again)
    look(again)
    assert len(assert_whole(again).files) == 1
    plan = again.runs.parent / "sweeps" / "second" / "plan.jsonl"
    plan.parent.mkdir(parents=True)
    plan.write_text(json.dumps(again.trial.to_json()) + "\n")
    look(again)
    found = assert_whole(again)
    tags = [record["run"].get("tags") for record in found.records if record["type"] == "run"]
    assert tags == [None, ["second"]]


# ---- who and what is followed ----


def test_the_trunks_rows_are_the_trials_until_it_branches(again):
    branch = again.trial.config.branch_step
    count = sum(step <= branch for step in again.steps)
    with again.training():
        follower = Follower(again.task())
        again.write(count // 2, into=again.trunk.metrics)
        follower.look()
        again.write(count + 5, into=again.trunk.metrics)  # for a longer trial's sake
        follower.look()
        follower.abandon()
        assert merged(again).steps == [step for step in again.steps if step <= branch]
        again.end()
        follower.look()
    assert_whole(again)


def test_a_family_that_others_train_is_left_to_them(again):
    with again.training():
        again.write(30)
        path = again.trunk.path / "claim.000001.json"
        write_json(path, json.loads(path.read_text()) | {"host": "elsewhere"})
        look(again, last=False)
        again.end()
        look(again)
        assert not merged(again).files


def test_two_mirrors_of_one_trial_do_not_mix(again):
    with again.training():
        one, two = Follower(again.task()), Follower(again.task())
        again.write(40)
        one.look()
        two.look()
        again.write(70)
        two.look()
        one.look()
        again.end()
        two.look(last=True)
        one.look()
    assert len(assert_whole(again).files) == 1


def test_damaged_rows_are_told_and_keep_no_other_trial_back(trained, again):
    plan, runs = trained
    other = Replay(runs, min(plan.trials, key=lambda trial: trial.tokens), again.runs, again.tokens)
    with again.training():
        again.end()
        again.run.metrics.write_bytes(b"".join([*again.lines[:3], b"{half\n", *again.lines[3:5]]))
        other.run.path.mkdir()
        for name in ("trial.json", "env.json"):
            shutil.copy(other.source.path / name, other.run.path / name)
        other.end()
    task = replace(again.task(), trials=[trial.facts for trial in plan.trials])
    said: list[str] = []
    Follower(task, say=said.append).look(last=True)
    assert "metrics.jsonl:4: damaged (invalid JSON" in said[0]
    assert_whole(other)


# ---- a disk that fills ----


def test_a_disk_that_fills_loses_nothing_and_the_next_launch_goes_on(again):
    """wandb itself loses what does not fit without a word; its files are read back before anything is believed."""
    task = json.dumps(asdict(again.task())).encode() + b"\n"

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (24_000, 24_000))

    with again.training():
        again.end()
    ended = subprocess.run(
        [sys.executable, "-m", "sweep", "mirror"],
        input=task,
        cwd=ROOT,
        capture_output=True,
        preexec_fn=small_files,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1
    assert b"is the disk full?; nothing is lost, later: wandb sync" in ended.stdout
    assert not (again.run.path / "wandb" / "mirrored.json").exists()
    first = merged(again).steps
    assert 0 < len(first) < len(again.steps)
    look(again)
    assert_whole(again)


# ---- names ----


def test_long_sweep_names_fit_a_tag():
    from sweep.tracking.client import tag

    assert tag("lr") == "lr"
    assert len(tag("x" * 100)) == 64
