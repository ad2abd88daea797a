"""What each figure of the report shows: pure functions from results to `sweep.report.figure_spec` descriptions.

Each function returns a Figure, or LeftOut with the reason where this sweep has no data for it.
N is parameters, D training tokens, C training FLOPs, L the validation loss in nats per token.
"""

import math
from collections.abc import Callable

import numpy as np
import pandas as pd

from sweep.common.units import short
from sweep.fit.frontier import Approach
from sweep.report import answers, figure_parts
from sweep.report.figure_spec import Axis, Figure, LeftOut, Panel, Series
from sweep.report.format import dollars, power, significant, with_interval
from sweep.report.results import Results

LOSS = "loss (nats per token)"


def describe(results: Results) -> list[Figure | LeftOut]:
    """Every figure of the report in its order, the ones without data as LeftOut."""
    return [figure(results) for figure in FIGURES]


# ---- Loss, compute and the frontier ----------------------------------------------------------------------------


def headline(results: Results) -> Figure | LeftOut:
    """Loss against compute: every run's curve, where it ended, and the frontier below them."""
    key, title = "headline", "Loss against compute"
    rows = results.finished
    if rows.empty:
        return LeftOut(key, title, "no trial has finished")
    shades = figure_parts.shades(results.table["params_non_embedding"])
    curves = figure_parts.curve_lines(results, "flops", "val_loss_nats", shades)
    ends = [
        figure_parts.points(group, "C", "loss", short(size), shades[size])
        for size, group in rows.groupby("params_non_embedding")
    ]
    frontiers = [*figure_parts.envelope_line(results), *figure_parts.frontier_line(results)]
    lowest = min([rows["loss"].min(), *(min(line.y or line.lower) for line in frontiers)])
    highest = min(rows["loss"].max(), max(results.reference_lines.get("uniform", math.inf), rows["loss"].median()))
    spread = figure_parts.padded(lowest, highest + 0.6 * (highest - lowest))
    caption = "Each line is one run's validation loss, each point its final loss. "
    if frontiers:
        caption += "The frontier is dashed beyond the compute of the largest run."
    else:
        caption += f"No frontier is drawn: {answers.fitted_law(results)}."
    shown = [x for each in (*curves, *ends) for x, y in zip(each.x, each.y, strict=True) if y < spread[1]]
    reach = (min(shown) / 1.3, rows["C"].max() * (10 if frontiers else 1.3))
    x_axis = Axis(figure_parts.compute_axis().label, True, "power", reach)
    series = [*figure_parts.references(results, spread), *curves, *ends, *frontiers]
    panel = Panel(x_axis, Axis(LOSS, range=spread), series)
    return Figure(key, title, [panel], caption, legend_title="size N")


def isoflop(results: Results) -> Figure | LeftOut:
    """Loss against N at each budget, with the minimum that each method found, or why it refused."""
    key, title = "isoflop", "IsoFLOP curves: loss against size at each budget"
    groups = figure_parts.budgets(results)
    if not groups:
        return LeftOut(key, title, "no compute budget was trained at two or more sizes")
    shades = figure_parts.shades(groups)
    series = []
    for budget, group in groups.items():
        best, name = group.groupby("N", as_index=False)["loss"].min(), f"{power(budget)} FLOPs"
        series.append(figure_parts.line(best["N"], best["loss"], name, shades[budget], width=1.2, opacity=0.7))
        series.append(figure_parts.points(group, "N", "loss", name, shades[budget]))
    refused = []
    for method in ("isoflop_parabola", "isoflop_akima"):
        approach, style = figure_parts.approach(results, method), figure_parts.APPROACHES[method]
        minima, name = figure_parts.optima_frame(approach.optima), f"minimum, {style.label.removeprefix('isoFLOP, ')}"
        if len(minima):
            spot = {"marker": style.marker, "size": 11}
            series.append(figure_parts.points(minima, "N", "loss_nats", name, style.color, id_column=None, **spot))
        refused += [f"{style.label}: {reason}" for reason in figure_parts.refusals(approach)]
    caption = "Lines join the runs; a parabola's minimum lies on the parabola through all sizes of its budget."
    caption += " Refused: " + "; ".join(refused) + "." if refused else ""
    panel = Panel(figure_parts.size_axis(results), Axis(LOSS), series)
    return Figure(key, title, [panel], caption, legend_title="budget")


