"""A submission that was planned before its data was there trains exactly what a plan with the data would."""

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from slurm import code_snapshot
from slurm.draft import Limits, draft
from slurm.provisional import finish, is_provisional, real_tasks, tokens_or_stand_in, up_to_date
from slurm.submission import ArrayTask, Submission, exclusive
from slurm.submit import _write
from sweep.common.errors import UserError
from sweep.config.compose import section
from sweep.data.placeholder import stand_in
from sweep.data.prepare import find, prepare
from sweep.plan.plan import absolute_paths, make_plan
from sweep.plan.storage import additions, planned_trials, save
from sweep.runs.sweepdir import SweepDir
from sweep.verbs.plan import plan_here
from tests.helpers import tiny

CLUSTER = [
    "cluster=slurm",
    "cluster.device_name=null",
    "cluster.device_memory_gib=null",
    "cluster.seconds_per_step=30",
    "cluster.slurm.gpus=0",
    "cluster.slurm.cpus=1",
]


@pytest.fixture
def submitted(overrides, workspace):
    """`submitted(*overrides)` → a submission as a launch leaves it behind, and its plan; data not prepared."""

    def make(*more):
        (workspace / "tokens").mkdir(exist_ok=True)
        typed = [*overrides, *CLUSTER, "paths.tokens=tokens", "sweep.name=early", *more]
        plan = absolute_paths(make_plan(typed, tokens_or_stand_in))
        sweep = plan.sweep
        code = code_snapshot.Snapshot(workspace / "code", None, b"", False, [])
        made = draft(plan, plan.families(), ["launch"], typed, code, Limits(1001))
        save(plan, sweep, typed)
        _write(made, code)
        return made.submission, plan, typed

    return make


def families_of(submission):
    return [family for task in submission.tasks() for family in task.families]


def test_ids_are_provisional_until_the_data_is_there(submitted):
    submission, plan, typed = submitted("seed=0,1,2", tiny.steps(20, 30))
    assert submission.unprepared
    assert submission.prepare is not None
    assert all(map(is_provisional, plan.trials))
    finish(Submission.read(submission.folder))
    real = plan_here(typed)
    assert sorted(families_of(submission)) == sorted(family[0].family_id for family in real.families())
    assert [len(task.families) for task in submission.tasks()] == [1, 1, 1]
    sweep = SweepDir(Path(submission.sweep))
    assert {t.trial_id for t in planned_trials(sweep)} == {t.trial_id for t in real.trials}
    assert (submission.folder / "prepared.json").exists()


def test_preparing_twice_changes_nothing(submitted):
    submission, _, _ = submitted("seed=0,1", tiny.steps(20))
    finish(Submission.read(submission.folder))
    sweep = SweepDir(Path(submission.sweep))
    before = (submission.tasks(), sweep.plan.read_text())
    finish(Submission.read(submission.folder))
    assert (submission.tasks(), sweep.plan.read_text()) == before


def test_conditions_on_the_data_exclude_points_once_it_is_known(submitted):
    submission, plan, _ = submitted("seed=0,1", tiny.steps(20, 400), 'sweep.where=["epochs <= 1"]')
    assert len(plan.trials) == 4
    finish(Submission.read(submission.folder))
    sweep = SweepDir(Path(submission.sweep))
    assert len(planned_trials(sweep)) == 2
    assert {excluded.condition for excluded in sweep.settings().excluded} == {"epochs <= 1"}
    assert len(families_of(submission)) == 2


def test_data_that_has_come_meanwhile_gives_real_ids_to_plan_and_submission(submitted):
    """Its job was killed before it could write them, or waits for a launch to let it."""
    submission, plan, typed = submitted("seed=0,1", tiny.steps(20))
    assert up_to_date(plan, typed, [submission]).trials == plan.trials  # it is not there yet
    plan_here(typed)  # prepares
    now = up_to_date(plan, typed, [submission])
    assert now.trials == plan_here(typed).trials
    assert additions(now, SweepDir(Path(submission.sweep)), extend=False) == set()
    assert sorted(families_of(submission)) == sorted(family[0].family_id for family in now.families())


def test_data_that_comes_while_a_launch_plans_is_there_for_all_plans_or_for_none(submitted, monkeypatch):
    """Else a launch found its own sweep's folder to hold another grid."""
    submission, plan, typed = submitted("seed=0,1", tiny.steps(20))

    def just_before_it_came(config, root):
        found = find(config, root)
        prepare(config, root, progress=False)
        return found

    monkeypatch.setattr("slurm.provisional.find", just_before_it_came)
    now = up_to_date(plan, typed, [submission])
    assert all(map(is_provisional, now.trials))
    assert additions(now, SweepDir(Path(submission.sweep)), extend=False) == set()
    now = up_to_date(plan, typed, [submission])
    assert not any(map(is_provisional, now.trials))
    assert additions(now, SweepDir(Path(submission.sweep)), extend=False) == set()


