"""Whatever the W&B server does, training goes on, ends with the right status, and nothing is lost on disk."""

import json
import time

import pytest

from sweep.runs.rundir import RunDir
from sweep.tracking import wandb_files
from sweep.tracking.mirror_process import Sidecar
from tests.helpers import tiny
from tests.helpers.replay import Merged, Replay, wait_for
from tests.helpers.wandb_api import Server, Trouble, serving

# A client that gives up soon.
HURRY = {
    "WANDB_X_GRAPHQL_RETRY_MAX": "1",
    "WANDB_X_GRAPHQL_RETRY_WAIT_MIN_SECONDS": "0.2",
    "WANDB_X_GRAPHQL_RETRY_WAIT_MAX_SECONDS": "0.2",
}


def point_to(server: Server, monkeypatch) -> None:
    for name, value in (server.environment | HURRY).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("WANDB_MODE")


@pytest.fixture
def server(monkeypatch):
    with serving() as one:
        point_to(one, monkeypatch)
        yield one


@pytest.fixture(scope="module")
def trained(overrides, tmp_path_factory):
    """(plan, runs) of a trial with a row at every step, trained without W&B."""
    folder = tmp_path_factory.mktemp("trained")
    paths = [f"paths.runs={folder}/runs", f"paths.sweeps={folder}/sweeps"]
    plan, _ = tiny.make_sweep([*overrides, *paths, tiny.steps(80), "eval.log_every_steps=1"])
    assert tiny.train(plan) == 0
    return plan, folder / "runs"


@pytest.fixture
def again(trained, prepared, tmp_path):
    plan, runs = trained
    return Replay(runs, plan.trials[0], tmp_path / "runs", prepared[1])


def train_beside(replay: Replay, plan, **wandb) -> list[str]:
    """Train for real, with a sidecar beside; what the sidecar said."""
    sidecar = replay.sidecar("online", **wandb)
    assert tiny.train(plan, replay.runs) == 0
    return sidecar.close()


def assert_trained_alike(replay: Replay) -> None:
    """The same losses and record as without W&B."""
    trial_id = replay.trial.trial_id
    assert tiny.everything(replay.runs, trial_id) == tiny.everything(replay.source.path.parent, trial_id)


def assert_on_disk(replay: Replay) -> None:
    """wandb's files hold every step once, in order, and wait for a sync."""
    found = Merged(replay.runs, replay.trial.trial_id)
    assert found.steps == replay.steps
    assert found.summary["status"] == "finished"
    assert not wandb_files.is_up(found.files[-1])


# ---- a server that answers ----


def test_online_the_server_has_every_step_once_though_the_mirror_was_killed(server, again):
    with again.training():
        sidecar = again.sidecar("online")
        again.write(30)
        wait_for(lambda: again.trial.trial_id in server.runs and again.has_row())
        again.write(50)
        sidecar.process.kill()
        sidecar.close()
        sidecar = again.sidecar("online")
        again.end()
    said = sidecar.close()
    run = server.runs[again.trial.trial_id]
    assert run.steps == again.steps
    assert run.summary["loss_nats"] == json.loads(again.run.record.read_text())["loss_nats"]
    assert run.about["groupName"] == again.trial.family_id
    assert json.loads(again.run.record.read_text())["status"] == run.summary["status"] == "finished"
    files = wandb_files.of_run(again.runs, again.trial.trial_id)
    assert files
    assert all(map(wandb_files.is_up, files))
    assert said == [f"W&B: online, {server.url}/someone/scaling-sweeps"]


def test_runs_that_began_offline_go_on_so_until_a_sync(server, again):
    with again.training():
        sidecar = again.sidecar("offline")
        again.write(30)
        wait_for(again.has_row)
    sidecar.close()
    with again.training():
        sidecar = again.sidecar("online")
        again.end()
    said = sidecar.close()
    assert any("runs that began offline go on so" in line for line in said), said
    assert again.trial.trial_id not in server.runs
    assert_on_disk(again)


# ---- one that does not ----


class Slow(Server):
    """Takes its time for every answer."""

    def trouble(self, *kinds):
        time.sleep(1.0)
        return None


