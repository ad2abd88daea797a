"""Every family is in exactly one element, no element is planned beyond its time, and elements are few and even."""

import random
from dataclasses import replace
from pathlib import Path

import pytest

from slurm.elements import Need, elements, needs, spread, workers_for
from sweep.common.devices import device_model
from sweep.common.errors import UserError
from sweep.config.schema import RunOptions, SlurmSection
from sweep.plan.speeds import ALONE, Packing, record_speed
from sweep.verbs.plan import plan_here

GIB = 2**30
CPU = {"gpus": 0, "cpus": 1, "memory_gib": None, "signal_seconds": 60, "time_margin": 1.0}


def need(name, seconds, device_gib=1.0, host_gib=1.0, busy=1.0):
    return Need(name, seconds, int(device_gib * GIB), int(host_gib * GIB), busy)


def some(count, seconds=60.0, **rest):
    return [need(f"f{number}", seconds, **rest) for number in range(count)]


@pytest.mark.parametrize("seed", range(20))
def test_each_family_once_and_none_beyond_its_time(seed):
    draw = random.Random(seed)
    slurm = SlurmSection(
        gpus=draw.choice([0, 1, 4]), cpus=draw.randint(1, 16), time_margin=draw.choice([1.0, 1.5, 3.0])
    )
    asked = [
        need(f"f{n}", draw.lognormvariate(5, 1.5), draw.uniform(0.1, 60), draw.uniform(1, 30), draw.uniform(0.05, 1))
        for n in range(draw.randint(1, 300))
    ]
    made = elements(asked, slurm, threads=draw.randint(1, 2), device_bytes=80 * GIB)
    assert sorted(name for element in made for name in element.families) == sorted(n.family_id for n in asked)
    seconds = {n.family_id: n.seconds for n in asked}
    for element in made:
        assert element.seconds * slurm.time_margin <= element.bucket.seconds - slurm.signal_seconds
        assert 1 <= element.workers <= len(element.families)
        assert element.families == sorted(element.families, key=lambda name: -seconds[name])
        total = sum(seconds[name] for name in element.families)
        assert total / element.workers - 1e-6 <= element.seconds <= total + 1e-6


def test_a_family_goes_into_the_shortest_bucket_that_holds_it_with_its_margin():
    slurm = SlurmSection(**CPU | {"time_margin": 1.5})
    made = elements([need("short", 1100), need("just", 1160), need("long", 1161)], slurm)
    assert {e.bucket.name: e.families for e in made if "long" in e.families} == {"2h": ["long"]}
    assert {name for e in made if e.bucket.name == "30m" for name in e.families} == {"short", "just"}


def test_short_families_share_elements_evenly():
    made = elements(some(100), SlurmSection(**CPU))  # 100 minutes into elements of 29
    assert [len(element.families) for element in made] == [25] * 4


def test_an_element_uses_all_its_cores():
    made = elements(some(100), SlurmSection(**CPU | {"cpus": 8}), threads=2)
    assert [(e.workers, len(e.families)) for e in made] == [(4, 100)]
    assert made[0].seconds == 25 * 60


def test_as_many_workers_as_fill_a_gpu_fit_into_it_and_have_cores():
    slurm = SlurmSection(gpus=1, cpus=8)

    def count(slurm=slurm, threads=1, **of):
        return workers_for(need("f", 60, **of), slurm, threads, 80 * GIB)

    assert count(busy=1.0) == 1
    assert count(busy=0.5) == 2
    assert count(busy=0.3) == 2  # three, down to a power of two
    assert count(busy=0.01) == 8
    assert count(busy=0.01, device_gib=20) == 2  # three would fit
    assert count(busy=0.01, device_gib=60) == 1
    assert count(busy=0.01, threads=4) == 2
    assert count(SlurmSection(gpus=4, cpus=64), busy=0.25) == 16  # four on each of four
    assert count(SlurmSection(gpus=1, cpus=8, workers=3), busy=1.0) == 3
    assert count(SlurmSection(gpus=1, cpus=8, workers=3), device_gib=40) == 1


