import json

import numpy as np
import pandas as pd
import pytest

from benchmarks.fit_simulation import BESIROGLU, HOFFMANN, SMALL, table
from sweep.common import artefacts
from sweep.common.checkout import ROOT
from sweep.common.errors import UserError
from sweep.fit.bootstrap import Interval
from sweep.fit.fit import fit_rows
from sweep.fit.fit_file import Fit, read, write
from sweep.fit.fit_warnings import warnings_about
from sweep.fit.frontier import Approach, FlopsModel
from sweep.fit.laws import law_named
from sweep.fit.minimise import minimise, objective_named
from sweep.fit.rows import FitError, prepare
from sweep.fit.solve import solve
from sweep.fit.table import OutputPaths

HUBER = objective_named("huber")


def arrays(frame):
    return {name: frame[name].to_numpy() for name in ("N", "D", "C")}


@pytest.mark.parametrize("params", [HOFFMANN, BESIROGLU], ids=["Hoffmann", "Besiroglu"])
@pytest.mark.parametrize("objective", ["huber", "absolute", "squares"])
def test_published_constants_come_back(params, objective):
    frame = table(params)
    found = solve(law_named("additive"), arrays(frame), frame["loss"].to_numpy(), objective_named(objective))
    for name, true in params.items():
        assert found.params[name] == pytest.approx(true, rel=1e-4), name
    assert found.certificate.verdict == "certified"


MUENNIGHOFF = {"E": 1.87, "A": 521.0, "B": 1488.0, "alpha": 0.353, "beta": 0.353, "R_D": 15.39, "R_N": 5.31}
PUBLISHED = {
    "power_N_no_floor": {"N0": 8.8e13, "alpha": 0.076},  # Kaplan et al. 2020, eq. 1.1
    "power_D_no_floor": {"D0": 5.4e13, "alpha": 0.095},  # eq. 1.2
    "power_C_no_floor": {"C0": 3.1e8 * 8.64e19, "alpha": 0.050},  # eq. 1.3, PF-days to FLOPs
    "kaplan_joint": {"Nc": 6.4e13, "Dc": 1.8e13, "alpha_N": 0.076, "alpha_D": 0.103},  # table 2
    "kaplan_steps": {"Nc": 6.5e13, "Sc": 2.1e3, "alpha_N": 0.077, "alpha_S": 0.76},  # table 3
    "repeated": {name: value for name, value in MUENNIGHOFF.items() if name != "R_N"},
    "repeated_both": MUENNIGHOFF,
    "per_ratio": {"E": 1.5, "A": 100.0, "B": 300.0, "eta": 0.15},
    "power_N": {"E": 1.2, "N0": 8.8e13, "alpha": 0.076},
    "power_D": {"E": 1.2, "D0": 5.4e13, "alpha": 0.095},
    "power_C": {"E": 1.5, "C0": 1e9, "alpha": 0.15},
}


@pytest.mark.parametrize("form", PUBLISHED)
def test_every_form_comes_back(form):
    N, D = np.repeat(np.geomspace(1e6, 1e9, 12), 8), np.tile(np.geomspace(2e7, 2.3e10, 8), 12)
    S = np.tile(np.geomspace(2e3, 2e5, 8), 12)
    x = {"N": N, "D": D, "C": 6 * N * D, "S": S, "M": D / N, "U": D / np.resize([1, 4, 16, 64], len(D))}
    law, params = law_named(form), PUBLISHED[form]
    found = solve(law, x, law.loss(params, x), HUBER)
    for name, true in params.items():
        assert found.params[name] == pytest.approx(true, rel=1e-4), name


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("params", [HOFFMANN, SMALL], ids=["Hoffmann", "small"])
def test_no_random_start_does_better(params, seed):
    frame = table(params, family_sd=0.005, run_sd=0.01, seed=seed)
    x, loss = arrays(frame), frame["loss"].to_numpy()
    found = solve(law_named("additive"), x, loss, HUBER)
    rng = np.random.default_rng(seed)
    low, high = found.bound.low_P, found.bound.high_P
    starts = low + (high - low) * rng.uniform(size=(60, 5))
    others = minimise(found.bound, np.log(loss), np.ones(len(loss)), HUBER, starts)
    assert found.value <= others.value_B.min() * (1 + 1e-6)


