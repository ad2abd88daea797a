"""What is chosen is what a calibration found clearly faster, and the reason is said."""

from dataclasses import replace

import pytest

from models.count import memory_bytes
from sweep.cli import main
from sweep.common.devices import device_model
from sweep.config.schema import RunOptions
from sweep.plan import packing
from sweep.plan.speeds import ALONE, Estimate, Packing, Speeds, record_speed
from sweep.runs.rundir import RunDir
from sweep.verbs.plan import plan_here
from sweep.workers.families import stacks_of
from sweep.workers.worker import Worker
from tests.helpers import tiny

OPTIONS = RunOptions()


@pytest.fixture(scope="module")
def plan(overrides):
    """Two shapes: eight trials in four families of one, one trial of the other."""
    one = plan_here([*overrides, tiny.steps(20, 40), "seed=0,1", "optim.lr_multiplier=1,2"])
    other = plan_here([*overrides, tiny.steps(20), "model.width=24"])
    return replace(one, trials=[*one.trials, *other.trials], estimates={**one.estimates, **other.estimates})


def chosen(plan, runs, options=OPTIONS, device="cpu", peers=1):
    found = packing.executions(plan.families(), options, Speeds.read(runs), device, "CPU", peers)
    return {len(one.families): one for one in found}


def chosen_of(plan, runs, options=OPTIONS, device="cuda", peers=1):
    return packing.executions(plan.families(), options, Speeds.read(runs), device, "CPU", peers)


def calibrate(runs, trial, speeds, options=OPTIONS):
    for how, speed in speeds.items():
        record_speed(runs, trial, options, "CPU", speed, 0.0, "calibration", how)


def test_trials_that_can_share_a_stack(plan, overrides):
    assert {len(one.families): one.packing for one in chosen(plan, plan.runs).values()} == {4: ALONE, 1: ALONE}
    same = plan_here([*overrides, tiny.steps(20), "schedule=cosine", "data.unique_tokens=320", "optim.weight_decay=0"])
    assert packing.stack_key(same.trials[0]) == packing.stack_key(plan.trials[0])
    for change in ("batch.sequences=2", "seq_len=16", "precision=bf16", "model.mlp=gelu", "model.depth=2"):
        (other,) = plan_here([*overrides, "budget.tokens=5120", change]).trials
        assert packing.stack_key(other) != packing.stack_key(plan.trials[0])


def test_auto_takes_what_is_clearly_faster_and_says_so(plan, tmp_path):
    assert chosen(plan, tmp_path)[4].why is None
    assert packing.described(list(chosen(plan, tmp_path).values())) == [
        "4 families of 1 shape could train several trials at a time; "
        "`plan --calibrate` measures whether that is faster here"
    ]
    calibrate(tmp_path, plan.trials[0], {ALONE: 100.0, Packing(stack=2): 150.0, Packing(stack=4): 310.0})
    one = chosen(plan, tmp_path)[4]
    assert (one.packing, one.why) == (Packing(stack=4), "calibrated: 3.10 times as fast as alone")
    alone = chosen(plan, tmp_path)[1]
    assert (alone.packing, alone.why) == (ALONE, "one trial of this shape")
    assert packing.described(list(chosen(plan, tmp_path).values())) == [
        "stack of 4: 4 families of 1 shape (calibrated: 3.10 times as fast as alone)",
    ]


@pytest.mark.parametrize("speed", [40.0, 100.0, 104.0])
def test_never_what_the_calibration_finds_slower_or_as_fast(plan, tmp_path, speed):
    calibrate(tmp_path, plan.trials[0], {ALONE: 100.0, Packing(stack=4): speed})
    one = chosen(plan, tmp_path)[4]
    assert one.packing == ALONE
    assert one.why == f"calibrated: stack of 4 is {speed / 100:.2f} times as fast"


def test_the_newest_calibrations_count(plan, tmp_path):
    calibrate(tmp_path, plan.trials[0], {ALONE: 100.0, Packing(stack=4): 300.0})
    for _ in range(5):
        calibrate(tmp_path, plan.trials[0], {Packing(stack=4): 90.0})
    assert chosen(plan, tmp_path)[4].packing == ALONE


def test_a_calibration_holds_for_its_own_options(plan, tmp_path):
    calibrate(tmp_path, plan.trials[0], {ALONE: 100.0, Packing(stack=4): 300.0})
    assert chosen(plan, tmp_path, replace(OPTIONS, threads=2))[4].why is None
    assert chosen(plan, tmp_path, replace(OPTIONS, stack="off"))[4].packing == ALONE


