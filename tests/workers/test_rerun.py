"""One recorded trial again, here: equal, equal within rounding noise, or different."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from sweep.cli import main
from sweep.common import files
from sweep.common.errors import UserError
from sweep.config.schema import RunOptions
from sweep.plan.variant import variant
from sweep.runs.rundir import RunDir
from sweep.verbs.plan import plan_here
from sweep.workers import rerun
from tests.helpers import tiny


@pytest.fixture(scope="module")
def plan(overrides):
    return plan_here([*overrides, tiny.steps(10, 20)])


@pytest.fixture(scope="module")
def trained(plan, tmp_path_factory):
    runs = tmp_path_factory.mktemp("rerun") / "runs"
    assert tiny.train(plan, runs) == 0
    return runs


@pytest.fixture
def run(plan, trained, workspace):
    """The longer trial's folder, in runs/ of an empty place."""
    shutil.copytree(trained, workspace / "runs")
    return RunDir(Path("runs") / plan.trials[1].trial_id)


@pytest.fixture
def again(prepared, capsys):
    """`rerun` with these arguments: exit status, standard output, standard error."""

    def verb(*arguments):
        status = main(["rerun", *map(str, arguments), "--tokens", str(prepared[1])])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return status, captured.out, captured.err

    return verb


def changed(path, **values):
    files.write_json(path, {**files.read_json(path), **values})


def test_the_same_machine_gives_the_same_bits(plan, run, again):
    before = {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()}
    status, out, _ = again(run.path.name)
    assert (status, out.split(":")[0]) == (0, "equal")
    assert f"bit-equal ({len(tiny.lines(run.metrics))} rows" in out
    trial_id = plan.trials[1].trial_id
    assert f"reruns/{trial_id}-1/{trial_id}" in out
    assert tiny.everything(f"reruns/{trial_id}-1", trial_id) == tiny.everything("runs", trial_id)
    assert {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()} == before
    assert again(run.path.name)[1].splitlines()[1] == f"reruns/{trial_id}-2/{trial_id}"


def test_another_class_is_judged_by_measured_noise_and_named(run, again):
    status, out, err = again(run.path, "run.micro_batch_sequences=1")
    assert "another execution class than the record's: measuring rounding noise" in err
    assert (status, out.split(":")[0]) == (0, "within-noise")
    recorded = files.read_json(run.record)["execution_class"]
    assert "rounding noise measured with another micro-batch is" in out
    assert recorded in out


@pytest.mark.parametrize("how", [[], ["run.micro_batch_sequences=1"]])
def test_a_record_that_was_tampered_with_is_different(run, again, how):
    changed(run.record, loss_nats=files.read_json(run.record)["loss_nats"] - 0.01)
    status, out, _ = again(run.path, *how)
    assert (status, out.split(":")[0]) == (1, "different")
    assert "differ by up to 0.01 nats (step 20)" in out


def test_a_curve_that_was_tampered_with_is_different(run, again):
    text = run.metrics.read_text()
    run.metrics.write_text(text.replace('"val_loss_nats": 4', '"val_loss_nats": 5', 1))
    assert run.metrics.read_text() != text
    changed(run.record, code_hash="0123456789ab")
    status, out, _ = again(run.path)
    assert (status, out.split(":")[0]) == (1, "different")
    assert "training code 0123456789ab then" in out


def test_a_trial_json_alone_is_enough(run, again, workspace):
    (workspace / "mail").mkdir()
    shutil.copy(run.trial, workspace / "mail" / "trial.json")
    shutil.rmtree("runs")
    status, out, _ = again(workspace / "mail" / "trial.json")
    assert status == 0
    assert "no record to compare with" in out
    assert len(list(Path("reruns").rglob("record.json"))) == 1


def test_a_record_without_its_metrics_is_compared_by_its_losses(run, again):
    run.metrics.unlink()
    assert again(run.path)[1].startswith("equal")


def test_a_json_file_is_the_one_that_is_meant(plan, run, again):
    """Also where its folder holds another trial's."""
    other = Path("runs") / plan.trials[0].trial_id
    shutil.copy(run.trial, other / "longer.json")
    status, _, err = again(other / "longer.json")
    assert status == 2
    assert f"is the record of {plan.trials[0].trial_id}, not of {plan.trials[1].trial_id}" in err


def test_runs_are_found_by_unique_prefix(plan, run, again):
    short, long = (trial.trial_id for trial in plan.trials)
    assert rerun.find_run(long[:-4], Path("runs")).path == run.path
    status, _, err = again("3.09k")
    assert status == 2
    assert "3.09k: 2 runs begin with it: " in err
    assert short in err
    for name in ("4k", "/nowhere/at/all", "[", "*", "../runs"):
        status, _, err = again(name)
        assert status == 2
        assert f"{name}: no such run in runs/; give an id, a unique prefix, a run directory or a trial.json" in err