def test_outliers_do_not_move_a_huber_fit():
    frame = table(HOFFMANN, run_sd=1e-4)
    spoiled = frame["loss"].to_numpy().copy()
    spoiled[::20] *= 1.3
    found = solve(law_named("additive"), arrays(frame), spoiled, HUBER)
    assert found.params["alpha"] == pytest.approx(HOFFMANN["alpha"], abs=0.02)


def test_weights_are_repetitions():
    frame = table(HOFFMANN, run_sd=0.01)
    twice = pd.concat([frame, frame.iloc[:30]])
    weight = np.where(np.arange(len(frame)) < 30, 2.0, 1.0)
    one = solve(law_named("additive"), arrays(twice), twice["loss"].to_numpy(), HUBER)
    other = solve(law_named("additive"), arrays(frame), frame["loss"].to_numpy(), HUBER, weight)
    assert other.value == pytest.approx(one.value, rel=1e-8)
    assert other.params == pytest.approx(one.params, rel=1e-4)


def test_a_missing_floor_is_reported_as_a_bound():
    frame = table(SMALL | {"E": 1e-9})
    found = solve(law_named("additive"), arrays(frame), frame["loss"].to_numpy(), HUBER)
    assert found.certificate.bounds_hit == ["log E"]
    assert found.certificate.verdict == "weakly identified"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.head(4), "4 usable rows"),
        (lambda t: t[t["N"] == t["N"].iloc[0]].assign(D=[1e9, 2e9, 3e9, 4e9, 5e9]), "5 usable rows"),
        (lambda t: t.assign(N=1e8), "1 distinct model sizes"),
        (lambda t: t[t["C"] == t["C"].iloc[0]], "move together"),
        (lambda t: t.assign(loss=3.0), "losses are equal"),
    ],
    ids=["four rows", "five rows", "one size", "one budget", "equal losses"],
)
def test_degenerate_data_is_refused(change, message):
    with pytest.raises(FitError, match=message) as error:
        fit_rows(prepare(change(table(HOFFMANN, run_sd=0.01)).assign(C=lambda t: 6 * t["N"] * t["D"])))
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def whole():
    return fit_rows(
        prepare(table(BESIROGLU, family_sd=0.002, run_sd=0.002)), bootstrap=200, command="python -m sweep fit t.csv"
    )


def test_json_and_back(whole):
    text = whole.to_json()
    values = json.loads(text)
    documented = "form objective delta columns n_rows n_families dropped data_sha256 params objective_value "
    documented += "flops_model exponents intervals certificate approaches residuals holdout disagreements warnings"
    assert set(documented.split()) | {"versions", "command"} <= set(values)
    assert artefacts.decode(Fit, text, "fit.json").to_json() == text
    with pytest.raises(UserError, match=r"fit.json: damaged \(approaches is missing\)"):
        artefacts.decode(Fit, json.dumps({k: v for k, v in values.items() if k != "approaches"}), "fit.json")


def test_a_damaged_fit_says_how_to_make_it_again(whole, tmp_path):
    sweep = OutputPaths("mine", tmp_path)
    old = json.dumps({k: v for k, v in json.loads(whole.to_json()).items() if k != "params"})
    for text, why in (("{", "damaged"), ("[]", "damaged"), ("", "damaged"), (old, "params is missing")):
        (tmp_path / "fit.json").write_text(text)
        with pytest.raises(UserError, match=rf"fit.json: .*{why}.* with `python -m sweep fit mine`$"):
            read(sweep)
    write(whole, tmp_path / "fit.json")
    assert read(sweep).n_rows == 100


