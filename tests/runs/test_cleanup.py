"""Clean lists before it removes, and never touches a result or what is in use."""

import shutil
import time
from dataclasses import asdict, replace

import pytest

from sweep.cli import main
from sweep.common import files
from sweep.runs import claim
from sweep.runs.claim import Holder
from sweep.runs.rundir import RunDir
from sweep.verbs.plan import plan_here
from tests.helpers import tiny

KEPT = {"trial.json", "metrics.jsonl", "samples.jsonl", "record.json", "env.json"}


@pytest.fixture(scope="module")
def plan(overrides):
    return plan_here([*overrides, tiny.steps(10, 20)])


@pytest.fixture(scope="module")
def trained(plan, tmp_path_factory):
    runs = tmp_path_factory.mktemp("clean") / "runs"
    assert tiny.train(plan, runs) == 0
    return runs


@pytest.fixture
def runs(plan, trained, workspace):
    """What training left, and what killed workers would have left beside it."""
    shutil.copytree(trained, workspace / "runs")
    run = RunDir.of_trial(workspace / "runs", plan.trials[0].trial_id)
    trunk = RunDir.of_trunk(workspace / "runs", plan.trials[0].family_id)
    assert trunk.stable_steps() == [16]
    for path in (run.checkpoint, run.path / ".checkpoint.pt.1.tmp", trunk.stable(3), trunk.path / ".stable.pt.2.tmp"):
        path.write_bytes(b"x" * 3000)
    return workspace / "runs"


def everything(runs):
    return {path.relative_to(runs) for path in runs.rglob("*") if path.is_file()}


def left_over(plan):
    trial, family = plan.trials[0].trial_id, plan.trials[0].family_id
    return {f"{trial}/checkpoint.pt", f"{trial}/.checkpoint.pt.1.tmp", f"trunks/{family}/stable-000000003.pt",
            f"trunks/{family}/.stable.pt.2.tmp"}  # fmt: skip


def removed(runs, *arguments):
    before = everything(runs)
    assert main(["clean", *arguments]) == 0
    return {str(path) for path in before - everything(runs)}


def test_it_lists_first_and_removes_when_told(plan, runs, capsys):
    assert removed(runs) == set()
    shown = capsys.readouterr().out
    assert "nothing was changed: add --yes" in shown
    assert "11.7 KiB in 4 files" in shown
    for name in left_over(plan):
        assert f"runs/{name}" in shown
    assert removed(runs, "--yes") == left_over(plan)
    assert removed(runs, "--yes") == set()
    assert "0 B in 0 files" in capsys.readouterr().out


def test_trunks_and_weights_go_when_asked_for(plan, runs):
    family = plan.trials[0].family_id
    gone = removed(runs, "--trunks", "--weights", "--yes")
    weights = {f"{trial.trial_id}/model.pt" for trial in plan.trials}
    assert gone == left_over(plan) | weights | {f"trunks/{family}/stable-000000016.pt"}
    for trial in plan.trials:
        assert {path.name for path in RunDir.of_trial(runs, trial.trial_id).path.iterdir()} == KEPT
    # Nothing that is needed has gone: a relaunch has nothing to do, and a larger budget starts over.
    assert tiny.train(plan, runs) == 0


def test_nothing_of_a_family_that_is_being_trained(plan, runs):
    held = claim.acquire(RunDir.of_trunk(runs, plan.trials[0].family_id).path)
    assert removed(runs, "--trunks", "--weights", "--yes") == set()
    held.release()
    assert removed(runs, "--yes") == left_over(plan)


def test_the_optimizer_state_of_an_unfinished_trial_stays(plan, runs):
    run = RunDir.of_trial(runs, plan.trials[0].trial_id)
    run.record.unlink()
    assert f"{plan.trials[0].trial_id}/checkpoint.pt" not in removed(runs, "--yes", "--weights")
    assert run.weights.exists()


def test_silent_claims_are_released_on_a_persons_word(plan, runs, capsys):
    assert main(["clean", "--claims", "--yes"]) == 0
    assert "no silent claims" in capsys.readouterr().out
    trunk = RunDir.of_trunk(runs, plan.trials[0].family_id).path
    files.create_json(trunk / "claim.000009.json", asdict(replace(Holder.here(), host="elsewhere", pid=42)))
    files.write_json(trunk / "heartbeat.json", {"time": time.time() - 1000})
    assert main(["clean", "--claims"]) == 0
    shown = capsys.readouterr().out
    assert f"{trunk.name}: host elsewhere, process 42, last heartbeat 1000 s ago" in shown
    assert "nothing was changed" in shown
    assert claim.is_silent(trunk)
    assert main(["clean", "--claims", "--yes"]) == 0
    assert not claim.is_silent(trunk)
    assert removed(runs, "--yes") == left_over(plan)


def test_a_folder_that_is_not_there_is_told(workspace, capsys):
    assert main(["clean", "--runs", "elsewhere"]) == 2
    assert "--runs=elsewhere: no such folder" in capsys.readouterr().err
