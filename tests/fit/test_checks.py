import numpy as np
import pytest

from benchmarks.fit_simulation import BESIROGLU
from sweep.fit.bootstrap import Interval
from sweep.fit.checks import crossing, floors, kaplan_crossing
from sweep.fit.fitted_law import FittedLaw
from sweep.fit.frontier import Approach, FlopsModel, Optimum, optimum
from sweep.fit.laws import law_named
from sweep.fit.minimise import objective_named

LAW, HUBER, SIX_ND = law_named("additive"), objective_named("huber"), FlopsModel(6.0, 1.0)


def isoflop(params, budgets):
    C = np.geomspace(1e18, 1e22, budgets)
    N, D, loss = optimum(LAW, params, SIX_ND, C)
    return Approach(a=0.5, optima=[Optimum(*cell) for cell in zip(C, N, D, loss, strict=True)])


def test_an_exact_frontier_has_the_forms_floor():
    exact = isoflop(BESIROGLU, 6)
    draws = np.array([o.loss_nats for o in exact.optima]) * np.exp(
        0.001 * np.random.default_rng(0).normal(size=(50, 6))
    )
    found = floors(BESIROGLU, Interval(1.7, 1.9), exact, draws, 1.0, HUBER)
    assert found.frontier == pytest.approx(BESIROGLU["E"], rel=1e-3)
    assert found.agree is True
    assert floors(BESIROGLU, Interval(2.5, 2.6), exact, draws, 1.0, HUBER).agree is False


def test_too_few_minima_give_no_second_floor():
    found = floors(BESIROGLU, None, isoflop(BESIROGLU, 3), None, 1.0, HUBER)
    assert found.frontier is None
    assert "needs 4" in found.note


def test_kaplans_contradiction_is_where_he_found_it():
    """Section 6.3 of Kaplan et al. 2020: C* ~ 1e4 PF-days, D* ~ 1e12 tokens, L* ~ 1.7 nats, within their factor."""
    found = kaplan_crossing(alpha_C=0.050, C0=3.1e8, alpha_D=0.095, D0=5.4e13, d0=2e10, b=0.26)
    assert 3e3 < found.C < 3e4
    assert 1e11 < found.D < 1e12
    assert found.loss_nats == pytest.approx(1.7, abs=0.05)
    np.testing.assert_allclose(found.loss_nats, (5.4e13 / found.D) ** 0.095, rtol=1e-9)
    assert kaplan_crossing(alpha_C=0.02, C0=3.1e8, alpha_D=0.095, D0=5.4e13, d0=2e10, b=0.26) is None


def test_crossing_is_refused_for_other_forms():
    C = np.geomspace(1e18, 1e21, 5)
    found = crossing(FittedLaw(LAW, BESIROGLU, SIX_ND), C, C / 1e10)
    assert found.C > 1e21
    assert crossing(FittedLaw(law_named("power_C"), {}, SIX_ND), C, C).refused


def test_laws_that_are_nearly_parallel_never_cross():
    laws = {"C0": 1e9, "alpha_D": 0.1, "D0": 1e7, "d0": 1.0, "b": 0.5}
    assert kaplan_crossing(0.1, **laws) is not None
    assert kaplan_crossing(0.05 + 1e-6, **laws) is None
