import numpy as np
import pytest

from benchmarks.fit_simulation import BESIROGLU, table
from sweep.fit.fit import fit_rows
from sweep.fit.frontier import FlopsModel, exponents
from sweep.fit.laws import law_named
from sweep.fit.minimise import objective_named
from sweep.fit.rows import alternatives, prepare
from sweep.fit.sensitivity import effect_of_drops, leave_out
from sweep.fit.solve import solve

LAW, HUBER, SIX_ND = law_named("additive"), objective_named("huber"), FlopsModel(6.0, 1.0)
SQUARES = objective_named("squares")


def test_the_spoiled_row_is_on_top():
    frame = table(BESIROGLU, families=8, run_sd=0.001)
    frame.loc[0, "loss"] *= 1.1
    rows = prepare(frame)
    solution = solve(LAW, rows.variables(), rows.loss, SQUARES)
    listed = leave_out(rows, solution, SIX_ND)
    assert listed[0].row == 0 or listed[0].family == "0"
    without = prepare(frame.drop(index=0))
    refit = solve(LAW, without.variables(), without.loss, SQUARES)
    by_row = next(entry for entry in listed if entry.row == 0)
    assert by_row.a == pytest.approx(exponents(LAW, refit.params, SIX_ND)[0], abs=1e-3)


def test_effect_of_each_reason():
    frame = table(BESIROGLU, families=8, run_sd=0.001).assign(status="finished")
    frame.loc[frame.index[:5], "status"] = "failed"
    frame.loc[7, "loss"] = np.nan
    rows = prepare(frame, where="C < 1e21 or N > 1e8")
    a = exponents(LAW, solve(LAW, rows.variables(), rows.loss, HUBER).params, SIX_ND)[0]
    found = {e.reason: e for e in effect_of_drops(rows, LAW, HUBER, SIX_ND, a)}
    assert found["unfinished"].rows >= 4
    assert found["unfinished"].a is not None
    assert found["not_finite"].rows_with_loss == 0
    assert found["not_finite"].a is None


def test_dropped_rows_that_no_refit_can_take_have_no_effect():
    frame = table(BESIROGLU, families=8, run_sd=0.001).assign(steps=lambda t: t["D"] / 1e6, status="finished")
    frame.loc[0:4, "status"] = "failed"
    frame.loc[0:2, "steps"] = [np.nan, 0.0, -1.0]
    frame.loc[[5, 6], "N"] = [-1.0, 0.0]
    rows = prepare(frame)
    found = {e.reason: e for e in effect_of_drops(rows, law_named("kaplan_steps"), HUBER, SIX_ND, 0.5)}
    assert (found["unfinished"].rows, found["unfinished"].rows_with_loss) == (5, 2)
    assert (found["not_positive"].rows, found["not_positive"].rows_with_loss) == (2, 0)


def test_a_refit_that_breaks_down_is_no_effect_known(monkeypatch):
    rows = prepare(table(BESIROGLU, families=8, run_sd=0.001), where="C < 1e21")

    def singular(*_):
        raise np.linalg.LinAlgError("Singular matrix")

    monkeypatch.setattr("sweep.fit.sensitivity.solve", singular)
    (found,) = effect_of_drops(rows, LAW, HUBER, SIX_ND, 0.5)
    assert "no effect known" in found.refused
    assert found.reason == "outside_range (--where 'C < 1e21')"


def test_conventions_move_a():
    frame = table(BESIROGLU, k=30.0, gamma=0.9).rename(columns={"N": "params_non_embedding"})
    frame["params_total"] = frame["params_non_embedding"] + 40 * frame["params_non_embedding"] ** 0.5
    rows = prepare(frame)
    fit = fit_rows(rows, bootstrap=0, alternatives=alternatives(frame, rows))
    listed = {(c.N, c.C): c.a for c in fit.conventions}
    assert set(listed) == {("non_embedding", "6nd"), ("total", "exact"), ("total", "6nd")}
    alpha, beta = BESIROGLU["alpha"], BESIROGLU["beta"]
    assert fit.exponents.a == pytest.approx(beta / (alpha + 0.9 * beta), abs=1e-3)
    assert listed["non_embedding", "6nd"] == pytest.approx(beta / (alpha + beta), abs=1e-3)
