"""Simulated tables of runs with a known truth, for the fit's tests and benchmarks.

A sweep here is F families (a size, a seed), each trained at several budgets. Its noise has a part that the runs of
a family share (they share a trunk) and a part of each run's own, both heavy-tailed: Student t with 4 degrees
of freedom, scaled to the given standard deviation in log loss.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from sweep.fit.laws import law_named

HOFFMANN = {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}  # as printed, arXiv 2203.15556
BESIROGLU = {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}  # arXiv 2404.10102
SMALL = {"E": 1.9, "A": 22.0, "B": 300.0, "alpha": 0.33, "beta": 0.42}  # a laptop's sweep


def heavy_tailed(rng: np.random.Generator, sd: float, size: int) -> np.ndarray:
    """Student t, 4 degrees of freedom, standard deviation `sd`."""
    return rng.standard_t(4, size) * sd / np.sqrt(2)


def table(
    params: Mapping[str, float],
    *,
    families: int = 20,
    budgets: int = 5,
    sizes: tuple[float, float] = (1e7, 3e10),
    flops: tuple[float, float] = (1e18, 1e21),
    family_sd: float = 0.0,
    run_sd: float = 0.0,
    k: float = 6.0,
    gamma: float = 1.0,
    distinct_sizes: int | None = None,
    form: str = "additive",
    seed: int = 0,
) -> pd.DataFrame:
    """One row per run. `distinct_sizes` below `families` makes replicates: families of the same size."""
    rng = np.random.default_rng(seed)
    distinct = np.geomspace(*sizes, distinct_sizes or families)
    N = np.repeat(np.resize(distinct, families), budgets)
    C = np.tile(np.geomspace(*flops, budgets), families)
    D = C / (k * N**gamma)
    family = np.repeat(np.arange(families), budgets)
    noise = heavy_tailed(rng, family_sd, families)[family] + heavy_tailed(rng, run_sd, len(N))
    loss = law_named(form).loss(params, {"N": N, "D": D, "C": C, "M": D / N}) * np.exp(noise)
    return pd.DataFrame({"N": N, "D": D, "C": C, "loss": loss, "family": family})
