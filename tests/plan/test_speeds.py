from dataclasses import fields, replace
from pathlib import Path

import pytest

from sweep.cli import main
from sweep.common.errors import UserError
from sweep.common.files import append_json
from sweep.config.schema import ClusterSection, RunOptions
from sweep.plan.packing import stack_key
from sweep.plan.speeds import Packing, Speeds, record_speed, speed_key
from sweep.verbs.plan import plan_here
from tests.helpers import tiny

CLUSTER = ClusterSection(peak_tflops=2.0, mfu=0.5, seconds_per_step=0.01)


@pytest.fixture(scope="module")
def trial(overrides):
    return plan_here([*overrides, tiny.steps(40)]).trials[0]


def estimate(runs, trial, options=None, device="CPU", cluster=CLUSTER):
    return Speeds.read(runs).estimate(trial, options or RunOptions(), "cpu", device, cluster)


def test_nothing_measured_is_a_guess_of_arithmetic_and_launch_overhead(trial, tmp_path):
    guess = estimate(tmp_path, trial)
    assert guess.source == "guess"
    assert guess.seconds == pytest.approx(trial.flops / 1e12 + 40 * 0.01)


def test_records_replace_the_guess_and_calibrations_the_records(trial, tmp_path):
    record_speed(tmp_path, trial, RunOptions(), "CPU", 1000.0)
    assert estimate(tmp_path, trial).source == "records"
    assert estimate(tmp_path, trial).seconds == pytest.approx(5120 / 1000, rel=1e-3)
    record_speed(tmp_path, trial, RunOptions(), "CPU", 2000.0, validation_seconds=0.1, source="calibration")
    calibrated = estimate(tmp_path, trial)
    assert calibrated.source == "calibration"
    # 40 steps from 8 on: log2(5) doublings of two validations, and three at the ends.
    assert calibrated.seconds == pytest.approx(5120 / 2000 + 0.1 * (2 * 2.3219 + 3), rel=1e-3)


def test_the_median_of_the_last_five_counts(trial, tmp_path):
    for speed in (1, 1, 1, 500, 1000, 1000, 1000, 90000):
        record_speed(tmp_path, trial, RunOptions(), "CPU", speed)
    assert estimate(tmp_path, trial).seconds == pytest.approx(5.12)


@pytest.mark.parametrize(
    "change",
    [
        {"threads": 2},
        {"backend": "reference"},
        {"compile": True},
        {"deterministic": False},
        {"micro_batch_sequences": 2},
    ],
)
def test_a_speed_holds_for_its_own_options(trial, tmp_path, change):
    record_speed(tmp_path, trial, RunOptions(), "CPU", 1000.0)
    assert estimate(tmp_path, trial, replace(RunOptions(), **change)).source == "guess"


# Another valid value of every field of a model's shape. Those whose values hang together come together.
OTHER_SHAPES = {
    "vocab_size": {"vocab_size": 300},
    "seq_len": {"seq_len": 16},
    "depth": {"depth": 2},
    "width": {"width": 32},
    "heads": {"heads": 2, "kv_heads": 1},
    "kv_heads": {"heads": 2, "kv_heads": 2},
    "head_dim": {"head_dim": 8},
    "mlp_width": {"mlp_width": 128},
    "mlp": {"mlp": "swiglu"},
    "norm": {"norm": "layernorm"},
    "positions": {"positions": "learned"},
    "rope_base": {"rope_base": 500_000.0},
    "qk_norm": {"qk_norm": False},
    "tied": {"tied": True},
    "bias": {"bias": True},
    "window": {"window": 8},
    "within_documents": {"within_documents": True},
}


def test_every_field_of_the_shape_is_varied(trial):
    assert OTHER_SHAPES.keys() == {field.name for field in fields(trial.config.model)}
    for name, change in OTHER_SHAPES.items():
        assert getattr(trial.config.model, name) != change[name]
    assert len({str(change) for change in OTHER_SHAPES.values()}) == len(OTHER_SHAPES)


@pytest.mark.parametrize("change", OTHER_SHAPES.values(), ids=OTHER_SHAPES)
def test_a_speed_holds_for_its_own_shape(trial, tmp_path, change):
    record_speed(tmp_path, trial, RunOptions(), "CPU", 1000.0)
    other = replace(trial, config=replace(trial.config, model=replace(trial.config.model, **change)))
    assert estimate(tmp_path, other).source == "guess"
    assert stack_key(other) != stack_key(trial)