def optimal_params(results: Results) -> Figure | LeftOut:
    """N_opt against C by every approach."""
    return _optimum(results, "N", "optimal_params", "Compute-optimal size")


def optimal_tokens(results: Results) -> Figure | LeftOut:
    """D_opt against C by every approach."""
    return _optimum(results, "D", "optimal_tokens", "Compute-optimal tokens")


def _optimum(results: Results, letter: str, key: str, title: str) -> Figure | LeftOut:
    """N_opt or D_opt against C: the optima of every approach, and the power law through them."""
    exponent = {"N": "a", "D": "b"}[letter]
    series, refused = [], []
    for name, style in figure_parts.APPROACHES.items():
        approach = figure_parts.approach(results, name)
        if approach.refused:
            refused.append(f"{style.label} ({approach.refused})")
        if approach.optima:
            series += _approach_lines(results, approach, name, letter)
    if not series:
        return LeftOut(key, title, "; ".join(refused) or results.refused or "no approach gave an optimum")
    label = "parameters N" if letter == "N" else "training tokens D"
    caption = f"Lines: {letter} ∝ C^{exponent}, drawn to three times the compute of the largest run."
    caption += " Refused: " + "; ".join(refused) + "." if refused else ""
    y_axis = Axis(f"compute-optimal {label}", log=True, ticks="size")
    return Figure(key, title, [Panel(figure_parts.compute_axis(), y_axis, series)], caption, legend_title="approach")


def _approach_lines(results: Results, approach: Approach, key: str, letter: str) -> list[Series]:
    """The optima of one approach as points, its power law as a line, and for the fitted form its 90% interval."""
    style, optima, fit = (
        figure_parts.APPROACHES[key],
        figure_parts.optima_frame(approach.optima),
        answers.fitted_law(results),
    )
    exponent, slope = ("a", approach.a) if letter == "N" else ("b", approach.b)
    name, series = style.label, []
    if slope is not None:
        both = approach.intervals
        interval = None if both is None else both.a if letter == "N" else both.b
        name = f"{name}: {exponent} = {with_interval(slope, interval)}"
        ends = np.geomspace(optima["C"].min(), max(optima["C"].max(), 3 * results.finished["C"].max()), 2)
        through = np.exp(np.log(optima[letter]).mean() - slope * np.log(optima["C"]).mean())
        dash = "dash" if key == "envelope" else "solid"
        series.append(figure_parts.line(ends, through * ends**slope, name, style.color, dash=dash))
        if key == "parametric" and not isinstance(fit, str):
            x, lower, upper = answers.band(fit, np.geomspace(ends[0], ends[1], 30), letter)
            series += [Series("band", name, x, lower=lower, upper=upper, color=style.color)] if x else []
    if key != "parametric":  # its optima lie on its line by construction
        spot = {"marker": style.marker, "size": 2.5 if key == "envelope" else 9}
        series.append(figure_parts.points(optima, "C", letter, name, style.color, id_column=None, **spot))
    return series