def test_a_number_is_taken_at_its_word_up_to_the_trials_there_are(plan, tmp_path):
    assert chosen(plan, tmp_path, replace(OPTIONS, stack=3))[4].packing == Packing(stack=3)
    assert chosen(plan, tmp_path, replace(OPTIONS, stack=50))[4].packing == Packing(stack=8)
    assert chosen(plan, tmp_path, replace(OPTIONS, stack=50), peers=2)[4].packing == Packing(stack=4)
    assert chosen(plan, tmp_path, replace(OPTIONS, stack=50))[1].packing == ALONE


def test_a_stack_is_no_wider_than_a_workers_share(plan, tmp_path):
    calibrate(tmp_path, plan.trials[0], {ALONE: 100.0, Packing(stack=2): 150.0, Packing(stack=8): 400.0})
    assert chosen(plan, tmp_path)[4].packing == Packing(stack=8)
    assert chosen(plan, tmp_path, peers=3)[4].packing == Packing(stack=2)


def test_packing_is_for_gpus_and_only_where_stacking_is_slower(plan, tmp_path):
    calibrate(tmp_path, plan.trials[0], {ALONE: 100.0, Packing(processes=4): 180.0, Packing(stack=4): 150.0})
    assert chosen(plan, tmp_path)[4].packing == Packing(stack=4)
    packed = chosen(plan, tmp_path, device="cuda")
    assert packed[4].packing == Packing(processes=4)
    assert packing.processes_per_device([*packed.values()]) == 4
    asked = chosen(plan, tmp_path, replace(OPTIONS, workers=2), device="cuda")
    assert asked[4].packing == Packing(stack=4)
    assert packing.processes_per_device([*asked.values()]) == 1


@pytest.fixture(scope="module")
def shapes(overrides):
    """Three shapes of one trial each, from the largest down."""
    return plan_here([*overrides, tiny.steps(40), "model.width=48,32,16", "model.heads=1"])


def test_different_shapes_share_a_device_where_that_is_faster_for_all_together(shapes, tmp_path):
    assert {one.why for one in chosen_of(shapes, tmp_path)} == {None}  # there is a choice, and nobody has measured it
    assert {one.why for one in chosen_of(shapes, tmp_path, device="cpu")} == {"one trial of this shape"}
    assert {one.why for one in chosen_of(shapes, tmp_path, peers=3)} == {"one trial of this shape"}
    for trial in shapes.trials:
        calibrate(tmp_path, trial, {ALONE: 100.0, Packing(processes=2): 180.0})
    packed = chosen_of(shapes, tmp_path)
    ratio = (1 + 1 + 1) / (3 / 1.8)
    assert {one.packing for one in packed} == {Packing(processes=2)}
    assert {one.why for one in packed} == {f"calibrated: side by side {ratio:.2f} times as fast as one after the other"}
    assert packing.processes_per_device(packed) == 2
    assert packing.described(packed) == [f"2 processes on a device: 3 families of 3 shapes ({packed[0].why})"]
    assert {one.packing for one in chosen_of(shapes, tmp_path, replace(OPTIONS, workers=1))} == {ALONE}


def test_side_by_side_takes_as_long_as_its_longest_family(shapes, tmp_path):
    """One family that trains far longer than the others leaves its device half idle."""
    long = replace(shapes.trials[0], config=replace(shapes.trials[0].config, steps=4000))
    trials = [long, *shapes.trials[1:]]
    plan = replace(shapes, trials=trials, estimates={t.trial_id: Estimate(1.0, "guess") for t in trials})
    for trial in trials:
        calibrate(tmp_path, trial, {ALONE: 100.0, Packing(processes=2): 180.0})
    found = chosen_of(plan, tmp_path)
    assert {one.packing for one in found} == {ALONE}
    ratio = (4000 + 40 + 40) / 100 / (4000 * 2 / 180)
    assert {one.why for one in found} == {f"calibrated: 2 processes on a device are {ratio:.2f} times as fast"}
    assert all(one.measured for one in found)