def test_one_id_that_begins_another_is_itself(run):
    shutil.copytree(run.path, f"{run.path}-longer")
    assert rerun.find_run(run.path.name, Path("runs")).path == run.path


def test_missing_data_is_prepared_again(plan, run, workspace, capsys):
    status = main(["rerun", run.path.name, "--tokens", str(workspace / "fresh")])
    assert status == 0
    assert capsys.readouterr().out.startswith("equal")
    assert (workspace / "fresh" / plan.trials[1].config.data.fingerprint / "train.bin").exists()


def test_data_that_is_another_text_now_is_refused(plan, run, workspace, capsys):
    corpus = tiny.write_corpus(workspace / "other.jsonl", seed=5)
    written = files.read_json(run.trial)["written"]
    written["data"]["files"] = [str(corpus)]
    changed(run.trial, written=written)
    status = main(["rerun", run.path.name, "--tokens", str(workspace / "fresh")])
    err = capsys.readouterr().err
    assert status == 2
    assert f"was trained on data {plan.trials[1].config.data.fingerprint}; the same source gives" in err
    assert "copy that token folder, or train a new trial with overrides" in err


def test_overrides_make_a_new_trial_beside_the_others(plan, run, again):
    status, out, err = again(run.path.name, "optim.lr_multiplier=2", "budget.tokens=1280", "run.keep_weights=false")
    assert status == 0
    assert "a new trial: " in err
    trials = {path.parent.name: json.loads(path.read_text()) for path in Path("runs").glob("*/trial.json")}
    (new,) = trials.keys() - {trial.trial_id for trial in plan.trials}
    assert trials[new]["config"]["optim"]["lr"] == 2 * plan.trials[1].config.optim.lr
    assert trials[new]["config"]["steps"] == 10
    assert trials[new]["config"]["model"] == files.read_json(run.trial)["config"]["model"]
    assert f"runs/{new}" in out
    assert not (Path("runs") / new / "model.pt").exists()


def test_the_id_of_a_variant_is_the_id_of_saying_it_at_once(plan, run, overrides):
    said = ["schedule=cosine", "seed=3"]
    from sweep.common.devices import resolve_device
    from sweep.data.tokens import Tokens
    from sweep.plan.resolve import resolve
    from sweep.plan.trial import Trial

    trial = Trial.read(run.trial)
    tokens = Tokens.open(plan.config.paths.tokens, trial.config.data.fingerprint)
    new = resolve(variant(trial, said), tokens, resolve_device("cpu"))
    without = [text for text in overrides if not text.startswith("schedule.")]
    whole = plan_here([*without, tiny.steps(20), *said])
    assert new.trial_id == whole.trials[0].trial_id


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optim.rate=2", "optim.rate: unknown key"),
        ("optim.lr=1,2", "optim.lr=1,2"),
        ("schedule=linear", "schedule=linear: no such option"),
        ("run.threads=0", "run.threads=0: must be at least 1"),
        ("run.fast=1", "run.fast: unknown key"),
        ("colour=1", "colour=1: unknown key"),
        ("seed", "seed: not an override"),
    ],
)
def test_bad_overrides_are_refused(run, again, override, said):
    status, _, err = again(run.path.name, override)
    assert status == 2
    assert said in err
    assert len(err.strip().splitlines()) == 1


def test_a_damaged_record_is_told_before_anything_is_trained(run, again):
    run.record.write_text("{")
    status, _, err = again(run.path)
    assert status == 2
    assert "record.json: damaged" in err
    assert not Path("reruns").exists()


def test_how_it_was_executed_is_taken_over(run):
    changed(run.env, options={**files.read_json(run.env)["options"], "threads": 2, "micro_batch_sequences": 2})
    options = rerun.recorded_options(run, ["run.micro_batch_sequences=1"])
    assert (options.threads, options.micro_batch_sequences, options.checkpoint_seconds) == (2, 1, 1000)
    run.env.unlink()
    assert rerun.recorded_options(run, []) == RunOptions()


def test_options_that_are_not_known_are_the_defaults_and_damaged_ones_are_told(run):
    run.env.write_text("{}")
    assert rerun.recorded_options(run, []) == RunOptions()
    run.env.write_text("[]")
    with pytest.raises(UserError, match=r"env\.json: damaged .*; remove it to rerun with the default options"):
        rerun.recorded_options(run, [])


def test_another_micro_batch_is_always_another(plan):
    trial = plan.trials[0]
    for now in (None, 4, 2, 1):
        other = rerun.other_micro_batch(trial, RunOptions(micro_batch_sequences=now))
        assert other.micro_batch_sequences != (now or 4)
        assert 4 % other.micro_batch_sequences == 0
    single = replace(trial, config=replace(trial.config, batch_sequences=1))
    assert rerun.other_micro_batch(single, RunOptions()).threads == 2


def test_a_damaged_trial_is_refused(run):
    run.trial.write_text("{")
    with pytest.raises(UserError, match=r"trial\.json: damaged"):
        rerun.Trial.read(run.trial)
