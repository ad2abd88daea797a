import numpy as np
import pytest

from benchmarks.fit_simulation import BESIROGLU, HOFFMANN, table
from sweep.common.errors import UserError
from sweep.fit import frontier
from sweep.fit.frontier import FlopsModel
from sweep.fit.laws import law_named

ADDITIVE = law_named("additive")


def test_flops_are_measured():
    frame = table(HOFFMANN, k=37.0, gamma=0.83)
    model = frontier.measure_flops(*(frame[c].to_numpy() for c in "NDC"))
    assert (model.k, model.gamma) == (pytest.approx(37.0), pytest.approx(0.83))
    assert model.worst_relative_error < 1e-9


@pytest.mark.parametrize("model", [FlopsModel(6.0, 1.0), FlopsModel(40.0, 0.8)])
def test_optimum_is_the_minimum_along_the_budget(model):
    for C in (1e18, 1e23):
        N, D, loss = frontier.optimum(ADDITIVE, BESIROGLU, model, C)
        sizes = N * np.geomspace(0.5, 2, 2001)
        along = ADDITIVE.loss(BESIROGLU, {"N": sizes, "D": model.tokens(C, sizes)})
        assert model.flops(N, D) == pytest.approx(C)
        assert sizes[along.argmin()] == pytest.approx(N, rel=1e-3)
        assert loss == pytest.approx(along.min(), rel=1e-8)


def test_exponents_are_the_slopes_of_the_optimum():
    for model in (FlopsModel(6.0, 1.0), FlopsModel(40.0, 0.8)):
        a, b = frontier.exponents(ADDITIVE, BESIROGLU, model)
        (N1, D1, _), (N2, D2, _) = (frontier.optimum(ADDITIVE, BESIROGLU, model, C) for C in (1e19, 1e21))
        assert np.log(N2 / N1) / np.log(100) == pytest.approx(a)
        assert np.log(D2 / D1) / np.log(100) == pytest.approx(b)
    assert frontier.exponents(ADDITIVE, HOFFMANN, FlopsModel(6.0, 1.0))[0] == pytest.approx(0.28 / 0.62)


def test_closed_form_and_search_agree():
    model = FlopsModel(40.0, 0.8)
    C = np.array([1e18, 1e20])
    searched = frontier._minimise_along(ADDITIVE, BESIROGLU, model, C)
    np.testing.assert_allclose(searched, frontier.optimum(ADDITIVE, BESIROGLU, model, C)[0], rtol=1e-6)


def test_a_form_without_sizes_has_no_frontier():
    with pytest.raises(UserError, match="power_C"):
        frontier.optimum(law_named("power_C"), {"E": 1, "C0": 1, "alpha": 1}, FlopsModel(6.0, 1.0), 1e20)