def contour(results: Results) -> Figure | LeftOut:
    """The fitted surface L(N, D) with the runs, lines of equal compute, and the optimal line."""
    key, title = "contour", "Loss surface L(N, D)"
    fit, rows = answers.fitted_law(results), results.finished
    if isinstance(fit, str):
        return LeftOut(key, title, fit)
    N = np.geomspace(rows["N"].min() / 2, rows["N"].max() * 2, 60)
    D = np.geomspace(rows["D"].min() / 2, rows["D"].max() * 2, 60)
    least, most = (math.log10(fit.flops.flops(N[end], D[end])) for end in (0, -1))
    loss = fit.loss(N[None, :], D[:, None])
    wanted = float(np.ptp(loss)) / 25
    step = next(step for step in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, wanted) if step >= wanted)
    series = [Series("contour", x=figure_parts.floats(N), y=figure_parts.floats(D), z=loss.tolist(), step=step)]
    for exponent in range(math.ceil(least), math.floor(most) + 1):
        D_same = fit.flops.tokens(10.0**exponent, N)
        inside = (D_same >= D[0]) & (D_same <= D[-1])
        style = {"dash": "dot", "width": 1.2, "hover": [f"{power(10.0**exponent)} FLOPs"] * int(inside.sum())}
        series.append(figure_parts.line(N[inside], D_same[inside], "equal compute (steps of 10×)", "gray", **style))
    series.append(figure_parts.points(rows, "N", "D", "runs", "ink"))
    N_best, D_best, _ = fit.optimum(np.geomspace(10**least, 10**most, 200))
    inside = (N_best >= N[0]) & (N_best <= N[-1]) & (D_best >= D[0]) & (D_best <= D[-1])
    series.append(figure_parts.line(N_best[inside], D_best[inside], "compute-optimal", "vermillion", width=2.5))
    x_axis = Axis(figure_parts.size_axis(results).label, True, "size", (N[0], N[-1]))
    y_axis = Axis(figure_parts.tokens_axis().label, True, "size", (D[0], D[-1]))
    rule = f"C = {significant(fit.flops.k)} · N^{significant(fit.flops.gamma)} · D"
    known = results.foreign is None or "C" in results.foreign
    whence = "as measured on the runs" if known else "which was assumed: the table has no column for it"
    caption = f"Contours: fitted loss in nats per token. Compute is {rule}, {whence}."
    return Figure(key, title, [Panel(x_axis, y_axis, series)], caption)


# ---- Loss against one thing ------------------------------------------------------------------------------------


def loss_against_params(results: Results) -> Figure | LeftOut:
    """L(N): the runs, and the fit at the tokens they saw and in the limit of unlimited tokens."""
    return _slices(results, "N", "D", "loss_against_params", "Loss against size, L(N)")


def loss_against_tokens(results: Results) -> Figure | LeftOut:
    """L(D): the runs, and the fit at their sizes and in the limit of unlimited size."""
    return _slices(results, "D", "N", "loss_against_tokens", "Loss against tokens, L(D)")


def _slices(results: Results, along: str, held: str, key: str, title: str) -> Figure | LeftOut:
    """Runs against one variable, coloured by the other; the fit at some values of the other, and its limit."""
    rows = results.finished
    if rows[along].nunique() < 2:
        return LeftOut(key, title, f"finished trials do not differ in {along}")
    levels = sorted(rows[held].unique())
    if len(levels) > 8:  # tokens differ in nearly every trial of an isoFLOP grid: a few levels show the trend
        levels = figure_parts.floats(np.geomspace(levels[0], levels[-1], 5))
    shades, reach = figure_parts.shades(levels), np.geomspace(rows[along].min() / 1.5, rows[along].max() * 3, 80)
    series, fit = [], answers.fitted_law(results)
    if not isinstance(fit, str):
        for level in levels:
            loss = fit.loss(**{along: reach, held: level})
            series.append(figure_parts.line(reach, loss, short(level), shades[level], width=1.3))
        limit = fit.loss(**{along: reach, held: np.inf})
        series.append(figure_parts.line(reach, limit, f"{held} → ∞", "vermillion", width=2.2))
    for level, group in rows.groupby(figure_parts.nearest(rows[held], levels)):
        series.append(figure_parts.points(group, along, "loss", short(level), shades[level]))
    spread = figure_parts.padded(min(min(each.y) for each in series), rows["loss"].max(), 0.08)
    x_axis = figure_parts.size_axis(results) if along == "N" else figure_parts.tokens_axis()
    panel = Panel(x_axis, Axis(LOSS, range=spread), [*figure_parts.references(results, spread), *series])
    nearby = (
        f" Points have the colour of the nearest {held} in the legend." if len(levels) < rows[held].nunique() else ""
    )
    caption = f"Lines: the fit at each {held} of the legend.{nearby}" if not isinstance(fit, str) else nearby.strip()
    return Figure(key, title, [panel], caption, legend_title={"N": "size N", "D": "tokens D"}[held])