def test_a_file_of_an_older_version_is_read(whole):
    """Its approaches were called roads, and the budgets that one refused stood under the word for its own refusal."""
    values = json.loads(whole.to_json())
    values["roads"] = values.pop("approaches")
    for approach in values["roads"].values():
        if not approach["refused"]:
            approach["refused"] = approach.pop("budgets_refused")
        for unknown in [name for name, value in approach.items() if value is None]:
            del approach[unknown]
    values["certificate"]["starts_given_up"] = values["certificate"].pop("starts_stopped_early")
    assert artefacts.decode(Fit, json.dumps(values), "fit.json").to_json() == whole.to_json()


def test_targets_are_what_anybody_gets_from_the_file(whole):
    """Their intervals come from the replicates that are stored, as those of the report do."""
    for times, best in zip((1, 10, 100, 1000), whole.targets, strict=True):
        assert best.times == times
        assert vars(best) == vars(whole.law.optimal(1e21 * times)) | {"times": times}
        assert best.loss_nats_interval
    stored = {name: len(values) for name, values in whole.replicates.items()}
    assert set(stored.values()) == {200}


def test_targets_do_not_use_more_replicates_than_are_stored(monkeypatch):
    monkeypatch.setattr("sweep.fit.fit.STORED", 50)
    found = fit_rows(prepare(table(BESIROGLU, families=8, run_sd=0.002)), bootstrap=200)
    assert len(found.replicates["E"]) == 50
    assert vars(found.targets[1]) == vars(found.law.optimal(found.targets[1].C)) | {"times": 10}


def test_whole_fit(whole):
    assert whole.n_rows == 100
    assert whole.n_families == 20
    assert set(whole.approaches) == {"envelope", "isoflop_parabola", "isoflop_akima", "parametric"}
    assert whole.approaches["envelope"] == Approach(refused="no training curves")
    for name, miss in {"isoflop_parabola": 0.08, "isoflop_akima": 0.06, "parametric": 0.03}.items():
        assert whole.approaches[name].a == pytest.approx(0.513, abs=miss), name
    assert whole.exponents.a == pytest.approx(0.513, abs=0.03)
    assert whole.flops_model.k == pytest.approx(6)
    assert whole.flops_model.gamma == pytest.approx(1)
    assert len(whole.residuals) == 100
    assert abs(np.median([r.predicted_nats / r.loss_nats - 1 for r in whole.residuals])) < 1e-3


def test_questions(whole):
    fitted = whole.law
    best = fitted.optimal(1e22)
    assert best.loss_nats == pytest.approx(float(fitted.loss(best.N, best.D)))
    assert pytest.approx(1e22, rel=1e-6) == 6 * best.N * best.D
    assert fitted.compute_for_loss(best.loss_nats) == pytest.approx(1e22, rel=1e-6)
    with pytest.raises(ValueError, match="floor"):
        fitted.compute_for_loss(whole.params["E"] * 0.99)


def test_a_wide_exponent_is_named_in_words():
    rows = prepare(table(BESIROGLU, run_sd=0.002))
    solution = solve(law_named("additive"), rows.variables(), rows.loss, HUBER)
    said = warnings_about(
        rows, solution, FlopsModel(6.0, 1.0), None, dict.fromkeys(("a", "beta"), Interval(0.1, 0.9)), None
    )
    assert "weakly identified: the exponent of N_opt, a, is anywhere in [0.10, 0.90]" in said
    assert "weakly identified: beta is anywhere in [0.10, 0.90]" in said


def test_repeated_data_is_warned_about():
    frame = table(HOFFMANN, run_sd=0.001).assign(unique_tokens=1e9)
    assert any("repeat data" in w for w in fit_rows(prepare(frame), bootstrap=0).warnings)