def test_what_was_measured_must_hold_most_of_the_work(shapes, tmp_path):
    largest, *others = shapes.trials
    for trial in others:
        calibrate(tmp_path, trial, {ALONE: 100.0, Packing(processes=2): 180.0})
    assert {one.packing for one in chosen_of(shapes, tmp_path)} == {ALONE}
    calibrate(tmp_path, largest, {ALONE: 100.0, Packing(processes=2): 0.0})  # no memory for two of them
    assert {one.packing for one in chosen_of(shapes, tmp_path)} == {ALONE}
    calibrate(tmp_path, largest, {Packing(processes=2): 180.0})
    calibrate(tmp_path, largest, {Packing(processes=2): 180.0})
    assert {one.packing for one in chosen_of(shapes, tmp_path)} == {Packing(processes=2)}


def test_processes_side_by_side_are_captured_where_one_alone_is(shapes, tmp_path):
    graph = replace(OPTIONS, graph=True)
    for trial in shapes.trials:
        calibrate(tmp_path, trial, {Packing(stack=1): 100.0, Packing(stack=1, processes=2): 180.0}, graph)
    assert {one.packing for one in chosen_of(shapes, tmp_path, graph)} == {Packing(stack=1, processes=2)}


def test_a_captured_step_is_a_stacks_even_for_one_trial(plan, tmp_path):
    graph = replace(OPTIONS, graph=True)
    assert {one.packing for one in chosen(plan, tmp_path, graph, "cuda").values()} == {Packing(stack=1)}
    assert {one.packing for one in chosen(plan, tmp_path, graph).values()} == {ALONE}


def test_what_a_calibration_tries(plan):
    trial = plan.trials[0]
    needed = plan.memory_bytes(trial)

    def candidates(trials_per_process, device_bytes=2**40, device="cpu", **options):
        return packing.candidates(trial, trials_per_process, 4, replace(OPTIONS, **options), device, device_bytes)

    assert candidates(16) == [Packing(stack=4), Packing(stack=16)]
    assert candidates(3) == [Packing(stack=2)]
    assert candidates(1) == []
    assert candidates(16, 6 * needed) == [Packing(stack=4)]
    assert candidates(16, stack="off") == []
    assert candidates(1, device="cuda") == [Packing(processes=2), Packing(processes=4)]
    captured = [Packing(stack=1), Packing(stack=1, processes=2), Packing(stack=1, processes=4)]
    assert candidates(1, device="cuda", graph=True) == captured
    tokens = packing.resident_bytes(trial.config, "cuda")
    assert tokens == 2 * trial.config.data.unique_sequences * trial.config.model.seq_len
    assert candidates(1, (3 * needed + tokens) / packing.MEMORY_SHARE, "cuda") == [Packing(processes=2)]


def test_an_estimate_is_of_a_trials_share(plan, tmp_path):
    trial = plan.trials[0]
    calibrate(tmp_path, trial, {ALONE: 100.0, Packing(stack=4): 400.0})
    speeds = Speeds.read(tmp_path)
    alone, share = (
        speeds.estimate(trial, OPTIONS, "cpu", "CPU", plan.config.cluster, how).seconds
        for how in (ALONE, Packing(stack=4))
    )
    assert share == pytest.approx(alone / 4)


def test_the_micro_batch_of_a_gpu_is_what_its_memory_fits(plan):
    trial = plan.trials[0]
    config = trial.config
    two = memory_bytes(config.model, 2, config.precision)["total"] / packing.MEMORY_SHARE
    assert packing.micro_batch(trial, OPTIONS, "cpu", two) == 4
    assert packing.micro_batch(trial, OPTIONS, "cuda", 1.01 * two) == 2
    assert packing.micro_batch(trial, OPTIONS, "cuda", 1.01 * two, slots=4) == 1
    assert packing.micro_batch(trial, OPTIONS, "cuda", 2**40) == 4
    assert packing.micro_batch(trial, replace(OPTIONS, micro_batch_sequences=1), "cuda", 2**40) == 1


def test_what_is_worth_calibrating(plan, monkeypatch):
    """Four families of one shape, alone or in stacks of two and of eight, take 9 seconds to calibrate."""
    seconds = sum(plan.family_seconds(family) for family in plan.families()[:4])
    one = replace(plan, executions=[*chosen(plan, plan.runs).values()])
    one.config = replace(plan.config, run=replace(plan.config.run, workers=1))
    monkeypatch.setattr("sweep.plan.packing.WORTH", 0.99 * seconds / 9)
    assert [len(worth.families) for worth in one.worth_calibrating()] == [4]
    monkeypatch.setattr("sweep.plan.packing.WORTH", 1.01 * seconds / 9)
    assert one.worth_calibrating() == []


