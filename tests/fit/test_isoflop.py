import numpy as np
import pandas as pd
import pytest

from benchmarks.fit_simulation import BESIROGLU, table
from sweep.fit import isoflop


def test_parabola_and_akima_find_a_known_minimum():
    x = np.linspace(0, 6, 7)
    loss = 2 + 0.1 * (x - 3.3) ** 2
    for method in (isoflop.parabola_minimum, isoflop.akima_minimum):
        place, value, reasons = method(x, np.stack([loss, loss + 1]))
        np.testing.assert_allclose(place, 3.3, atol=0.03)
        np.testing.assert_allclose(value, [2, 3], atol=1e-3)
        assert reasons == ["", ""]


def test_refusals_of_one_budget():
    x = np.linspace(0, 6, 7)
    assert "opens downwards" in isoflop.parabola_minimum(x, (2 - 0.1 * (x - 3) ** 2)[None])[2][0]
    assert "edge" in isoflop.parabola_minimum(x, (2 + 0.1 * (x - 9) ** 2)[None])[2][0]
    assert "edge" in isoflop.akima_minimum(x, (2 + 0.1 * (x - 9) ** 2)[None])[2][0]


def approach(frame, method="isoflop_akima"):
    N, D, C, loss = (frame[c].to_numpy() for c in ("N", "D", "C", "loss"))
    return isoflop.isoflop(method, isoflop.budgets(N, D, C), np.log(loss))


def test_akima_gives_the_exponents_of_the_law():
    found = approach(table(BESIROGLU, families=24))
    assert found.a == pytest.approx(0.5126, abs=0.01)
    assert found.b == pytest.approx(0.4874, abs=0.01)
    assert len(found.optima) == 5


def test_budgets_are_grouped_though_steps_are_rounded():
    frame = table(BESIROGLU)
    frame["C"] *= np.exp(np.random.default_rng(0).uniform(-0.03, 0.03, len(frame)))
    groups = isoflop.budgets(*(frame[c].to_numpy() for c in "NDC"))
    assert [len(g.log_N_m) for g in groups] == [20] * 5


def test_replicates_are_averaged():
    frame = pd.concat([table(BESIROGLU, run_sd=0.01, seed=s) for s in (0, 1)])
    groups = isoflop.budgets(*(frame[c].to_numpy() for c in "NDC"))
    assert [len(g.log_N_m) for g in groups] == [20] * 5
    np.testing.assert_allclose(groups[0].average_mn.sum(axis=1), 1)


def test_a_table_without_enough_budgets_says_so():
    frame = table(BESIROGLU)
    few = frame[frame["C"].isin(np.unique(frame["C"])[:2])]
    assert "2 budgets" in approach(few).refused
    three_sizes = frame[frame["N"].isin(np.unique(frame["N"])[8:11])]
    found = approach(three_sizes)
    assert "0 budgets" in found.refused
    assert found.budgets_refused
    assert all("3 sizes" in r.reason for r in found.budgets_refused)
    one_side = frame[frame["N"] < 5e7]
    assert {r.reason[:22] for r in approach(one_side).budgets_refused} == {"the minimum is at the "}


def test_a_table_without_budgets_is_refused():
    rng = np.random.default_rng(0)
    N, D = np.exp(rng.uniform(15, 20, 60)), np.exp(rng.uniform(18, 24, 60))
    assert isoflop.isoflop("isoflop_parabola", isoflop.budgets(N, D, 6 * N * D), np.zeros(60)).refused
