"""The intrinsic dimension of points, and whether an exponent of N is compatible with it.

Sharma & Kaplan 2020 (arXiv 2004.10802) argue that a model of N parameters resolves a data manifold of dimension d
so finely that L ~ N^-alpha with alpha = 4/d (alpha >= 4/d in general), and measure d on the activations of the
final layer. Caveats that come with it: estimates of d from finite samples are biased low for large d, d depends on
the layer and on the model (it cannot exceed the width), and alpha here is what is left after fitting a floor E, while
theirs has none.
"""

from dataclasses import dataclass

import numpy as np
from scipy import special

from sweep.common.errors import UserError

LEAST_POINTS = 100
MOST_POINTS = 5000
DISCARDED = 0.1  # the largest ratios, where the density changes between the first and the second neighbour


@dataclass(frozen=True)
class Dimension:
    """The estimate `d` from so many distinct points."""

    d: float
    points: int

    @property
    def interval(self) -> list[float]:
        """90%, of the sampling alone: the estimate is (points kept) / (a gamma variable of that shape and rate d)."""
        kept = _kept(self.points)
        return [float(self.d * end / kept) for end in special.gammaincinv(kept, [0.05, 0.95])]


def intrinsic_dimension(points_nd: np.ndarray, seed: int = 0) -> Dimension:
    """By two nearest neighbours (Facco et al. 2017, "TwoNN"): the ratio mu of the distances to a point's second and
    first neighbour has P(mu > x) = x^-d, whatever the density.

    `points_nd`: (points, coordinates), e.g. final-layer activations at random positions. UserError for too few."""
    from scipy.spatial import KDTree  # here, since every `fit` imports this file and few have activations

    points_nd = np.asarray(points_nd, dtype=float)
    if points_nd.ndim != 2 or len(points_nd) < LEAST_POINTS:
        raise UserError(f"activations of shape {points_nd.shape}: (points, coordinates), {LEAST_POINTS} points or more")
    if not np.isfinite(points_nd).all():
        raise UserError("activations hold values that are not finite")
    if len(points_nd) > MOST_POINTS:
        points_nd = np.random.default_rng(seed).choice(points_nd, MOST_POINTS, replace=False)
    points_nd = np.unique(points_nd, axis=0)  # a repeated point has no nearest neighbour
    if len(points_nd) < LEAST_POINTS:
        raise UserError(f"{len(points_nd)} distinct activations: {LEAST_POINTS} are needed")
    distance_n3, _ = KDTree(points_nd).query(points_nd, k=3)
    log_mu = np.sort(np.log(distance_n3[:, 2] / distance_n3[:, 1]))
    kept = _kept(len(log_mu))
    # Exponential of rate d, censored at the largest ratio kept: maximum likelihood.
    exposure = log_mu[:kept].sum() + (len(log_mu) - kept) * log_mu[kept - 1]
    return Dimension(float(kept / exposure), len(log_mu))


def _kept(points: int) -> int:
    return int(points * (1 - DISCARDED))