def test_every_row_with_a_loss_has_a_residual():
    frame = table(HOFFMANN, run_sd=0.001).assign(steps=1000.0)
    found = fit_rows(prepare(frame, where="C < 9e20"), bootstrap=0)
    assert [r.row for r in found.residuals] == list(range(100))
    assert sum(r.used for r in found.residuals) == 80
    unused = [r.predicted_nats / r.loss_nats for r in found.residuals if not r.used]
    assert np.allclose(unused, 1, atol=0.02)


def test_a_form_is_refused_rows_without_its_variable():
    frame = table(HOFFMANN).assign(unique_tokens=1e9)
    frame.loc[3, "unique_tokens"] = np.nan
    with pytest.raises(FitError, match="needs U, and some rows have none"):
        fit_rows(prepare(frame), form="repeated")
    with pytest.raises(FitError, match="unique_tokens=…"):
        fit_rows(prepare(table(HOFFMANN)), form="repeated")


def test_many_rows_are_fitted_from_some_of_them():
    frame = table(HOFFMANN, families=1200, run_sd=0.005)
    found = solve(law_named("additive"), arrays(frame), frame["loss"].to_numpy(), HUBER)
    assert found.certificate.verdict == "certified"
    assert found.certificate.starts == 3
    assert found.params == pytest.approx(HOFFMANN, rel=0.05)


def test_a_refusal_says_what_was_dropped():
    frame = table(HOFFMANN, run_sd=0.001)
    with pytest.raises(FitError, match=r"4 usable rows.*dropped: 96 outside_range"):
        fit_rows(prepare(frame, where="family == 3 and C > 1.1e18"))


def test_a_parameter_on_its_bound_has_no_interval():
    """Losses without a floor: E goes to its bound, where replicates pile up and would look sure of themselves."""
    rng = np.random.default_rng(3)
    N, D = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e4, 1e6, 8), np.geomspace(1e6, 1e8, 5)))
    loss = (30 * N**-0.2 + 50 * D**-0.2) * np.exp(rng.normal(0, 1e-3, len(N)))
    frame = pd.DataFrame({"N": N, "D": D, "loss": loss, "family": N.astype(str)})
    found = fit_rows(prepare(frame), bootstrap=200)
    assert "log E" in found.certificate.bounds_hit
    assert found.interval("E") is None
    assert found.interval("alpha").low < 0.2 < found.interval("alpha").high
    assert any("log E" in warning for warning in found.warnings)


@pytest.mark.parametrize("form", ["repeated", "repeated_both"])
def test_a_form_with_repeated_data_has_an_optimum_on_data_that_is_not(form):
    rng = np.random.default_rng(0)
    frame = table(HOFFMANN)
    frame["unique_tokens"] = frame["D"] / rng.choice([1.0, 4.0, 16.0], len(frame))
    repeats = frame["D"] / frame["unique_tokens"] - 1
    seen = frame["unique_tokens"] * (1 + 15.4 * (1 - np.exp(-repeats / 15.4)))
    p = HOFFMANN
    frame["loss"] = p["E"] + p["A"] * frame["N"] ** -p["alpha"] + p["B"] * seen ** -p["beta"]
    found = fit_rows(prepare(frame), None, form=form, bootstrap=0, seed=0)
    exponent = p["beta"] / (p["alpha"] + p["beta"])
    assert found.exponents.a == pytest.approx(exponent, abs=0.02)
    assert found.targets[0].N > 0


def test_the_fit_that_is_kept_with_the_benchmarks_is_read():
    """It was written by version 0.1.0."""
    found = read(OutputPaths("default", ROOT / "benchmarks" / "results" / "default_sweep"))
    assert (found.n_rows, found.certificate.starts_stopped_early) == (40, 6)
    assert found.approaches["isoflop_akima"].intervals.a == pytest.approx((-0.0436, 0.8057), abs=1e-4)
    best = found.law.optimal(found.targets[1].C)
    assert vars(best) | {"times": 10} == vars(found.targets[1])