def loss_against_compute(results: Results) -> Figure | LeftOut:
    """L(C): final losses, the fit's curve of each size, and the frontier that they touch."""
    key, title = "loss_against_compute", "Loss against compute, L(C), by size"
    fit, rows = answers.fitted_law(results), results.finished
    if isinstance(fit, str):
        return LeftOut(key, title, fit)
    shades, C = figure_parts.shades(rows["N"]), np.geomspace(rows["C"].min() / 2, rows["C"].max() * 30, 80)
    spread = figure_parts.padded(min(fit.floor, rows["loss"].min()), rows["loss"].max(), 0.08)
    series = [Series("reference", f"floor E = {fit.floor:.2f}", y=[fit.floor], color="vermillion", dash="dot")]
    for size, group in rows.groupby("N"):
        loss = fit.loss(size, fit.flops.tokens(C, size))
        shown = loss < spread[1] + 1
        series.append(figure_parts.line(C[shown], loss[shown], short(size), shades[size], width=1.2))
        series.append(figure_parts.points(group, "C", "loss", short(size), shades[size]))
    series += figure_parts.frontier_line(results, reach=30)
    panel = Panel(
        figure_parts.compute_axis(), Axis(LOSS, range=spread), [*figure_parts.references(results, spread), *series]
    )
    caption = "Thin lines: the fit at each size. A size is compute-optimal where its line touches the frontier."
    return Figure(key, title, [panel], caption, legend_title="size N")


def learning_curves(results: Results) -> Figure | LeftOut:
    """Validation and training loss along training, against the n-gram reference lines."""
    key, title = "learning_curves", "Learning curves"
    shades = figure_parts.shades(results.table["params_non_embedding"])
    panels = []
    for column, what in (("val_loss_nats", "validation"), ("train_loss_nats", "training")):
        lines = figure_parts.curve_lines(results, "tokens", column, shades, named=True)
        if not lines:
            continue
        losses = np.concatenate([line.y for line in lines])
        low, high = np.nanmin(losses), np.nanmax(losses)
        spread = figure_parts.padded(
            low, results.reference_lines.get("uniform", high)
        )  # a run that diverged would hide all others
        panels.append(
            Panel(
                figure_parts.tokens_axis(),
                Axis(f"{what} {LOSS}", range=spread),
                [*figure_parts.references(results, spread), *lines],
            )
        )
    if not panels:
        return LeftOut(key, title, "there are no training curves (curves.parquet is missing or empty)")
    caption = (
        "The last part of a line is the decay of its learning rate; the runs of one family share the part before it."
    )
    return Figure(key, title, panels, caption, legend_title="size N")


# ---- How far to trust it ---------------------------------------------------------------------------------------


def residuals(results: Results) -> Figure | LeftOut:
    """What the fit leaves unexplained, against N and D: a trend here means that the form is wrong."""
    key, title = "residuals", "Residuals of the fit"
    if results.fit is None or not results.fit.residuals:
        return LeftOut(key, title, results.refused or "the fit lists no residuals")
    rows = figure_parts.with_trial_ids(results, results.fit.residuals)
    rows["percent"] = 100 * np.log(rows["loss_nats"] / rows["predicted_nats"])
    used = rows["used"].astype(bool)
    panels = []
    for letter, axis in (("N", figure_parts.size_axis(results)), ("D", figure_parts.tokens_axis())):
        series = [
            Series("reference", y=[0.0], color="gray"),
            figure_parts.points(rows[used], letter, "percent", "used in the fit", "blue"),
            figure_parts.points(rows[~used], letter, "percent", "not used", "vermillion", marker="open"),
        ]
        shown = [each for each in series if each.kind == "reference" or len(each.x)]
        panels.append(Panel(axis, Axis("residual (% of loss)"), shown))
    spread = rows.loc[used, "percent"].std()
    caption = "100 · log(observed / predicted loss): above zero is worse than predicted. "
    caption += f"The standard deviation is {significant(spread, 2)}%."
    return Figure(key, title, panels, caption)


