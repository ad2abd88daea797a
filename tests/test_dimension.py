import numpy as np
import pytest

from sweep.errors import UserError
from sweep.fitting.dimension import beside_exponent, intrinsic_dimension


@pytest.mark.parametrize("d", [2, 5])
def test_dimension_of_a_curved_sheet_in_many_coordinates(d):
    rng = np.random.default_rng(0)
    flat = rng.uniform(size=(3000, d))
    bent = np.concatenate([flat, np.sin(2 * flat), flat**2], axis=1) @ rng.normal(size=(3 * d, 40))
    found = intrinsic_dimension(bent)
    assert found["d"] == pytest.approx(d, rel=0.12)
    assert found["interval"][0] < found["d"] < found["interval"][1]


def test_density_does_not_matter():
    points = np.random.default_rng(0).normal(size=(4000, 3)) ** 3
    assert intrinsic_dimension(points)["d"] == pytest.approx(3, rel=0.15)


def test_beside_the_exponent():
    dimension = {"d": 10.0, "interval": [9.0, 11.0], "points": 1000}
    assert beside_exponent(0.4, [0.35, 0.45], dimension)["compatible"] is True
    assert beside_exponent(0.2, [0.15, 0.25], dimension)["compatible"] is False
    assert beside_exponent(0.2, None, dimension)["compatible"] is None
    assert beside_exponent(0.4, None, dimension)["four_over_d"] == pytest.approx(0.4)


@pytest.mark.parametrize(
    "points",
    [np.zeros((10, 3)), np.zeros(500), np.zeros((500, 3)), np.full((500, 3), np.nan)],
    ids=["few", "flat", "repeated", "nan"],
)
def test_bad_activations(points):
    with pytest.raises(UserError) as error:
        intrinsic_dimension(points)
    assert "\n" not in str(error.value)
