"""Hydra's way: `train -m`, one trial after the other here, or with `hydra/launcher=sweep_slurm` as one submission."""

from pathlib import Path

import pytest

from slurm import commands
from sweep.cli import main
from sweep.common.checkout import ROOT
from sweep.runs.rundir import RunDir
from sweep.verbs.plan import plan_here
from tests.helpers import tiny
from tests.helpers.held_submissions import HELD, families, there


@pytest.fixture
def multirun(overrides, workspace, capsys, monkeypatch):
    """`multirun(*overrides)` → (exit status, stdout, stderr) of `train -m`."""
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # so that it is undone

    def typed(*more):
        status = main(["train", "-m", *overrides, *more])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return typed


def test_one_trial_after_the_other(multirun, workspace):
    status, out, err = multirun("seed=0,1", tiny.steps(10))
    assert status == 0, err
    assert out.count("finished: ") == 2
    assert len(list((workspace / "runs").glob("*/record.json"))) == 2
    beside = {path.name for path in workspace.rglob("*") if path.is_file() and "runs" not in path.parts}
    assert beside == {"multirun.yaml"}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("sed=0,1", "sed=0,1: unknown key; did you mean seed?"),
        ("seed=0,-1", "seed=-1: must not be negative"),
        ("hydra/launcher=nope", "hydra/launcher=nope: no such option; there are basic, "),
        ("hydra.sweeper.nope=3", "hydra.sweeper.nope"),
    ],
)
def test_mistakes_are_one_line(multirun, override, said):
    status, _, err = multirun(override, tiny.steps(10))
    assert status == 2
    assert said in err.splitlines()[-1]
    assert "Traceback" not in err
    assert "search path" not in err


def test_a_multirun_by_slurm_is_one_submission_of_the_planned_grid(launch_held, multirun):
    status, out, err = multirun(*HELD, "seed=0,1,2", "hydra/launcher=sweep_slurm", "hydra.sweeper.max_batch_size=2")
    assert status == 0, err
    (submission,) = there()
    assert len(families(submission)) == 3
    assert len(commands.queued([submission.chunks[0].name])) == 3
    assert f"job {submission.chunks[0].job_id}: 3 elements of 30m, 1 worker each" in out
    assert "sweep held: 0 done, 3 to train in 3 families\n" in out
    assert "how it goes: python -m sweep status held " in out
    assert submission.command[:4] == ["python", "-m", "sweep", "launch"]
    status, out, err = launch_held("seed=0,1,2")
    assert (status, len(there())) == (0, 1)
    assert out.count("in the queue already") == 3


def test_it_refuses_what_a_launch_refuses(multirun, overrides):
    plan = plan_here([*overrides, *HELD, "seed=0,1"])
    record = RunDir.of_trial(plan.runs, plan.trials[0].trial_id).record
    record.parent.mkdir(parents=True)
    record.write_text('{"trial_id":')
    status, _, err = multirun(*HELD, "seed=0,1", "hydra/launcher=sweep_slurm")
    assert status == 2
    assert f"{record}: damaged" in err.splitlines()[-1]
    assert not Path("sweeps").exists()


def test_what_the_launcher_cannot_do_is_one_line(multirun, launch_held):
    status, _, err = multirun("cluster=local", "seed=0,1", tiny.steps(10), "hydra/launcher=sweep_slurm")
    assert status == 2
    assert "cluster.scheduler=local: hydra/launcher=sweep_slurm needs slurm" in err.splitlines()[-1]
    assert not Path("sweeps").exists()


def test_the_plugin_lies_where_hydra_looks():
    from hydra.core.plugins import Plugins
    from hydra.plugins.launcher import Launcher

    assert not (ROOT / "hydra_plugins" / "__init__.py").exists()
    assert "SweepSlurmLauncher" in {plugin.__name__ for plugin in Plugins.instance().discover(Launcher)}
