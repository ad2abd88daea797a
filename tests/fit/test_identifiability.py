"""Tables whose losses do not fall with N or D: said, without an answer, a crash or a word from numpy."""

import warnings

import numpy as np
import pandas as pd
import pytest

from benchmarks.fit_simulation import BESIROGLU, HOFFMANN, SMALL, table
from sweep.cli import main
from sweep.common.errors import UserError
from sweep.fit.bootstrap import interval
from sweep.fit.fit import fit_rows
from sweep.fit.rows import prepare


def grid() -> pd.DataFrame:
    """Six sizes at four token counts."""
    N, D = (axis.ravel() for axis in np.meshgrid(np.geomspace(1e7, 1e9, 6), np.geomspace(1e8, 1e10, 4)))
    return pd.DataFrame({"N": N, "D": D})


def noise(seed: int, kind: str) -> pd.DataFrame:
    rng, frame = np.random.default_rng(seed), grid()
    losses = {"normal": 3 + 0.1 * rng.normal(size=24), "uniform": rng.uniform(2, 4, size=24)}
    return frame.assign(loss=losses[kind])


def fitted(frame, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        return fit_rows(prepare(frame), **options)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_noise_has_no_compute_optimum(seed, kind):
    fit = fitted(noise(seed, kind), bootstrap=100)
    assert fit.certificate.without_effect == ["N", "D"]
    assert sum("do not fall with N or D, as far as this table tells" in text for text in fit.warnings) == 1
    assert fit.targets == []
    assert (fit.exponents.a, fit.exponents.b) == (None, None)
    assert "do not fall with" in fit.approaches["parametric"].refused
    for answer in (fit.law.optimal, fit.law.compute_for_loss):
        with pytest.raises(UserError, match="there is no compute-optimal size"):
            answer(3.0)


@pytest.mark.parametrize("noise_sd", [0.0, 0.01])
def test_only_the_variable_that_tells_nothing_is_named(noise_sd):
    rng, frame = np.random.default_rng(0), grid()
    frame["loss"] = (2 + 400 * frame["D"] ** -0.3) * np.exp(noise_sd * rng.normal(size=24))
    assert fitted(frame, bootstrap=0).certificate.without_effect == ["N"]


@pytest.mark.parametrize("params", [HOFFMANN, BESIROGLU, SMALL])
def test_laws_are_not_taken_for_noise(params):
    for noise_sd in (0.0, 0.01):
        fit = fitted(table(params, families=6, run_sd=noise_sd), bootstrap=0)
        assert fit.certificate.without_effect == []


@pytest.mark.slow
@pytest.mark.parametrize("noise_sd", [0.05, 0.3])
def test_a_noisy_law_or_one_absurd_loss_prints_nothing_of_numpys(noise_sd):
    for seed in range(2):
        rng, frame = np.random.default_rng(seed), grid()
        true = HOFFMANN["E"] + 406 * frame["N"] ** -0.34 + 411 * frame["D"] ** -0.28
        frame["loss"] = true * np.exp(noise_sd * rng.normal(size=24))
        fitted(frame, bootstrap=100)
        frame.loc[3, "loss"] = 1e9
        fitted(frame, bootstrap=100)


@pytest.mark.slow
def test_fit_says_it_and_predict_refuses(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    noise(0, "uniform").to_csv("noise.csv", index=False)
    assert main(["fit", "noise.csv", "--bootstrap", "100"]) == 0
    assert "warning: the losses do not fall with N or D" in capsys.readouterr().out
    assert main(["predict", "noise.csv", "--flops", "1e22"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_an_optimum_that_cannot_be_trained_is_refused():
    fit = fitted(table(BESIROGLU), bootstrap=0)
    with pytest.raises(UserError, match=r"1 FLOPs: the compute-optimal N = .* cannot be trained"):
        fit.law.optimal(1.0)


def test_what_depends_on_a_parameter_at_its_bound_has_no_interval():
    """D tells so steeply that beta runs to its bound."""
    rng, frame = np.random.default_rng(0), grid()
    true = 2 + 400 * frame["N"] ** -0.34 + (frame["D"].min() / frame["D"]) ** 5
    fit = fitted(frame.assign(loss=true * np.exp(0.01 * rng.normal(size=24))), bootstrap=100)
    assert fit.certificate.bounds_hit == ["beta"]
    assert fit.certificate.without_effect == []
    assert fit.approaches["parametric"].intervals is None
    assert fit.approaches["parametric"].note.endswith("no intervals: beta at a bound of the search")
    assert fit.interval("a") is None
    assert fit.interval("alpha").low < fit.params["alpha"] < fit.interval("alpha").high
    assert fit.targets
    assert fit.targets
    assert all(best.N_interval is None for best in fit.targets)
    assert fit.law.loss_interval(1e8, 1e10) is None


def test_an_interval_holds_its_estimate_or_is_none():
    draws = np.linspace(1.0, 2.0, 100)
    assert interval(1.5, draws, 1.0)[0] < 1.5 < interval(1.5, draws, 1.0)[1]
    assert interval(0.5, draws, 1.0) is None
    assert interval(2.5, draws, 1.0, positive=True) is None
