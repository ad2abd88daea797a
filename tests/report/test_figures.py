"""What the figures describe, and that both renderers accept every description."""

import dataclasses
import math

import numpy as np
import plotly.graph_objects
import pytest

from sweep.fit.frontier import Approach, Optimum
from sweep.report import answers, axes, matplotlib_figures, plotly_figures, results
from sweep.report.figure_spec import Axis, Figure, LeftOut, Panel, Series
from sweep.report.figures import FIGURES, describe
from tests.helpers.example_sweeps import BUDGETS, LAW, SIZES, write

KINDS = ("normal", "refused", "data_limited", "lr", "single", "tiny")


@pytest.fixture(scope="module")
def sweeps(tmp_path_factory):
    """kind → the loaded results of a simulated sweep."""
    folder = tmp_path_factory.mktemp("sweeps")
    return {kind: results.load(write(folder / kind, kind)) for kind in KINDS}


@pytest.fixture(scope="module")
def described(sweeps):
    """kind → key → Figure or LeftOut."""
    return {kind: {figure.key: figure for figure in describe(sweep)} for kind, sweep in sweeps.items()}


def drawn(figures) -> set[str]:
    return {key for key, figure in figures.items() if isinstance(figure, Figure)}


def named(figure: Figure, name: str, panel: int = 0) -> list[Series]:
    return [series for series in figure.panels[panel].series if series.name.startswith(name)]


def test_each_kind_of_sweep_shows_what_it_has_data_for(described):
    everything = {figure.__name__ for figure in FIGURES}
    about_data_or_rate = {"data_limited", "learning_rate"}
    needs_fit = {
        "optimal_params", "optimal_tokens", "contour", "loss_against_compute", "residuals", "extrapolation", "cost"
    }  # fmt: skip
    assert drawn(described["normal"]) == everything - about_data_or_rate
    assert drawn(described["refused"]) == everything - about_data_or_rate - needs_fit
    assert drawn(described["data_limited"]) & about_data_or_rate == {"data_limited"}
    assert drawn(described["lr"]) & about_data_or_rate == {"learning_rate"}
    assert drawn(described["single"]) == {"headline", "loss_against_tokens", "learning_curves"}
    assert drawn(described["tiny"]) == {"headline", "loss_against_params"}


def test_what_is_left_out_says_why(described):
    for figures in described.values():
        for figure in figures.values():
            if isinstance(figure, LeftOut):
                assert len(figure.reason) > 10
    assert "too few budgets (1)" in described["refused"]["contour"].reason


def test_nothing_finished_is_said(sweeps):
    table = sweeps["normal"].table
    nothing = results.Results("nothing", table[table["status"] != "finished"], refused="nothing to fit")
    assert {figure.key: figure.reason for figure in describe(nothing)}["headline"] == "no trial has finished"


def test_every_axis_has_a_label_and_every_loss_a_unit(described):
    for figures in described.values():
        for figure in figures.values():
            for panel in getattr(figure, "panels", ()):
                for axis in (panel.x, panel.y):
                    assert axis.label
                    if "loss" in axis.label and "%" not in axis.label:
                        assert "nats per token" in axis.label


def test_a_trial_that_blew_up_does_not_hide_the_other_learning_curves(sweeps):
    normal = sweeps["normal"]
    curves = normal.curves.copy()
    curves.loc[curves.index[-1], ["val_loss_nats", "train_loss_nats"]] = 1.2e6
    blown = {figure.key: figure for figure in describe(dataclasses.replace(normal, curves=curves))}
    for panel in blown["learning_curves"].panels:
        assert panel.y.range[1] < 1.1 * normal.reference_lines["uniform"]


def test_no_panel_is_empty(described):
    for figures in described.values():
        for figure in figures.values():
            for panel in getattr(figure, "panels", ()):
                assert any(len(series.x) for series in panel.series), figure.key


def test_headline_has_every_finished_run_and_the_frontier_below_them(sweeps, described):
    figure, sweep = described["normal"]["headline"], sweeps["normal"]
    ends = [series for series in figure.panels[0].series if series.kind == "points"]
    assert sum(len(series.x) for series in ends) == (sweep.table["status"] == "finished").sum()
    law = named(figure, "frontier")[0]
    nearest = [np.interp(math.log(c), np.log(law.x), law.y) for c in BUDGETS]
    best = sweep.finished.groupby(sweep.finished["C"].round(-11))["loss"].min()
    assert len(best) >= len(nearest)
    assert all(abs(low - seen) < 0.1 for low, seen in zip(nearest, best, strict=False))
    assert any("undecayed" in series.name for series in figure.panels[0].series)
    labels = [series.name for series in figure.panels[0].series if series.kind == "reference"]
    assert any("trigram 3.62" in label for label in labels)