def test_of_two_data_sets_the_one_that_is_there_gives_its_trials_real_ids(submitted):
    """A launch while the job prepares the second."""
    submission, plan, typed = submitted("data.validation_fraction=0.2,0.3", tiny.steps(20))
    plan_here([word.replace("=0.2,0.3", "=0.2") for word in typed])
    now = up_to_date(plan, typed, [submission])
    assert [is_provisional(trial) for trial in now.trials] == [False, True]
    assert additions(now, SweepDir(Path(submission.sweep)), extend=False) == set()
    assert not (submission.folder / "prepared.json").exists()
    finish(Submission.read(submission.folder))
    assert sorted(families_of(submission)) == sorted(family[0].family_id for family in plan_here(typed).families())


def test_another_submissions_provisional_trials_stay_in_the_plan(submitted):
    first, _, _ = submitted("data.validation_fraction=0.2", tiny.steps(20))
    other = absolute_paths(make_plan([word.replace("=0.2", "=0.3") for word in first.overrides], tokens_or_stand_in))
    sweep = SweepDir(Path(first.sweep))
    save(other, sweep, [], extend=True)
    finish(Submission.read(first.folder))
    assert [is_provisional(trial) for trial in planned_trials(sweep)] == [True, False]


def test_two_data_sets_that_are_not_there_are_not_taken_for_one(submitted):
    _, plan, _ = submitted("data.validation_fraction=0.2,0.3", tiny.steps(20))
    assert len(plan.trials) == 2


def test_a_plan_here_and_a_submission_agree_about_data_that_is_not_there(workspace, capsys):
    hub = ["data=hub", "data.path=a/b,c/d", "data.tokenizer.kind=bytes", *tiny.OVERRIDES, tiny.steps(20)]
    here, submitted = plan_here(hub, download=False), make_plan(hub, tokens_or_stand_in)
    assert [trial.config.model.vocab_size for trial in here.trials] == [257, 257]
    assert [t.trial_id for t in here.trials] == [t.trial_id for t in submitted.trials]
    assert (here.repeated, submitted.repeated) == (0, 0)
    assert all(map(is_provisional, here.trials))
    assert "data c/d is not prepared" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("said", "vocab_size"),
    [
        ({"source": "text", "tokenizer": {"kind": "bytes"}}, 257),
        ({"source": "pysource", "tokenizer": {"vocab_size": 1024}}, 1024),
        ({"source": "markov", "vocab_size": 64}, 64),
    ],
)
def test_a_stand_in_has_the_vocabulary_that_the_config_says(said, vocab_size):
    tokens = stand_in(section("data", OmegaConf.create(said)))
    less = stand_in(section("data", OmegaConf.create({**said, "unique_tokens": "1M"})))
    assert tokens.vocab_size == vocab_size
    assert tokens.fingerprint == less.fingerprint  # of the same data


def test_what_is_there_keeps_its_ids(overrides, workspace):
    plan = make_plan([*overrides, *CLUSTER, tiny.steps(20)], tokens_or_stand_in)
    assert not any(map(is_provisional, plan.trials))


def test_each_family_is_in_one_element_whatever_the_points_turn_out_to_be(submitted):
    _, _, typed = submitted("seed=0,1", tiny.steps(20, 30))
    real = plan_here(typed)
    points = [" ".join(real.points[trial.trial_id]) for trial in real.trials]
    tasks = [
        ArrayTask(0, "30m", [], 1, 60.0, points=points[:3]),
        ArrayTask(1, "30m", [], 1, 60.0, points=[*points[1:], "seed=9 not there"]),
    ]
    made = real_tasks(tasks, real)
    assert sorted(f for task in made for f in task.families) == sorted({t.family_id for t in real.trials})


def test_it_waits_for_a_launch_that_is_submitting(submitted, monkeypatch):
    submission, _, _ = submitted("seed=0", tiny.steps(20))
    monkeypatch.setattr("slurm.provisional.LOCK_SECONDS", 0)
    with (
        exclusive(SweepDir(Path(submission.sweep))),
        pytest.raises(UserError, match="another launch is submitting"),
    ):
        finish(Submission.read(submission.folder))
    assert not (submission.folder / "prepared.json").exists()
    assert json.loads((submission.folder / "tasks.jsonl").read_text().splitlines()[0])["points"]
