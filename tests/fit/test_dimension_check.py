import numpy as np
import pandas as pd
import pytest

from sweep.fit.bootstrap import Interval
from sweep.fit.dimension_check import SizeDimension, beside_exponent, by_size
from sweep.train.intrinsic_dimension import Dimension


def test_beside_the_exponent():
    dimension = Dimension(10.0, 1000)
    assert dimension.interval == pytest.approx([9.45, 10.55], abs=0.02)
    assert beside_exponent(0.4, Interval(0.35, 0.45), [(None, dimension)]).compatible is True
    assert beside_exponent(0.2, Interval(0.15, 0.25), [(None, dimension)]).compatible is False
    assert beside_exponent(0.2, None, [(None, dimension)]).compatible is None
    found = beside_exponent(0.4, None, [(1e3, Dimension(4.0, 1000)), (1e4, dimension)])
    assert (found.N, found.four_over_d) == (1e4, pytest.approx(0.4))
    assert found.by_size == [SizeDimension(1e3, 4.0), SizeDimension(1e4, 10.0)]


def test_each_size_is_measured_on_its_longest_run():
    N, D = np.array([20.0, 10, 10, 20, 30]), np.array([5.0, 9, 2, 7, 1])
    table = pd.DataFrame({"intrinsic_dimension": [1.0, 2, 3, 4, None], "dimension_points": [100, 200, 300, 400, None]})
    assert by_size(table, np.arange(5), N, D) == [(10.0, Dimension(2.0, 200)), (20.0, Dimension(4.0, 400))]
    assert by_size(table, np.array([0, 4]), N[[0, 4]], D[[0, 4]]) == [(20.0, Dimension(1.0, 100))]
    assert by_size(table.drop(columns="dimension_points"), np.arange(5), N, D) == []
    assert by_size(table.astype(object).replace(2.0, "two"), np.arange(5), N, D)[0] == (10.0, Dimension(3.0, 300))
