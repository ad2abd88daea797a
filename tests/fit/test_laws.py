import numpy as np
import pytest

from sweep.common.errors import UserError
from sweep.fit.law import Bound
from sweep.fit.laws import LAWS, law_named

RNG = np.random.default_rng(0)
X = {
    "N": np.exp(RNG.uniform(10, 18, 30)),
    "D": np.exp(RNG.uniform(14, 22, 30)),
    "C": np.exp(RNG.uniform(30, 45, 30)),
    "S": np.exp(RNG.uniform(4, 12, 30)),
}
X["M"] = X["D"] / X["N"]
X["U"] = X["D"] * np.exp(RNG.uniform(-4, 1, 30))
LOSS = np.exp(RNG.uniform(0.7, 1.6, 30))


def random_theta(bound, count):
    """Near the middle of the box, with exponents around a half and decay constants around ten."""
    start = (bound.low_P + bound.high_P) / 2
    for p, name in enumerate(bound.theta_names):
        start[p] = 0.4 if name.startswith(("alpha", "beta", "eta")) else start[p]
        start[p] = 2.0 if name.startswith("log R_") else start[p]
    return start + RNG.uniform(-0.2, 0.2, (count, len(start)))


@pytest.mark.parametrize("name", LAWS)
def test_gradient_is_the_numerical_one(name):
    bound = law_named(name).bind(X, LOSS)
    theta_BP = random_theta(bound, 4)
    J_BPn = bound.evaluate(theta_BP).J_BPn
    for p in range(theta_BP.shape[1]):
        step = np.zeros(theta_BP.shape[1])
        step[p] = 1e-6
        numerical = (bound.evaluate(theta_BP + step).y_Bn - bound.evaluate(theta_BP - step).y_Bn) / 2e-6
        np.testing.assert_allclose(J_BPn[:, p], numerical, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", LAWS)
def test_curvature_is_the_gradients_derivative(name):
    bound = law_named(name).bind(X, LOSS)
    theta_BP = random_theta(bound, 3)
    s_Bn = RNG.normal(size=(3, 30))
    exact = bound.curvature(bound.evaluate(theta_BP), s_Bn)
    numerical = Bound.curvature(bound, bound.evaluate(theta_BP), s_Bn)
    np.testing.assert_allclose(exact, numerical, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", LAWS)
def test_the_bound_form_is_the_published_formula(name):
    law = law_named(name)
    bound = law.bind(X, LOSS)
    theta_BP = random_theta(bound, 3)
    params = bound.to_params(theta_BP)
    for b in range(3):
        one = {key: value[b] for key, value in params.items()}
        np.testing.assert_allclose(np.log(law.loss(one, X)), bound.evaluate(theta_BP).y_Bn[b], rtol=1e-10)
        np.testing.assert_allclose(bound.from_params(one), theta_BP[b], rtol=1e-9)
    assert tuple(params) == law.params


def test_formulas_by_hand():
    additive = law_named("additive").loss(
        {"E": 1.0, "A": 2.0, "B": 3.0, "alpha": 0.5, "beta": 1.0}, {"N": 4.0, "D": 6.0}
    )
    assert additive == pytest.approx(1.0 + 1.0 + 0.5)
    power = law_named("power_D").loss({"E": 1.0, "D0": 8.0, "alpha": 2.0}, {"D": 4.0})
    assert power == pytest.approx(5.0)


def test_unknown_form():
    with pytest.raises(UserError, match=r"quadratic.*additive"):
        law_named("quadratic")
