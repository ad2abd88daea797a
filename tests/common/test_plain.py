import math
from collections import Counter

import numpy as np
import pandas as pd

from sweep.common.plain import plain
from sweep.report.figure_spec import Series


def test_plain_makes_json_of_everything():
    series = Series("line", "a", [1.0, math.nan], [math.inf, 2.0])
    found = plain({"series": series, "n": np.int64(3), "x": np.float64("nan"), "list": np.array([1.0, math.nan])})
    assert found["series"]["x"] == [1.0, None]
    assert found["series"]["y"] == [None, 2.0]
    assert (found["n"], found["x"], found["list"]) == (3, None, [1.0, None])
    assert plain([np.bool_(True), pd.NA, (1, 2), Counter("a")]) == [True, None, [1, 2], {"a": 1}]