def test_stable_part_of_a_family_is_drawn_once(sweeps, described):
    size = 12_700
    line = next(series for series in described["normal"]["learning_curves"].panels[0].series if series.name == "12.7k")
    tokens = [x for x in line.x if math.isfinite(x)]
    curves = sweeps["normal"].curves
    of_size = curves[curves["params_non_embedding"] == size]
    distinct = len(of_size.drop_duplicates(["tokens", "val_loss_nats"]))
    branches = of_size["trial_id"].nunique() - 1  # each repeats the point where it leaves the shared part
    assert len(tokens) == distinct + branches
    assert len(tokens) < len(of_size)


def test_isoflop_minima_and_refusals(described):
    figure = described["normal"]["isoflop"]
    assert len(named(figure, "minimum, parabola")[0].x) >= 3
    assert "Refused: " in figure.caption
    assert "edge" in figure.caption


def test_approaches_are_shown_side_by_side_with_their_exponents(sweeps, described):
    for key, exponent in (("optimal_params", "a"), ("optimal_tokens", "b")):
        names = {series.name for series in described["normal"][key].panels[0].series}
        assert len(names) == 4
        assert all(f"{exponent} = 0." in name for name in names)
    line = next(s for s in described["normal"]["optimal_params"].panels[0].series if s.name.startswith("parametric"))
    optimum = sweeps["normal"].fit.law.optimal(line.x[-1])
    assert line.y[-1] == pytest.approx(optimum.N, rel=1e-3)


def test_refused_approach_keeps_its_points_and_says_why(sweeps):
    sweep = sweeps["normal"]
    refused = Approach(refused="2 budgets with a minimum inside", optima=[Optimum(1e11, 1e4, 1e6, 3.5)])
    fit = dataclasses.replace(sweep.fit, approaches=sweep.fit.approaches | {"isoflop_akima": refused})
    figure = {f.key: f for f in describe(dataclasses.replace(sweep, fit=fit))}["optimal_params"]
    akima = named(figure, "isoFLOP, Akima")
    assert [series.kind for series in akima] == ["points"]
    assert "isoFLOP, Akima (2 budgets with a minimum inside)" in figure.caption


def test_contour_and_slices_follow_the_fitted_law(sweeps, described):
    surface = described["normal"]["contour"].panels[0].series[0]
    params = sweeps["normal"].fit.params
    N, D = surface.x[3], surface.y[7]
    expected = params["E"] + params["A"] * N ** -params["alpha"] + params["B"] * D ** -params["beta"]
    assert surface.z[7][3] == pytest.approx(expected)
    limit = named(described["normal"]["loss_against_params"], "D → ∞")[0]
    assert limit.y[-1] == pytest.approx(params["E"] + params["A"] * limit.x[-1] ** -params["alpha"])


def test_cost_rises_as_the_loss_falls_and_is_what_the_frontier_says(sweeps):
    rows = answers.costs(sweeps["normal"], answers.round_losses(sweeps["normal"]))
    flops = [row.flops for row in rows]
    assert flops == sorted(flops)
    first = rows[0]
    fit = sweeps["normal"].fit.law
    assert fit.optimal(first.flops).loss_nats == pytest.approx(first.loss_nats, abs=1e-6)
    reached = fit.optimal(first.flops + first.next_flops).loss_nats
    assert reached == pytest.approx(first.loss_nats - 0.1, abs=1e-6)
    assert first.dollars == pytest.approx(0.05 * first.device_hours)


def test_answers_recover_the_simulated_law(sweeps):
    row = answers.budgets(sweeps["normal"])[0]
    loss = LAW["E"] + LAW["A"] * row.N ** -LAW["alpha"] + LAW["B"] * row.D ** -LAW["beta"]
    assert row.loss_nats == pytest.approx(loss, rel=0.01)
    assert row.error_nats < 0.02
    low, high = row.loss_nats_interval
    assert low <= row.loss_nats <= high
    assert answers.budgets(sweeps["normal"])[-1].error_nats is None  # nothing was predicted 1000× beyond


