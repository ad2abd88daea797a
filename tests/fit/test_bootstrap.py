import numpy as np
import pytest

from benchmarks.fit_simulation import BESIROGLU, table
from sweep.fit import bootstrap, frontier
from sweep.fit.frontier import FlopsModel
from sweep.fit.laws import law_named
from sweep.fit.minimise import objective_named
from sweep.fit.solve import solve

LAW, HUBER, SIX_ND = law_named("additive"), objective_named("huber"), FlopsModel(6.0, 1.0)


def simulated(seed, families=20, count=150, **noise):
    frame = table(BESIROGLU, families=families, seed=seed, **(noise or {"family_sd": 0.005, "run_sd": 0.005}))
    x = {name: frame[name].to_numpy() for name in ("N", "D", "C")}
    loss, family = frame["loss"].to_numpy(), frame["family"].to_numpy()
    solution = solve(LAW, x, loss, HUBER)
    return x, loss, family, solution, bootstrap.resample(solution, loss, family, count, seed)


@pytest.mark.slow
@pytest.mark.parametrize("families", [6, 20])
def test_nominal_90_percent_covers_about_90_percent(families):
    """A small version of benchmarks/fit_calibration.py: a, and loss at 10 times the compute."""
    true_a = frontier.exponents(LAW, BESIROGLU, SIX_ND)[0]
    true_loss = float(frontier.optimum(LAW, BESIROGLU, SIX_ND, 1e22)[2])
    hits = np.zeros(2)
    for seed in range(40):
        _, _, _, solution, replicates = simulated(seed, families, count=120)
        for i, (truth, ask) in enumerate(
            [
                (true_a, lambda p: frontier.exponents(LAW, p, SIX_ND)[0]),
                (true_loss, lambda p: frontier.optimum(LAW, p, SIX_ND, 1e22)[2]),
            ]
        ):
            low, high = bootstrap.interval(ask(solution.params), ask(replicates.params), replicates.widening)
            hits[i] += low <= truth <= high
    assert np.all((hits >= 32) & (hits <= 40)), hits


def test_independent_rows_in_one_family_are_not_evidence():
    """Repeating every row inside its family must not narrow the intervals."""
    x, loss, family, _, replicates = simulated(0)
    twice = {name: np.repeat(v, 2) for name, v in x.items()}
    again = solve(LAW, twice, np.repeat(loss, 2), HUBER)
    doubled = bootstrap.resample(again, np.repeat(loss, 2), np.repeat(family, 2), 150, 0)
    width, other = (np.std(r.params["alpha"]) for r in (replicates, doubled))
    assert other == pytest.approx(width, rel=0.05)


def test_batches_do_not_change_the_refits(monkeypatch):
    whole = simulated(1)[-1]
    monkeypatch.setattr(bootstrap, "CHUNK_ROWS", 700)
    np.testing.assert_allclose(simulated(1)[-1].theta_BP, whole.theta_BP, rtol=1e-3, atol=1e-3)


def test_a_refit_is_a_fit_of_its_weights():
    x, loss, family, solution, _ = simulated(2)
    weight = np.random.default_rng(0).exponential(size=20)[family]
    theta = bootstrap.refit(solution, np.log(loss), weight[None])
    fresh = solve(LAW, x, loss, HUBER, weight)
    refitted = {name: float(v[0]) for name, v in solution.bound.to_params(theta).items()}
    assert refitted == pytest.approx(fresh.params, rel=2e-2)
    assert refitted["alpha"] == pytest.approx(fresh.params["alpha"], rel=2e-3)


@pytest.mark.parametrize("families", [6, 20])
def test_drawn_deviations_are_as_large_as_the_noise(families):
    """Residuals alone are smaller, deviations from the law fitted without the family larger."""
    seen = []
    for seed in range(30):
        replicates = simulated(seed, families, count=1)[-1]
        drawn, _ = bootstrap.draw_deviations(replicates, 50, seed)
        seen.append([np.mean(values**2) for values in (replicates.residual_n, drawn, replicates.deviation_n)])
    small, right, large = np.mean(seen, axis=0) / (2 * 0.005**2)
    assert small < right < large
    assert 0.75 < right < 1.35


def test_widening_shrinks_with_families():
    widths = [bootstrap.widening(f) for f in (5, 8, 20, 100)]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] == pytest.approx(1.985, abs=0.01)
    assert widths[-1] == pytest.approx(1.015, abs=0.01)


def test_interval_is_stretched_about_the_estimate():
    draws = np.linspace(0, 10, 101)
    assert bootstrap.interval(4.0, draws, 1.0) == pytest.approx([0.5, 9.5])
    assert bootstrap.interval(4.0, draws, 2.0) == pytest.approx([-3.0, 15.0])
    low, high = bootstrap.interval(2.0, np.exp(draws), 1.0, positive=True)
    assert (low, high) == (pytest.approx(np.exp(0.5)), pytest.approx(np.exp(9.5)))
    assert bootstrap.interval(4.0, np.full(10, np.nan), 1.0) is None


def test_new_runs_fall_into_their_prediction_interval():
    inside = []
    for seed in range(8):
        _, _, _, solution, replicates = simulated(seed)
        new = table(
            BESIROGLU, families=40, flops=(1e21, 1e22), budgets=2, family_sd=0.005, run_sd=0.005, seed=seed + 100
        )
        x = {name: new[name].to_numpy() for name in ("N", "D")}
        low, high = bootstrap.prediction_interval(solution, replicates, x, 0)
        inside.append(np.mean((low <= new["loss"]) & (new["loss"] <= high)))
    assert 0.84 <= np.mean(inside) <= 0.97


def test_seed_noise_is_recovered_from_replicates():
    frame = table(BESIROGLU, families=60, distinct_sizes=6, run_sd=0.01)
    columns = (frame[c].to_numpy() for c in ("N", "D", "loss", "family"))
    found = bootstrap.seed_noise(*columns)
    assert found.sd_log_loss == pytest.approx(0.01, rel=0.15)
    assert found.degrees_of_freedom == 54 * 5
    alone = table(BESIROGLU)
    assert bootstrap.seed_noise(*(alone[c].to_numpy() for c in ("N", "D", "loss", "family"))) is None
