"""Uploads by the real wandb to a stand-in server (tests/helpers/wandb_api.py, the mock at the edge)."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest

from sweep.cli import main
from sweep.common.checkout import ROOT
from sweep.config.schema import WandbSection
from sweep.runs import claim
from sweep.runs.claim import Holder
from sweep.runs.sweepdir import SweepDir
from sweep.tracking import account, client, sync, wandb_files
from tests.helpers import tiny
from tests.helpers.facts import facts_of
from tests.helpers.wandb_api import ENTITY, KEY, Stored, Trouble, signed_in

pytestmark = pytest.mark.usefixtures("end_processes")

SECTION = WandbSection(mode="offline", project="p")
ROWS = {"one": [(0, 1, 2), (3, 4)], "two": [(0, 1, 2, 3)], "three": [(0, 1)]}  # run → the steps of each attempt


@pytest.fixture(scope="module")
def server():
    with signed_in() as standing:
        yield standing


@pytest.fixture(scope="module")
def written(server, tmp_path_factory):
    """A sweep of three trials and the W&B files of their attempts, made once by the real wandb."""
    folder = tmp_path_factory.mktemp("written")
    for run_id, attempts in ROWS.items():
        for steps in attempts:
            run = client.start_run(SECTION, folder / "runs", "offline", run_id=run_id, config={"N": 3})
            for step in steps:
                run.log({"tokens": 10 * step, "loss/val_nats": 5.0 - step}, step=step)
            run.summary["status"] = "finished"
            run.finish()
    sweep = folder / "sweeps" / "small"
    sweep.mkdir(parents=True)
    (sweep / "plan.jsonl").write_text(
        "".join(json.dumps({"facts": vars(facts_of(run_id, "f"))}) + "\n" for run_id in ROWS)
    )
    paths = {"runs": "runs", "sweeps": "sweeps", "tokens": "tokens"}
    (sweep / "sweep.json").write_text(json.dumps({"paths": paths, "cluster": {}, "wandb": vars(SECTION)}))
    return folder


@pytest.fixture
def sweep(written, workspace, server, monkeypatch):
    shutil.copytree(written, workspace, dirs_exist_ok=True)
    monkeypatch.setattr(sync, "WAITS_SECONDS", (0.1,))
    server.runs.clear()
    server.asked.clear()
    server.troubles.clear()
    return SweepDir.find("small")


def upload(sweep, parallel=4):
    said = []
    tally = sync.sync(sweep, SECTION, account.sign_in(SECTION), parallel, said.append)
    return tally, said


def only(*names):
    """Takes the other runs for uploaded."""
    for file in Path("runs").rglob("*.wandb"):
        if file.stem.removeprefix("run-") not in names:
            wandb_files.mark_up(file)


def steps_up(server):
    return {run_id: run.steps for run_id, run in server.runs.items()}


ALL = {run_id: [step for steps in attempts for step in steps] for run_id, attempts in ROWS.items()}


def test_every_attempt_is_up_in_order_once(sweep, server, capsys):
    assert main(["sync", "small"]) == 0
    out = capsys.readouterr().out
    assert "0 of 4 runs are up already, 3 to upload" in out
    assert f"up: 3 runs, in {ENTITY}/p" in out
    assert "no run of the sweep itself: " in out
    assert "nothing to upload yet: small-frontier" in out
    assert steps_up(server) == ALL
    assert server.runs["one"].config["N"]["value"] == 3
    assert server.runs["two"].summary["status"] == "finished"
    server.asked.clear()
    assert main(["sync", "small"]) == 0
    assert "3 of 4 runs are up already, 0 to upload" in capsys.readouterr().out
    assert "UpsertBucket" not in server.operations()
    assert steps_up(server) == ALL


def test_what_was_trained_without_wandb_is_written_first(overrides, workspace, server, capsys):
    server.runs.clear()
    plan, _ = tiny.make_sweep([*overrides, tiny.steps(10), "wandb.mode=off", "wandb.project=p"])
    assert tiny.train(plan) == 0
    assert main(["sync", "small"]) == 0
    (trial,) = plan.trials
    run = server.runs[trial.trial_id]
    assert run.steps == [row["step"] for row in tiny.curve("runs", trial.trial_id)]
    assert run.summary["loss_nats"] == tiny.record("runs", trial.trial_id)["loss_nats"]
    assert run.about["tags"] == ["small"]


def test_too_many_requests_are_waited_for(sweep, server):
    only("two", "three")
    server.troubles.append(Trouble("RunResumeStatus", 429, times=2, message="rate limit exceeded"))
    tally, said = upload(sweep, parallel=1)
    assert not tally.not_up
    assert steps_up(server) == {"two": ALL["two"], "three": ALL["three"]}
    waits = [line for line in said if "wait for" in line]
    assert "the server is busy (HTTP 429: rate limit exceeded); 1 runs wait for" in waits[0]


def test_a_server_that_stays_broken(sweep, server, capsys):
    """wandb sync ends with 0 here and marks the file as synced."""
    only("one")
    first, second = wandb_files.of_run(Path("runs"), "one")
    server.troubles.append(Trouble("file_stream", 500))
    assert main(["sync", "small"]) == 1
    out = capsys.readouterr().out
    assert "not up: the server broke off the upload: one" in out
    assert "to go on: python -m sweep sync small" in out
    assert not wandb_files.is_up(first)
    assert not wandb_files.is_up(second)
    server.troubles.clear()
    assert main(["sync", "small"]) == 0
    assert steps_up(server) == {"one": ALL["one"]}


@pytest.mark.parametrize("there", [[], [0, 1], [0, 1, 2, 3]])
def test_an_upload_that_broke_off_goes_on_where_it_was(sweep, server, there):
    """Rows that are sent twice are there twice, so what the server has is not sent again."""
    only("two")
    (file,) = wandb_files.of_run(Path("runs"), "two")
    sync.Note(file).take()
    if there:
        rows = [{"_step": step} for step in there]
        server.runs["two"] = Stored("two", "p", history=rows)
    tally, _ = upload(sweep)
    assert not tally.not_up
    assert steps_up(server) == {"two": ALL["two"]}
    assert server.runs["two"].summary["status"] == "finished"
    assert server.runs["two"].state == "finished"
    assert not list(Path("runs").rglob("*.uploading"))
    files = wandb_files.of_run(Path("runs"), "two")
    assert files
    assert all(map(wandb_files.is_up, files))


def test_a_killed_sync_leaves_nothing_twice(sweep, server):
    """Killed after the server kept the rows and before wandb heard so."""
    only("two")
    server.troubles.append(Trouble("history", 0, after_keeping=True, seconds=10))
    command = [sys.executable, "-m", "sweep", "sync", "small", "--parallel", "1"]
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    killed = subprocess.Popen(command, env=environ, start_new_session=True, stdout=subprocess.DEVNULL)
    while not any(run.history for run in server.runs.values()):
        assert killed.poll() is None
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    server.troubles.clear()
    assert list(Path("runs").rglob("*.uploading"))
    assert main(["sync", "small"]) == 0
    assert steps_up(server) == {"two": ALL["two"]}


def test_two_syncs_at_once_do_not_send_one_file_twice(sweep, server):
    (file,) = wandb_files.of_run(Path("runs"), "two")
    process = psutil.Process(os.getppid())
    held = asdict(Holder.here()) | {"pid": process.pid, "started": process.create_time()}
    note = sync.Note(file).path
    note.write_text(json.dumps(held))
    only("two")
    tally, _ = upload(sweep)
    assert tally.not_up == {"two": f"is being uploaded by process {process.pid}"}
    note.write_text(json.dumps(held | {"host": "elsewhere"}))
    tally, _ = upload(sweep)
    assert "on elsewhere; if it is gone, remove" in tally.not_up["two"]
    note.write_text(json.dumps(held | {"started": 1.0}))  # that number is another process now
    assert not upload(sweep)[0].not_up


def test_what_is_being_trained_waits(sweep, server):
    only("two")
    claimed = claim.acquire(Path("runs/two/wandb"))
    tally, _ = upload(sweep)
    assert tally.not_up == {"two": "is being trained; sync again when it has ended"}
    claimed.release()
    assert not server.runs


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        (Trouble("graphql", 401, message="invalid API key"), "refused the key"),
        (Trouble("RunResumeStatus", 403, message="permission denied"), "permission denied"),
        (Trouble("RunResumeStatus", 404, message="project not found"), "project not found"),
        (Trouble("graphql", 503, message="overloaded"), "the server is busy"),
    ],
)
def test_refusals_are_one_line(sweep, server, capsys, trouble, said):
    only("two")
    server.troubles.append(trouble)
    status = main(["sync", "small"])
    out, err = capsys.readouterr()
    lines = [line for line in (out + err).splitlines() if said in line]
    assert status in (1, 2)
    assert lines
    assert all(len(line) < 300 for line in lines)
    log = sweep.logs / "wandb-sync.log"
    assert KEY not in out + err + (log.read_text() if log.exists() else "")


def elsewhere(**environ):
    """`python -m sweep sync small` as another process; None takes a variable away."""
    whole = os.environ | {"PYTHONPATH": str(ROOT), "HOME": str(Path.cwd()), "NETRC": "none"} | environ
    command = [sys.executable, "-m", "sweep", "sync", "small"]
    whole = {name: value for name, value in whole.items() if value is not None}
    ended = subprocess.run(command, env=whole, capture_output=True, text=True, timeout=60)
    return ended.returncode, ended.stderr


def test_no_key_no_network_no_wandb(sweep, server):
    status, err = elsewhere(WANDB_API_KEY=None)
    assert (status, len(err.splitlines())) == (2, 1)
    assert "W&B at http://127.0.0.1" in err
    assert ": no key; run `wandb login`, or set WANDB_API_KEY" in err
    assert "W&B: no key; run" in elsewhere(WANDB_API_KEY=None, WANDB_BASE_URL=None)[1]
    status, err = elsewhere(WANDB_BASE_URL="http://127.0.0.1:9")
    assert (status, len(err.splitlines())) == (2, 1)
    assert "cannot be reached" in err
    Path("wandb.py").write_text("raise ImportError('no wandb')")
    status, err = elsewhere(PYTHONPATH=f".:{ROOT}")
    assert (status, len(err.splitlines())) == (2, 1)
    assert "wandb cannot be imported (no wandb); python -m pip install -r requirements.txt" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing"], "nothing: no such sweep; there are: small"),
        (["small", "--parallel", "0"], "--parallel 0: must be at least 1"),
    ],
)
def test_bad_input(sweep, capsys, arguments, said):
    assert main(["sync", *arguments]) == 2
    assert said in capsys.readouterr().err
