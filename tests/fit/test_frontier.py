import numpy as np
import pandas as pd
import pytest

from benchmarks.fit_simulation import BESIROGLU, HOFFMANN, table
from sweep.common.errors import UserError
from sweep.fit import frontier
from sweep.fit.frontier import FlopsModel
from sweep.fit.laws import law_named

ADDITIVE = law_named("additive")


def test_flops_are_measured():
    frame = table(HOFFMANN, k=37.0, gamma=0.83)
    model = frontier.measure_flops(*(frame[c].to_numpy() for c in "NDC"))
    assert (model.k, model.gamma) == (pytest.approx(37.0), pytest.approx(0.83))
    assert model.worst_relative_error < 1e-9


@pytest.mark.parametrize("model", [FlopsModel(6.0, 1.0), FlopsModel(40.0, 0.8)])
def test_optimum_is_the_minimum_along_the_budget(model):
    for C in (1e18, 1e23):
        N, D, loss = frontier.optimum(ADDITIVE, BESIROGLU, model, C)
        sizes = N * np.geomspace(0.5, 2, 2001)
        along = ADDITIVE.loss(BESIROGLU, {"N": sizes, "D": model.tokens(C, sizes)})
        assert model.flops(N, D) == pytest.approx(C)
        assert sizes[along.argmin()] == pytest.approx(N, rel=1e-3)
        assert loss == pytest.approx(along.min(), rel=1e-8)


def test_exponents_are_the_slopes_of_the_optimum():
    for model in (FlopsModel(6.0, 1.0), FlopsModel(40.0, 0.8)):
        a, b = frontier.exponents(ADDITIVE, BESIROGLU, model)
        (N1, D1, _), (N2, D2, _) = (frontier.optimum(ADDITIVE, BESIROGLU, model, C) for C in (1e19, 1e21))
        assert np.log(N2 / N1) / np.log(100) == pytest.approx(a)
        assert np.log(D2 / D1) / np.log(100) == pytest.approx(b)
    assert frontier.exponents(ADDITIVE, HOFFMANN, FlopsModel(6.0, 1.0))[0] == pytest.approx(0.28 / 0.62)


def test_closed_form_and_search_agree():
    model = FlopsModel(40.0, 0.8)
    C = np.array([1e18, 1e20])
    searched = frontier._minimise_along(ADDITIVE, BESIROGLU, model, C)
    np.testing.assert_allclose(searched, frontier.optimum(ADDITIVE, BESIROGLU, model, C)[0], rtol=1e-6)


def test_a_form_without_sizes_has_no_frontier():
    with pytest.raises(UserError, match="power_C"):
        frontier.optimum(law_named("power_C"), {"E": 1, "C0": 1, "alpha": 1}, FlopsModel(6.0, 1.0), 1e20)


# --- isoFLOP ------------------------------------------------------------------------------------------------


def test_parabola_and_akima_find_a_known_minimum():
    x = np.linspace(0, 6, 7)
    loss = 2 + 0.1 * (x - 3.3) ** 2
    for method in (frontier.parabola_minimum, frontier.akima_minimum):
        place, value, reasons = method(x, np.stack([loss, loss + 1]))
        np.testing.assert_allclose(place, 3.3, atol=0.03)
        np.testing.assert_allclose(value, [2, 3], atol=1e-3)
        assert reasons == ["", ""]


def test_refusals_of_one_budget():
    x = np.linspace(0, 6, 7)
    assert "opens downwards" in frontier.parabola_minimum(x, (2 - 0.1 * (x - 3) ** 2)[None])[2][0]
    assert "edge" in frontier.parabola_minimum(x, (2 + 0.1 * (x - 9) ** 2)[None])[2][0]
    assert "edge" in frontier.akima_minimum(x, (2 + 0.1 * (x - 9) ** 2)[None])[2][0]


def road(frame, method="isoflop_akima"):
    N, D, C, loss = (frame[c].to_numpy() for c in ("N", "D", "C", "loss"))
    return frontier.isoflop_road(method, frontier.budgets(N, D, C), np.log(loss))