@pytest.mark.parametrize("trouble", [500, 429, 0], ids=["500", "429", "drops connections"])
def test_a_server_that_never_works(server, trained, again, trouble):
    server.troubles += [Trouble("graphql", trouble), Trouble("file_stream", trouble)]
    plan, _ = trained
    said = train_beside(again, plan)
    assert_trained_alike(again)
    assert_on_disk(again)
    assert len(said) == 2, said
    assert said[0].startswith("W&B: offline from here on: ")
    command = said[0].partition("upload later: ")[2]
    assert command == f"wandb sync {again.run.path.parent}/wandb/offline-run-*-{again.trial.trial_id}/*.wandb"


def test_a_slow_server(monkeypatch, trained, again):
    monkeypatch.setattr("tests.helpers.wandb_api.Server", Slow)
    with serving() as slow:
        point_to(slow, monkeypatch)
        train_beside(again, trained[0], patience_seconds=20)
        assert slow.runs[again.trial.trial_id].steps == again.steps
    assert_trained_alike(again)


def test_a_server_that_breaks_in_the_middle_and_works_again_later(server, again):
    with again.training():
        sidecar = again.sidecar("online", patience_seconds=2)
        again.write(30)
        wait_for(lambda: again.trial.trial_id in server.runs and again.has_row())
        server.troubles += [Trouble("graphql", 500), Trouble("file_stream", 500)]
        again.end()
    began = time.monotonic()
    said = sidecar.close()
    assert time.monotonic() - began < 60
    assert "W&B: offline from here on" in "\n".join(said)
    assert Merged(again.runs, again.trial.trial_id).steps == again.steps  # the file has what the server lacks
    server.troubles.clear()
    again.sidecar("online").close()
    assert server.runs[again.trial.trial_id].steps == again.steps
    assert server.runs[again.trial.trial_id].summary["status"] == "finished"


# ---- what people get wrong ----


@pytest.mark.parametrize(
    ("kind", "status", "message"),
    [("graphql", 401, "user is not logged in"), ("UpsertBucket", 404, "project not found")],
    ids=["a wrong key", "no such project"],
)
def test_a_refusal_is_one_line_and_everything_is_offline(server, trained, again, kind, status, message):
    server.troubles.append(Trouble(kind, status, message=message))
    said = train_beside(again, trained[0])
    assert_trained_alike(again)
    assert_on_disk(again)
    assert said[0].startswith("W&B: offline from here on: ")
    assert str(status) in said[0] or message in said[0]


def test_no_network(monkeypatch, server, trained, again):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    said = train_beside(again, trained[0])
    assert_trained_alike(again)
    assert_on_disk(again)
    assert said[0].startswith("W&B: offline from here on: ")


def test_a_key_that_cannot_be_one(monkeypatch, server, again):
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    with again.training():
        again.end()
    (said,) = again.sidecar("auto").close()
    assert "1 run, offline in" in said
    assert "API key must have 40+ characters, has 6." in said
    assert "secret" not in again.log()
    assert_on_disk(again)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise ImportError('not for this Python')", "wandb cannot be imported (not for this Python)"),
        ("__version__ = '0.19.11'", "wandb is 0.19.11, and 0.31 is needed"),
        ("__version__ = '9.0'", "wandb broke down (AttributeError"),
    ],
    ids=["not installed", "too old", "another interface"],
)
def test_another_wandb(monkeypatch, tmp_path, again, source, reason):
    (tmp_path / "elsewhere" / "wandb").mkdir(parents=True)
    (tmp_path / "elsewhere" / "wandb" / "__init__.py").write_text(source + "\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "elsewhere"))
    monkeypatch.delenv("WANDB_MODE")
    with again.training():
        again.end()
    said = again.sidecar("auto").close()
    assert reason in said[0]
    assert "wandb sync" in said[0]
    assert len(said) == 1


def test_off_starts_nothing(again, monkeypatch):
    assert again.sidecar("off").process is None
    assert again.sidecar("auto").process is None  # WANDB_MODE=disabled, as tests have it
    assert again.sidecar("off").close() == []


def test_a_sidecar_that_hangs_is_ended(monkeypatch, again):
    monkeypatch.setattr("sweep.tracking.mirror_process.GRACE_SECONDS", 0.0)
    with again.training():
        sidecar = again.sidecar("offline", every_seconds=1000, patience_seconds=0.01)
        late = sidecar.close()
    assert sidecar.process.poll() is not None
    assert late[-1].startswith("W&B: the upload takes too long, and was stopped; go on with it: ")
    assert isinstance(sidecar, Sidecar)
    assert not RunDir.of_trial(again.runs, again.trial.trial_id).record.exists()
