import numpy as np
import pandas as pd
import pytest

from benchmarks.fit_simulation import BESIROGLU, table
from sweep.fit import bootstrap, frontier
from sweep.fit.approaches import all_approaches, disagreements
from sweep.fit.bootstrap import Interval
from sweep.fit.frontier import Approach, ExponentIntervals, FlopsModel
from sweep.fit.laws import law_named
from sweep.fit.minimise import objective_named
from sweep.fit.rows import prepare
from sweep.fit.solve import solve

LAW, SIX_ND = law_named("additive"), FlopsModel(6.0, 1.0)
TRUE_A = frontier.exponents(LAW, BESIROGLU, SIX_ND)[0]


def curves_of(frame):
    """Undecayed curves, 3% above the law, each shifted as its family's runs are."""
    parts = []
    for family, runs in frame.groupby("family"):
        N, D = runs["N"].iloc[0], np.geomspace(1e7, 1e12, 60)
        shift = np.mean(np.log(runs["loss"] / LAW.loss(BESIROGLU, {"N": runs["N"], "D": runs["D"]})))
        loss = LAW.loss(BESIROGLU, {"N": N, "D": D}) * 1.03 * np.exp(shift)
        part = pd.DataFrame({"tokens": D, "flops": 6 * N * D, "val_loss_nats": loss, "lr": 1e-3, "phase": "stable"})
        parts.append(part.assign(trial_id=f"run {family}", family_id=str(family)))
    return pd.concat(parts, ignore_index=True)


@pytest.fixture(scope="module")
def approaches():
    frame = table(BESIROGLU, family_sd=0.003, run_sd=0.003, seed=3)
    rows = prepare(frame)
    solution = solve(LAW, rows.variables(), rows.loss, objective_named("huber"))
    replicates = bootstrap.resample(solution, rows.loss, rows.family, 200, 0)
    return all_approaches(rows, curves_of(frame), solution, SIX_ND, replicates)


def test_every_approach_covers_the_truth_and_says_how_sure_it_is(approaches):
    found, _ = approaches
    for name in ("envelope", "isoflop_akima", "parametric"):
        low, high = found[name].intervals.a
        assert low < found[name].a < high, name
        assert low < TRUE_A < high, name
    widths = {name: np.ptp(approach.intervals.a) for name, approach in found.items()}
    assert widths["parametric"] < widths["isoflop_akima"]


def test_optima_carry_intervals(approaches):
    found, drawn = approaches
    for name in ("isoflop_parabola", "isoflop_akima", "parametric"):
        for optimum in found[name].optima:
            low, high = optimum.N_interval
            assert low < optimum.N < high
    assert drawn["isoflop_akima"]["loss_nats"].shape[1] == len(found["isoflop_akima"].optima)


def test_without_replicates_there_are_no_intervals():
    rows = prepare(table(BESIROGLU))
    solution = solve(LAW, rows.variables(), rows.loss, objective_named("huber"))
    found, drawn = all_approaches(rows, None, solution, SIX_ND, None)
    assert all(approach.intervals is None for approach in found.values())
    assert not any(drawn.values())


def gives(a: float, low: float | None = None, high: float | None = None) -> Approach:
    ends = None if low is None else ExponentIntervals(Interval(low, high), Interval(0.0, 1.0))
    return Approach(a=a, b=1 - a, intervals=ends)


def test_disagreement_alarm():
    assert len(disagreements({"one": gives(0.5), "other": gives(0.7), "third": Approach(refused="no")})) == 1
    assert disagreements({"one": gives(0.5, 0.3, 0.65), "other": gives(0.7, 0.6, 0.8)}) == []
    assert disagreements({"one": gives(0.5, 0.3, 0.65), "other": gives(0.64)}) == []
    assert len(disagreements({"one": gives(0.5, 0.3, 0.65), "other": gives(0.66)})) == 1
    assert disagreements({"one": gives(0.5, 0.3, 0.65), "other": gives(0.7, 0.66, 0.8)}) == [
        "the approaches disagree on a, N_opt ~ C^a: one 0.500 [0.300, 0.650], other 0.700 [0.660, 0.800]"
    ]


def test_approaches_that_disagree_are_one_line():
    apart = {"one": gives(0.4), "two": gives(0.6, 0.55, 0.65), "three": gives(0.8)}
    assert disagreements(apart | {"four": Approach(refused="no")}) == [
        "the approaches disagree on a, N_opt ~ C^a: one 0.400, two 0.600 [0.550, 0.650], three 0.800"
    ]
    assert disagreements({"one": gives(0.4), "two": gives(0.41)}) == []