def test_akima_gives_the_exponents_of_the_law():
    found = road(table(BESIROGLU, families=24))
    assert found["a"] == pytest.approx(0.5126, abs=0.01)
    assert found["b"] == pytest.approx(0.4874, abs=0.01)
    assert len(found["optima"]) == 5


def test_budgets_are_grouped_though_steps_are_rounded():
    frame = table(BESIROGLU)
    frame["C"] *= np.exp(np.random.default_rng(0).uniform(-0.03, 0.03, len(frame)))
    groups = frontier.budgets(*(frame[c].to_numpy() for c in "NDC"))
    assert [len(g.log_N_m) for g in groups] == [20] * 5


def test_replicates_are_averaged():
    frame = pd.concat([table(BESIROGLU, run_sd=0.01, seed=s) for s in (0, 1)])
    groups = frontier.budgets(*(frame[c].to_numpy() for c in "NDC"))
    assert [len(g.log_N_m) for g in groups] == [20] * 5
    np.testing.assert_allclose(groups[0].average_mn.sum(axis=1), 1)


def test_a_road_without_enough_budgets_says_so():
    frame = table(BESIROGLU)
    few = frame[frame["C"].isin(np.unique(frame["C"])[:2])]
    assert "2 budgets" in road(few)["refused"]
    three_sizes = frame[frame["N"].isin(np.unique(frame["N"])[8:11])]
    found = road(three_sizes)
    assert "0 budgets" in found["refused"]
    assert all("3 sizes" in r["reason"] for r in found["budgets_refused"])
    one_side = frame[frame["N"] < 5e7]
    assert {r["reason"][:22] for r in road(one_side)["budgets_refused"]} == {"the minimum is at the "}


def test_a_table_without_budgets_is_refused():
    rng = np.random.default_rng(0)
    N, D = np.exp(rng.uniform(15, 20, 60)), np.exp(rng.uniform(18, 24, 60))
    assert "refused" in frontier.isoflop_road("isoflop_parabola", frontier.budgets(N, D, 6 * N * D), np.zeros(60))


# --- envelope -----------------------------------------------------------------------------------------------


def curves(phase="stable"):
    rows = []
    for i, N in enumerate(np.geomspace(1e7, 3e9, 15)):
        D = np.geomspace(1e7, 1e12, 60)
        loss = ADDITIVE.loss(BESIROGLU, {"N": N, "D": D}) * 1.03
        flops = 6 * N * D
        for budget in (1, 2):
            part = pd.DataFrame({"tokens": D, "flops": flops, "val_loss_nats": loss, "lr": 1e-3, "phase": phase})
            rows.append(part.assign(trial_id=f"{i}-{budget}", family_id=f"f{i}", size=N))
    return pd.concat(rows, ignore_index=True)


def sizes_of(frame):
    return dict(zip(frame["family_id"], frame["size"], strict=True))


def test_envelope_of_exact_curves():
    frame = curves()
    stable = frontier.stable_curves(frame, sizes_of(frame))
    assert stable.log_loss_FG.shape == (15, 200)  # one curve per family, though each has two runs
    found = frontier.envelope_road(stable)
    assert found["a"] == pytest.approx(0.5126, abs=0.005)
    assert found["b"] == pytest.approx(0.4874, abs=0.005)
    assert "undecayed" in found["note"]


def test_decayed_points_never_enter_the_envelope():
    frame = curves()
    decayed = frame.assign(phase="decay", val_loss_nats=0.01, lr=1e-5)
    warm = frame.assign(lr=1e-4, val_loss_nats=0.01, tokens=frame["tokens"] / 7)
    both = pd.concat([frame, decayed, warm], ignore_index=True)
    clean = frontier.envelope_road(frontier.stable_curves(frame, sizes_of(frame)))
    assert frontier.envelope_road(frontier.stable_curves(both, sizes_of(frame))) == clean


def test_cosine_has_no_envelope():
    frame = curves(phase="decay")
    with pytest.raises(UserError, match="constant learning rate"):
        frontier.stable_curves(frame, sizes_of(frame))


def test_envelope_of_too_few_sizes_is_refused():
    frame = curves()
    three = frame[frame["family_id"].isin(["f6", "f7", "f8"])]
    assert "refused" in frontier.envelope_road(frontier.stable_curves(three, sizes_of(frame)))