@pytest.mark.parametrize("change", [{"batch_sequences": 8}, {"precision": "bf16"}])
def test_a_speed_holds_for_its_own_step(trial, tmp_path, change):
    record_speed(tmp_path, trial, RunOptions(), "CPU", 1000.0)
    other = replace(trial, config=replace(trial.config, **change))
    assert estimate(tmp_path, other).source == "guess"
    assert stack_key(other) != stack_key(trial)


def test_a_speed_holds_for_its_own_device_and_any_budget(trial, tmp_path):
    record_speed(tmp_path, trial, RunOptions(), "CPU", 1000.0)
    assert estimate(tmp_path, trial, device="GPU").source == "guess"
    longer = replace(trial, config=replace(trial.config, steps=80, seed=3))
    assert speed_key(longer, RunOptions(), "CPU") == speed_key(trial, RunOptions(), "CPU")
    assert estimate(tmp_path, longer).seconds == pytest.approx(10.24)


def test_a_row_of_an_older_key_is_read_and_matches_nothing(trial, tmp_path):
    key = '["CPU", [1, 16, 1, 1, 64, "relu2", 257], [32, 4, null, "fp32"], [1, "auto", false]]'
    row = {"source": "records", "key": key, "tokens_per_second": 1000.0, "validation_seconds": 0.0}
    append_json(tmp_path / "speeds.jsonl", row)
    assert estimate(tmp_path, trial).source == "guess"
    record_speed(tmp_path, trial, RunOptions(), "CPU", 2000.0)
    assert estimate(tmp_path, trial).seconds == pytest.approx(5120 / 2000)


def test_a_damaged_line_of_speeds_is_named(trial, tmp_path):
    (tmp_path / "speeds.jsonl").write_text("{\n")
    with pytest.raises(UserError, match=r"speeds\.jsonl:1: damaged \("):
        Speeds.read(tmp_path)


@pytest.mark.slow
def test_calibrate_measures_each_shape_once(overrides, workspace, monkeypatch, capsys):
    from sweep.workers import calibrate

    monkeypatch.setattr(calibrate, "SECONDS", 0.05)
    grid = [*overrides, tiny.steps(20, 4000), "seed=0,1", "run.workers=2"]
    assert main(["plan", *grid, "--calibrate"]) == 0
    shown = capsys.readouterr().out
    assert "from: calibration" in shown
    assert "guess" not in shown
    speeds = tiny.lines(workspace / "runs" / "speeds.jsonl")
    assert len(speeds) == len({row["key"] for row in speeds}) == 2  # alone, and a stack of the two that fit a worker
    plan = plan_here(grid)
    assert {e.source for e in plan.estimates.values()} == {"calibration"}
    short, long = plan.estimates[plan.trials[0].trial_id], plan.estimates[plan.trials[2].trial_id]
    assert 0 < short.seconds < long.seconds


def test_a_calibration_is_of_the_plans_own_device(overrides, workspace, capsys):
    elsewhere = ["cluster.device_name=Abacus", "cluster.device_memory_gib=1"]
    for device, said in (("cuda", "torch sees no CUDA device here"), ("cpu", "device_name=Abacus: the device here is")):
        assert main(["plan", *overrides, tiny.steps(20), *elsewhere, f"run.device={device}", "--calibrate"]) == 2
        assert said in capsys.readouterr().err
    assert not (workspace / "runs" / "speeds.jsonl").exists()


@pytest.mark.slow
def test_processes_on_one_device_are_timed_at_the_same_time(overrides, workspace):
    from sweep.workers import calibrate

    plan = plan_here([*overrides, tiny.steps(20)])
    tokens = Path(plan.config.paths.tokens)
    speed = calibrate._processes(plan.trials[0], plan.config.run, tokens, "cpu", Packing(processes=2))
    assert speed > 1000


@pytest.mark.slow
def test_one_of_several_processes_that_fails_ends_the_measurement(overrides, workspace):
    from sweep.workers import calibrate

    plan = plan_here([*overrides, tiny.steps(20)])
    with pytest.raises(RuntimeError, match=r"of 2 processes, some ended with \[1, 1\]"):
        calibrate._processes(plan.trials[0], plan.config.run, Path("no-tokens"), "cpu", Packing(processes=2))