def extrapolation(results: Results) -> Figure | LeftOut:
    """The runs up to a cut in compute fitted and the larger ones predicted: what was observed, and the error as the cut
    moves."""
    key, title = "extrapolation", "Hold-out by compute: fit the smaller runs, predict the larger ones"
    cuts = [cut for cut in results.fit.holdout if cut.rows] if results.fit is not None else []
    if not cuts:
        return LeftOut(key, title, results.refused or "too few budgets to fit some and predict the rest")
    shades = figure_parts.shades(cut.cut_flops for cut in cuts)
    losses = [loss for cut in cuts for row in cut.rows for loss in (row.loss_nats, row.predicted_nats)]
    ends = figure_parts.padded(min(losses), max(losses))
    scatter = [figure_parts.line(ends, ends, "exact", "gray", width=1)]
    for cut in cuts:
        predicted, name = figure_parts.with_trial_ids(results, cut.rows), f"fitted on C ≤ {power(cut.cut_flops)}"
        scatter.append(figure_parts.points(predicted, "predicted_nats", "loss_nats", name, shades[cut.cut_flops]))
    errors = Series(
        "points",
        x=[cut.cut_flops for cut in cuts],
        y=[100 * cut.mean_error for cut in cuts],
        color="vermillion",
        size=9,
        hover=[f"{cut.n_fit} runs fitted, {cut.n_predicted} larger ones predicted" for cut in cuts],
    )
    panels = [
        Panel(Axis("predicted " + LOSS, range=ends), Axis("observed " + LOSS, range=ends), scatter),
        Panel(
            Axis("fitted up to (FLOPs)", True, "power"),
            Axis("mean error of the loss (%)", range=(0, 1.15 * max(errors.y))),
            [errors],
        ),
    ]
    farthest = max(cut.max_flops_ratio for cut in cuts)
    caption = f"Predictions reach up to {significant(farthest, 2)}× the compute that was fitted. "
    rule = "The farthest hold-out that fitted at least two runs for each parameter"
    caption += "".join(f"{rule}, {line}." for line in answers.extrapolation(cuts))
    return Figure(key, title, panels, caption)


# ---- What it costs ---------------------------------------------------------------------------------------------


def cost(results: Results) -> Figure | LeftOut:
    """What a loss costs at least, and what the next 0.1 nat costs from there."""
    key, title = "cost", "Cost of a loss, and of the next 0.1 nat"
    fit, span = answers.fitted_law(results), answers.reachable(results)
    priced = answers.costs(results, figure_parts.floats(np.linspace(span[0], span[1], 40))) if span else []
    if isinstance(fit, str) or not priced:
        return LeftOut(key, title, fit if isinstance(fit, str) else "the fit gives no compute for the losses in reach")
    prices = pd.DataFrame([vars(cost) for cost in priced])
    unit = next(unit for unit in ("dollars", "device_hours", "flops") if prices[unit].notna().any())
    following = prices.dropna(subset=[f"next_{unit}"])
    panels = []
    for rows, prefix, color, what in (
        (prices, "", "vermillion", "a loss, trained at the optimum"),
        (following, "next_", "blue", "the next 0.1 nat from there"),
    ):
        hover = [_priced(row, prefix) for _, row in rows.iterrows()]
        line = figure_parts.line(rows["loss_nats"], rows[prefix + unit], "", color, width=2.2, hover=hover)
        label = {"dollars": "cost (dollars)", "device_hours": "cost (device-hours)", "flops": "compute (FLOPs)"}
        panels.append(Panel(Axis(LOSS), Axis(label[unit], log=True, ticks="power"), [line], what))
    best, rate = results.finished["loss"].min(), answers.flops_per_device_hour(results)
    caption = f"The best finished run has {significant(best)} nats; anything below that is extrapolated."
    if rate:
        caption += f" A device-hour is {power(rate)} FLOPs, as measured on the trials of the largest size"
        price = results.meta.dollars_per_device_hour
        caption += f", and {dollars(price)}." if price is not None else "."
    return Figure(key, title, panels, caption)


def _priced(row: pd.Series, prefix: str) -> str:
    parts = [f"{power(row[prefix + 'flops'])} FLOPs"]
    if pd.notna(row[prefix + "device_hours"]):
        parts.append(f"{significant(row[prefix + 'device_hours'], 2)} device-hours")
    if pd.notna(row[prefix + "dollars"]):
        parts.append(dollars(row[prefix + "dollars"]))
    return " = ".join(parts)