def test_families_of_one_bucket_with_unlike_memory_ask_for_unlike_arrays():
    slurm = SlurmSection(gpus=0, cpus=1, time_margin=1.0)
    made = elements([need("big", 1600, host_gib=30), need("small", 1600, host_gib=3)], slurm)
    assert {e.group: e.memory_gib for e in made} == {"30m-32g": 32, "30m-4g": 4}
    assert {e.memory_gib for e in elements(some(3), SlurmSection(memory_gib=12))} == {12}


def test_memory_is_of_the_largest_families_that_may_run_at_once():
    slurm = SlurmSection(gpus=0, cpus=2, time_margin=1.0)
    (element,) = elements([need("a", 60, host_gib=9), need("b", 60, host_gib=5), need("c", 60, host_gib=1)], slurm)
    assert (element.workers, element.memory_gib) == (2, 16)


def test_a_family_beyond_the_longest_bucket_is_refused_by_name_unless_it_may_take_turns():
    slurm = SlurmSection(**CPU, time_buckets=["30m", "2h"])
    with pytest.raises(UserError, match=r"family huge: about 3 h 00 m.*does not fit 2h") as caught:
        elements([need("fine", 60), need("huge", 3 * 3600)], slurm)
    assert "\n" not in str(caught.value)
    slurm.long_families = "requeue"
    made = elements([need("fine", 60), need("huge", 3 * 3600), need("huger", 4 * 3600)], slurm)
    assert {e.bucket.name: e.families for e in made if "fine" not in e.families}.keys() == {"2h"}
    assert sorted(len(e.families) for e in made) == [1, 1, 1]


def test_fewer_elements_by_longer_buckets_where_only_so_many_may_be_queued():
    slurm = SlurmSection(**CPU)
    many = some(200, 1700.0)
    assert len(elements(many, slurm)) == 200
    assert len(elements(many, slurm, most=60)) == 50  # in 2h each holds four
    assert len(elements(many, slurm, most=1)) == 4  # as few as the longest bucket makes them


def test_spread_never_overflows_a_slot_that_could_be_split():
    for workers in (1, 3):
        made = spread([need("a", 60), need("b", 60), need("c", 60)], workers, capacity=100)
        slots = [slot for element in made for slot in element]
        assert sorted(n.family_id for slot in slots for n in slot) == ["a", "b", "c"]
        assert all(sum(n.seconds for n in slot) <= 100 for slot in slots)


def test_what_a_plan_needs(overrides, workspace):
    plan = plan_here([*overrides, "seed=0,1", "budget.tokens=10k,20k", "run.device=cpu"])
    families = plan.families()
    found = needs(plan, families)
    assert [n.family_id for n in found] == [family[0].family_id for family in families]
    assert [n.seconds for n in found] == [plan.family_seconds(family) for family in families]
    assert all(n.busy == 1.0 and n.device_bytes == 0 and n.host_bytes > GIB for n in found)


def test_a_small_model_fills_little_of_a_gpu(overrides, workspace):
    gpu = [o for o in overrides if not o.startswith(("run.device", "model."))]
    plan = plan_here([*gpu, "model.params=3k,1M", "budget.tokens=100k", "run=gpu", "cluster=slurm"])
    small, large = sorted(needs(plan, plan.families()), key=lambda n: n.device_bytes)
    assert 0 < small.busy < large.busy < 1
    assert workers_for(small, plan.config.cluster.slurm, 1, 80 * GIB) == 8


def test_families_of_one_stack_share_elements_and_a_gpu_has_one_worker_for_them():
    slurm = SlurmSection(gpus=1, cpus=8, time_margin=1.0)
    stacked = [replace(n, per_gpu=1, stack="small", concurrent=4) for n in some(8, busy=0.1)]
    others = [replace(n, family_id=f"g{number}") for number, n in enumerate(some(8, busy=0.1))]
    made = elements([*stacked, *others], slurm, device_bytes=80 * GIB)
    assert sorted((e.workers, {name[0] for name in e.families}, e.seconds) for e in made) == [
        (1, {"f"}, 8 * 60),
        (8, {"g"}, 60),
    ]


