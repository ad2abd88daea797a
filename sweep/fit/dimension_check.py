"""The exponent of N beside 4/d, d the intrinsic dimension of the data: Sharma & Kaplan 2020 (arXiv 2004.10802) expect
alpha = 4/d, and alpha >= 4/d in general. The caveats stand in `sweep/train/intrinsic_dimension.py`, which measures d.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from sweep.fit.bootstrap import Interval
from sweep.train.intrinsic_dimension import Dimension

Sized = tuple[float | None, Dimension]  # N of the model, where it is known, and the dimension of its activations


@dataclass(frozen=True)
class SizeDimension:
    """The dimension `d` of the activations of a model of N parameters, None where N is not known."""

    N: float | None
    d: float


@dataclass(frozen=True)
class DimensionCheck:
    """alpha beside 4/d, d measured on `points` activations of a model of N parameters. All intervals are 90%;
    `compatible` says whether those of alpha and of 4/d overlap, None where alpha has none."""

    N: float | None
    d: float
    interval: Interval
    points: int
    alpha: float
    alpha_interval: Interval | None
    four_over_d: float
    four_over_d_interval: Interval
    compatible: bool | None
    by_size: list[SizeDimension]


def by_size(table: pd.DataFrame, row: np.ndarray, N: np.ndarray, D: np.ndarray) -> list[Sized]:
    """(N, dimension) of each size, smallest first, as training measured it on the run of most tokens; empty where the
    table has no such columns. `row`, `N`, `D`: (n,), positions in the table and the values there."""
    if not {"intrinsic_dimension", "dimension_points"} <= set(table.columns):
        return []
    runs = table.iloc[row][["intrinsic_dimension", "dimension_points"]].apply(pd.to_numeric, errors="coerce")
    runs = runs.assign(N=N, D=D).dropna()
    longest = runs.sort_values(["N", "D"]).drop_duplicates("N", keep="last")
    columns = (longest[name] for name in ("N", "intrinsic_dimension", "dimension_points"))
    return [(float(N), Dimension(float(d), int(points))) for N, d, points in zip(*columns, strict=True)]


def beside_exponent(alpha: float, alpha_interval: Interval | None, sizes: Sequence[Sized]) -> DimensionCheck:
    """alpha beside 4/d, with the dimension of the last of `sizes`."""
    N, dimension = sizes[-1]
    low, high = dimension.interval
    four_over_d = Interval(4 / high, 4 / low)
    overlap = None
    if alpha_interval is not None:
        overlap = bool(alpha_interval.low <= four_over_d.high and four_over_d.low <= alpha_interval.high)
    return DimensionCheck(
        N=N,
        d=dimension.d,
        interval=Interval(low, high),
        points=dimension.points,
        alpha=alpha,
        alpha_interval=alpha_interval,
        four_over_d=4 / dimension.d,
        four_over_d_interval=four_over_d,
        compatible=overlap,
        by_size=[SizeDimension(N, each.d) for N, each in sizes],
    )