@pytest.mark.slow
def test_a_launch_calibrates_where_it_pays(overrides, workspace, monkeypatch, capsys):
    monkeypatch.setattr("sweep.plan.packing.WORTH", 0)
    grid = [*overrides, tiny.steps(20), "seed=0,1", "run.workers=1", "wandb.mode=off"]
    assert main(["launch", "--no-report", *grid]) == 0
    assert "measuring what is faster for 2 trials of 1 shape" in capsys.readouterr().err
    speeds = [row for row in tiny.lines(workspace / "runs" / "speeds.jsonl") if row["source"] == "calibration"]
    assert len(speeds) == 2  # alone, and a stack of two
    assert main(["launch", "--no-report", *grid, "seed=0,1,2,3", "--extend"]) == 0
    assert "measuring" not in capsys.readouterr().err  # it is known


def test_slots_that_would_idle_are_counted_where_they_are_computed(overrides, workspace):
    """A trunk of most of a family's steps leaves little to do at the same time; on the CPU idle slots cost nothing."""
    plan = plan_here([*overrides, tiny.steps(20, 40, 400)])
    calibrate(plan.runs, plan.trials[0], {ALONE: 100.0, Packing(stack=2): 150.0})
    one = chosen(plan, plan.runs, device="cuda")[1]
    assert one.packing == ALONE
    assert one.why == f"calibrated: stack of 2 is {412 / 100 / (400 * 2 / 150):.2f} times as fast"
    assert chosen(plan, plan.runs)[1].packing == Packing(stack=2)


def test_a_way_that_the_memory_does_not_allow_is_known_and_not_taken(plan, tmp_path):
    calibrate(tmp_path, plan.trials[0], {ALONE: 100.0, Packing(stack=2): 120.0, Packing(stack=8): 0.0})
    assert chosen(plan, tmp_path)[4].packing == Packing(stack=2)
    calibrate(tmp_path / "none", plan.trials[0], {ALONE: 0.0, Packing(stack=2): 0.0})
    unable = chosen(plan, tmp_path / "none")[4]
    assert (unable.packing, unable.why) == (ALONE, "calibrated: the device has no memory for more, if for one")
    estimate = Speeds.read(tmp_path / "none").estimate(plan.trials[0], OPTIONS, "cpu", "CPU", plan.config.cluster)
    assert estimate.source == "guess"


def test_a_gpu_takes_a_measured_stack_with_slots_to_spare_if_that_is_faster_still(plan, tmp_path):
    """Eight curves where a stack of 16 was measured: 176 steps in turns, or 40 of 16 slots."""
    calibrate(tmp_path, plan.trials[0], {ALONE: 100.0, Packing(stack=16): 2000.0})
    one = chosen(plan, tmp_path, device="cuda")[4]
    assert one.packing == Packing(stack=16)
    assert one.why == f"calibrated: {176 / 100 / (40 * 16 / 2000):.2f} times as fast as alone"
    assert chosen(plan, tmp_path)[4].packing == ALONE


def test_only_what_is_left_counts(overrides, workspace):
    grid = [*overrides, tiny.steps(20), "seed=0,1,2,3", "run.workers=1"]
    before = plan_here(grid)
    calibrate_here = {ALONE: 100.0, Packing(stack=4): 400.0}
    for how, speed in calibrate_here.items():
        record_speed(before.runs, before.trials[0], OPTIONS, device_model("cpu"), speed, 0.0, "calibration", how)
    assert [one.packing for one in plan_here(grid).executions] == [Packing(stack=4)]
    for trial in before.trials[1:]:
        path = RunDir.of_trial(before.runs, trial.trial_id).record
        path.parent.mkdir(parents=True)
        path.write_text("{}")
    after = plan_here(grid).executions
    assert [(one.packing, one.trials_per_process, one.why) for one in after] == [(ALONE, 1, "one trial of this shape")]


def test_processes_that_share_a_device_stack_only_where_told_to(plan, tmp_path, monkeypatch):
    for how, speed in {ALONE: 100.0, Packing(stack=4): 400.0}.items():
        record_speed(tmp_path, plan.trials[0], OPTIONS, device_model("cpu"), speed, 0.0, "calibration", how)
    families = [family for family in plan.families() if len(family) == 2]

    def stacks(**options):
        return stacks_of(Worker(tmp_path, tmp_path, replace(OPTIONS, **options), "cpu"), families)

    assert {slots for _, slots in stacks().values()} == {4}
    monkeypatch.setenv("SWEEP_DEVICE_SHARE", "0.5")
    assert stacks() == {}
    assert {slots for _, slots in stacks(stack=2).values()} == {2}
