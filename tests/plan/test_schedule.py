import itertools

import pytest

from sweep.plan.schedule import Schedule

WSD = Schedule("wsd", warmup_steps=10, decay_fraction=0.2, final_lr_fraction=0.1)
COSINE = Schedule("cosine", warmup_steps=10, decay_fraction=1.0, final_lr_fraction=0.1)


def factors(schedule, steps):
    return [schedule.lr_factor(step, steps) for step in range(steps)]


@pytest.mark.parametrize("schedule", [WSD, COSINE])
def test_the_warm_up_is_linear_and_the_first_update_moves(schedule):
    assert factors(schedule, 100)[:10] == pytest.approx([n / 10 for n in range(1, 11)])


def test_wsd_holds_the_peak_then_falls_in_equal_steps_to_just_above_the_end():
    lr = factors(WSD, 100)
    assert lr[9:80] == [1.0] * 71
    falls = [before - after for before, after in itertools.pairwise(lr[80:])]
    assert falls == pytest.approx([0.9 / 20] * 19)
    assert lr[99] == pytest.approx(0.1 + 0.9 / 20)
    assert WSD.lr_factor(100, 100) == pytest.approx(0.1)


def test_wsd_budgets_agree_until_the_shorter_one_branches():
    short, long = factors(WSD, 100), factors(WSD, 250)
    branch = WSD.branch_step(100)
    assert branch == 80
    assert short[:branch] == long[:branch]
    # The first step of the decay still has the full rate; the one after it does not.
    assert short[branch] == 1.0 > short[branch + 1]


def test_cosine_shares_no_step_past_the_warm_up():
    short, long = factors(COSINE, 100), factors(COSINE, 250)
    assert COSINE.branch_step(100) == 0
    assert all(a < b for a, b in zip(short[11:], long[11:], strict=False))
    assert COSINE.lr_factor(55, 100) == pytest.approx(0.1 + 0.9 / 2)
    assert COSINE.lr_factor(100, 100) == pytest.approx(0.1)


def test_edges():
    assert Schedule("wsd", 0, 0.0, 0.0).branch_step(50) == 50
    assert factors(Schedule("wsd", 0, 0.0, 0.0), 50) == [1.0] * 50
    assert Schedule("wsd", 0, 1.0, 0.0).branch_step(50) == 0
    assert factors(Schedule("wsd", 0, 1.0, 0.0), 4) == pytest.approx([1, 0.75, 0.5, 0.25])
    assert Schedule("cosine", 5, 1.0, 0.1).lr_factor(4, 5) == 1.0
