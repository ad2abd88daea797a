"""From a number of parameters to a shape: the nearest rung of a ladder that is written out in `conf/model/`.

A list that people can read and edit, rather than a formula: shapes that hardware likes (few head dimensions,
even widths) do not follow one.
"""

import math
from collections.abc import Callable, Iterable, Sequence

Rung = tuple[int, int, int]  # depth, width, heads

TOLERANCE = 0.20  # how far the nearest rung may be from what was asked, as a fraction of what was asked


def choose_shape(params: int, rungs: Sequence[Sequence[int]], count: Callable[[Rung], int]) -> Rung:
    """The rung whose non-embedding parameters, counted by `count`, are nearest to `params` in logarithm.

    ValueError when it is more than TOLERANCE off: it names the sizes below and above.
    """
    if params < 1:
        raise ValueError(f"model.params={params}: must be at least 1")
    sizes = {count(rung): rung for rung in map(_rung, rungs)}
    if not sizes:
        raise ValueError("model.ladder: has no rung to choose from; list [depth, width, heads]")
    nearest = nearest_size(params, sizes)
    if abs(nearest / params - 1) > TOLERANCE:
        below = max((size for size in sizes if size <= params), default=None)
        above = min((size for size in sizes if size > params), default=None)
        beside = " and ".join(
            f"{size} ({side}: {'x'.join(map(str, sizes[size]))})"
            for side, size in (("below", below), ("above", above))
            if size is not None
        )
        raise ValueError(
            f"model.params={params}: the ladder has no size within {TOLERANCE:.0%}; nearest are {beside}; "
            "ask for one, or give model.depth, model.width and model.heads, or add a rung to model.ladder"
        )
    return sizes[nearest]


def nearest_size(params: float, sizes: Iterable[int]) -> int:
    """The size that is nearest in logarithm."""
    return min(sizes, key=lambda size: abs(math.log(size / params)))


def _rung(rung: Sequence[int]) -> Rung:
    if len(rung) != 3 or min(rung) < 1 or rung[1] % rung[2]:
        raise ValueError(f"model.ladder: {list(rung)} is not [depth, width, heads] with a width divisible by heads")
    return (rung[0], rung[1], rung[2])