# ---- Sweeps over data and learning rate ------------------------------------------------------------------------


def data_limited(results: Results) -> Figure | LeftOut:
    """Sizes × unique tokens: where epochs stop paying, and overfitting."""
    key, title = "data_limited", "When data runs out: epochs and overfitting"
    rows = results.finished.dropna(subset=["unique_tokens", "best_loss_nats"])
    if rows.empty or rows.groupby(["N", "D"])["unique_tokens"].nunique().max() < 2:
        return LeftOut(key, title, "no size was trained for the same tokens on different numbers of unique tokens")
    shades = figure_parts.shades(rows["N"])
    by_unique, by_epochs = [], []
    for (size, _), group in rows.groupby(["N", "D"]):
        name, color = short(size), shades[size]
        group = group.sort_values("unique_tokens")
        by_unique += figure_parts.joined(group, "unique_tokens", "best_loss_nats", name, color)
        by_unique += figure_parts.joined(group, "unique_tokens", "loss", name, color, dash="dash", marker="open")
        by_epochs += figure_parts.joined(group, "epochs", "train_loss_nats", name, color)
        by_epochs += figure_parts.joined(group, "epochs", "loss", name, color, dash="dash", marker="open")
    panels = [
        Panel(
            Axis("unique tokens available U", True, "size", at=figure_parts.few(rows["unique_tokens"])),
            Axis("validation " + LOSS),
            by_unique,
            "solid: best validation, dashed: final",
        ),
        Panel(
            Axis("epochs (tokens seen / unique tokens)", True, "size"),
            Axis(LOSS),
            by_epochs,
            "solid: training, dashed: final validation",
        ),
    ]
    caption = "Where the solid and dashed lines of a size separate, further epochs over the same tokens overfit."
    return Figure(key, title, panels, caption, legend_title="size N")


def learning_rate(results: Results) -> Figure | LeftOut:
    """Loss against the learning-rate multiplier of each size; a best at the edge of the axis is no best."""
    key, title = "learning_rate", "Loss against learning rate"
    rows = results.finished.dropna(subset=["lr_multiplier"])
    if rows["lr_multiplier"].nunique() < 2:
        return LeftOut(key, title, "trials do not differ in their learning-rate multiplier")
    shades, many_budgets = figure_parts.shades(rows["N"]), rows.groupby("N")["D"].nunique().max() > 1
    series, bests, edges = [], [], []
    for (size, tokens), group in rows.groupby(["N", "D"]):
        lines = group.groupby("lr_multiplier", as_index=False)["loss"].min()
        if len(lines) < 2:
            continue
        name = short(size) + (f", D = {short(tokens)}" if many_budgets else "")
        series.append(figure_parts.line(lines["lr_multiplier"], lines["loss"], name, shades[size], width=1.2))
        series.append(figure_parts.points(group, "lr_multiplier", "loss", name, shades[size]))
        best = lines["loss"].idxmin()
        mark = {"name": "best", "color": "ink", "marker": "star"}
        if best in (0, len(lines) - 1):
            edges.append(name)
            mark = {"name": "best, at the edge", "color": "vermillion", "marker": "triangle"}
        bests.append(figure_parts.points(lines.loc[[best]], "lr_multiplier", "loss", id_column=None, size=12, **mark))
    if not series:
        return LeftOut(key, title, "no size was trained at two learning rates for the same tokens")
    caption = "Every size has its best inside the axis."
    if edges:
        caption = f"Best at the edge of the axis, so the true best may lie beyond it: {'; '.join(edges)}."
    x_axis = Axis(
        "learning-rate multiplier (× the rule for the size)", True, "size", at=figure_parts.few(rows["lr_multiplier"])
    )
    panel = Panel(x_axis, Axis(LOSS), [*series, *bests])
    return Figure(key, title, [panel], caption, legend_title="size N")


FIGURES: tuple[Callable[[Results], Figure | LeftOut], ...] = (
    headline,
    isoflop,
    optimal_params,
    optimal_tokens,
    contour,
    loss_against_params,
    loss_against_tokens,
    loss_against_compute,
    learning_curves,
    residuals,
    extrapolation,
    cost,
    data_limited,
    learning_rate,
)