def test_frontier_and_optimum_have_their_intervals(described):
    for key in ("headline", "optimal_params", "optimal_tokens"):
        band = next(series for series in described["normal"][key].panels[0].series if series.kind == "band")
        assert all(low < high for low, high in zip(band.lower, band.upper, strict=True))


def test_learning_rate_marks_best_and_flags_edges(sweeps, described):
    figure = described["lr"]["learning_rate"]
    assert figure.panels[0].x.at == [0.25, 0.5, 1.0, 2.0, 4.0]
    assert sum(len(series.x) for series in named(figure, "best")) == 5
    table = sweeps["lr"].table
    narrow = dataclasses.replace(sweeps["lr"], table=table[table["lr_multiplier"] >= 1.0])
    figure = {f.key: f for f in describe(narrow)}["learning_rate"]
    assert named(figure, "best, at the edge")
    assert "3.2k" in figure.caption


def test_data_limited_shows_overfitting(described):
    best, _, final, _ = described["data_limited"]["data_limited"].panels[0].series[:4]
    gap = np.array(final.y) - np.array(best.y)
    assert gap[0] > 0.1  # the fewest unique tokens
    assert gap[-1] == pytest.approx(0, abs=1e-9)  # one epoch


def test_a_fit_of_another_form_draws_no_surface(sweeps):
    params = {"E": 1.0, "C0": 1e9, "alpha": 0.1}
    fit = dataclasses.replace(sweeps["normal"].fit, form="power_C", params=params, approaches={})
    figures = {f.key: f for f in describe(dataclasses.replace(sweeps["normal"], fit=fit))}
    assert "power_C" in figures["contour"].reason
    assert "power_C" in figures["headline"].caption


@pytest.mark.parametrize("kind", ["normal", "lr", "data_limited", "tiny"])
def test_plotly_accepts_every_figure(described, kind):
    for figure in described[kind].values():
        if isinstance(figure, Figure):
            plotly.graph_objects.Figure(plotly_figures.plotly(figure))  # raises on any unknown property or bad value


def test_matplotlib_writes_png_and_svg(described, tmp_path):
    for kind, key in (("normal", "contour"), ("normal", "residuals"), ("lr", "learning_rate")):
        for path in matplotlib_figures.save(described[kind][key], tmp_path):
            assert path.stat().st_size > 5_000
    assert b"<svg" in (tmp_path / "contour.svg").read_bytes()[:2000]
    before = (tmp_path / "learning_rate.svg").read_bytes()
    matplotlib_figures.save(described["lr"]["learning_rate"], tmp_path)
    assert (tmp_path / "learning_rate.svg").read_bytes() == before


@pytest.mark.parametrize(
    ("axis", "low", "high", "texts"),
    [
        (Axis("C", True, "power"), 1e10, 1e16, ["10¹⁰", "10¹¹", "10¹²", "10¹³", "10¹⁴", "10¹⁵", "10¹⁶"]),
        (Axis("N", True, "size"), 900, 120_000, ["1k", "3k", "10k", "30k", "100k"]),
        (Axis("N", True, "size"), 1.9e6, 5.5e6, ["2M", "3M", "4M", "5M"]),
        (Axis("lr", True, "size", at=[0.25, 1.0]), 0.2, 1.1, ["0.25", "1"]),
        (Axis("cost", True, "power"), 0.009, 12, ["0.01", "0.03", "0.1", "0.3", "1", "3", "10"]),
    ],
)
def test_ticks_of_log_axes(axis, low, high, texts):
    assert axes.tick_texts(axis, axes.tick_values(axis, low, high)) == texts


def test_text_from_data_cannot_become_markup_in_plotly():
    series = Series("points", "runs", [1.0], [2.0], hover=["<b>bold</b>"])
    trace = plotly_figures.plotly(Figure("k", "t", [Panel(Axis("x"), Axis("y"), [series])]))["data"][0]
    assert trace["text"] == ["&lt;b&gt;bold&lt;/b&gt;"]


def test_sizes_share_a_colour_everywhere(described):
    """From the headline to the learning curves, although fewer trials finished than have curves."""
    headline = {s.name: s.color for s in described["normal"]["headline"].panels[0].series if s.kind == "points"}
    curves = {s.name: s.color for s in described["normal"]["learning_curves"].panels[0].series if s.kind == "line"}
    assert len(curves) == len(SIZES)
    assert headline.items() <= curves.items()
    assert len(headline) >= 3
