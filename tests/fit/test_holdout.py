import numpy as np
import pytest

from benchmarks.fit_simulation import BESIROGLU, table
from sweep.fit.holdout import cuts, holdout
from sweep.fit.laws import law_named
from sweep.fit.minimise import objective_named
from sweep.fit.rows import prepare


def run(frame, **options):
    rows = prepare(frame)
    law, huber = law_named("additive"), objective_named("huber")
    return holdout(law, rows, huber, **options)


def test_larger_runs_are_predicted_from_smaller_ones():
    found = run(table(BESIROGLU, family_sd=0.002, run_sd=0.002))
    assert [cut.n_fit for cut in found] == [40, 60, 80]  # one budget alone cannot be fitted
    for cut in found:
        assert min(r.C for r in cut.rows) > cut.cut_flops
        assert len(cut.rows) == cut.n_predicted == 100 - cut.n_fit
        assert cut.coverage == np.mean([r.low_nats <= r.loss_nats <= r.high_nats for r in cut.rows])
    assert found[-1].mean_error < 0.01
    assert found[-1].coverage > 0.7
    assert found[0].max_flops_ratio == pytest.approx(1000 ** (3 / 4), rel=1e-6)


def test_exact_rows_are_predicted_exactly():
    for cut in run(table(BESIROGLU), intervals=False):
        assert cut.mean_error < 1e-4
        assert cut.coverage is None


def test_a_law_that_bends_is_caught():
    frame = table(BESIROGLU)
    frame["loss"] *= 1 + 0.1 * (np.log(frame["C"]) > np.log(2e20))
    assert run(frame, intervals=False)[-1].mean_signed_error < -0.05


def test_cuts_lie_between_budgets_or_at_quantiles():
    assert len(cuts(np.repeat([1e18, 1e19, 1e20], 5))) == 2
    scattered = np.exp(np.random.default_rng(0).uniform(40, 50, 200))
    found = cuts(scattered)
    assert len(found) == 5
    assert [int(np.sum(scattered <= c)) for c in found] == sorted(int(np.sum(scattered <= c)) for c in found)