def test_a_stack_takes_the_time_of_all_that_are_in_it():
    """Each family is 20 minutes of the device, and as four are trained at once, it lasts for 80."""
    slurm = SlurmSection(gpus=1, cpus=8, time_margin=1.0)
    stacked = [replace(n, per_gpu=1, stack="small", concurrent=4) for n in some(4, 1200)]
    (element,) = elements(stacked, slurm, device_bytes=80 * GIB)
    assert (element.bucket.name, element.seconds) == ("2h", 4800)


def test_what_a_calibrated_plan_needs(overrides, workspace):
    grid = [*overrides, "seed=0,1,2,3", "budget.tokens=10k", "run.device=cpu", "run.workers=1"]
    trial = plan_here(grid).trials[0]
    for packing, speed in {ALONE: 100.0, Packing(stack=2): 200.0}.items():
        record_speed(Path("runs"), trial, RunOptions(), device_model("cpu"), speed, 0.0, "calibration", packing)
    found = needs(plan := plan_here(grid), plan.families())
    assert {(n.concurrent, n.per_gpu) for n in found} == {(2, 1)}
    assert len({n.stack for n in found} - {""}) == 1
    assert [n.seconds for n in found] == [pytest.approx(trial.tokens / 200)] * 4  # each trial's share of the device


def test_what_a_calibration_found_slower_is_not_done(overrides, workspace):
    """Small models of which several would fit a GPU: one at a time was measured to be faster."""
    gpu = [o for o in overrides if not o.startswith(("run.device", "model."))]
    grid = [*gpu, "model.params=3k", "seed=range(4)", "budget.tokens=100k", "run=gpu", "cluster=slurm"]
    plan = plan_here(grid)
    assert {n.per_gpu for n in needs(plan, plan.families())} == {None}
    for packing, speed in {
        ALONE: 100.0,
        Packing(processes=2): 50.0,
        Packing(processes=4): 30.0,
        Packing(stack=4): 60.0,
    }.items():
        options, name = plan.config.run, plan.config.cluster.device_name
        record_speed(Path("runs"), plan.trials[0], options, name, speed, 0.0, "calibration", packing)
    plan = plan_here(grid)
    assert {n.per_gpu for n in needs(plan, plan.families())} == {1}


def test_as_many_workers_on_a_gpu_as_a_calibration_found_best():
    packed = replace(need("f", 60, busy=0.5), per_gpu=4)
    assert workers_for(packed, SlurmSection(gpus=1, cpus=8), 1, 80 * GIB) == 4
    assert workers_for(packed, SlurmSection(gpus=2, cpus=8), 1, 80 * GIB) == 8
    assert workers_for(packed, SlurmSection(gpus=1, cpus=2), 1, 80 * GIB) == 2
    assert workers_for(packed, SlurmSection(gpus=1, cpus=8, workers=1), 1, 80 * GIB) == 1


def test_a_stack_stays_together_and_is_as_long_as_its_longest_family():
    slurm = SlurmSection(gpus=1, cpus=8, time_margin=1.0)
    asked = [need("long", 600), *some(7, 60)]
    (element,) = elements([replace(n, per_gpu=1, stack="s", concurrent=8) for n in asked], slurm, device_bytes=80 * GIB)
    assert (len(element.families), element.seconds, element.bucket.name) == (8, 4800, "2h")


def test_a_stacked_family_that_fits_no_bucket_is_refused_by_what_it_takes_in_its_stack():
    asked = [replace(need("f", 20 * 3600), per_gpu=1, stack="s", concurrent=16)]
    with pytest.raises(UserError, match=r"family f: about 13 d 8 h"):
        elements(asked, SlurmSection(gpus=1, cpus=8), device_bytes=80 * GIB)
