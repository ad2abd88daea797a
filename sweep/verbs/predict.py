"""Predict the loss of a larger run before it is trained, and score the prediction when it is.

  python -m sweep predict default --flops 1e13                   the compute-optimal run for 1e13 FLOPs
  python -m sweep predict default --params 1M --tokens 30M       one run
  python -m sweep predict default --score                        every prediction made so far

TABLE is what `fit` was given. Of a sweep, the run that is predicted is the one that a launch in it would train: a size
of the ladder, exact FLOPs, whole steps; the command is printed. A prediction goes to predictions/ beside fit.json (for
runs.csv: to runs.predictions/ beside runs.fit.json), with its date and the hash of the data that it was made from, and
is never overwritten. It is scored by the law at the N and D that were trained.
"""

import argparse
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd

from sweep.common.errors import UserError
from sweep.common.units import parse_quantity, scientific, short
from sweep.fit import fit_file, predictions, table
from sweep.fit.fit_file import Fit
from sweep.fit.predictions import Allocation, Prediction, Score
from sweep.fit.rows import Rows, prepare
from sweep.fit.table import OutputPaths
from sweep.plan import candidates
from sweep.runs.lookup import add_sweeps
from sweep.runs.sweepdir import SweepDir


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("table", metavar="TABLE", help="a sweep's name, or the file that was fitted")
    add_sweeps(parser)
    parser.add_argument("--flops", metavar="C", help="training FLOPs, e.g. 1e15")
    parser.add_argument("--params", metavar="N", help="parameters, as the fit counts them, e.g. 10M")
    parser.add_argument("--tokens", metavar="D", help="training tokens, e.g. 200M")
    parser.add_argument("--score", action="store_true", help="compare the predictions made with the runs trained since")
    parser.add_argument("--out", metavar="DIR", help="where the fit is (default: beside the table)")


def run(args: argparse.Namespace) -> int:
    data, _, outputs = table.read(args.table, Path(args.sweeps))
    outputs = replace(outputs, folder=Path(args.out)) if args.out else outputs
    if args.score:
        show_scores(data, outputs.path("predictions"))
        return 0
    fit = fit_file.read(outputs)
    wanted, launch = _run_to_predict(fit, outputs, args)
    command = shlex.join(["python", "-m", "sweep", *sys.argv[1:]])
    asked = {"params": args.params, "tokens": args.tokens, "flops": args.flops}
    prediction = predictions.make(fit, _same_rows(data, fit), wanted, command, asked)
    path = predictions.save(prediction, outputs.path("predictions"))
    print(f"{describe(prediction)}, {prediction.times_largest_run:.3g}x the compute of the largest run")
    print(f"written to {path}")
    if launch is not None:
        print(f"to train it:\n  {shlex.join(launch)}")
    return 0


def show_scores(data: pd.DataFrame, folder: Path) -> None:
    """Every prediction made so far, and how the runs trained since compare with it."""
    for path, prediction in predictions.load(folder):
        print(f"{path.name}: {describe(prediction)}")
        scores = [outcome(score) for score in predictions.score(prediction, _same_rows(data, prediction))]
        print("\n".join(f"  {line}" for line in scores or ["not trained yet"]))


def _run_to_predict(fit: Fit, outputs: OutputPaths, args: argparse.Namespace) -> tuple[Allocation, list[str] | None]:
    """The run that is asked for, and the words of the launch that trains it; no words where none does."""
    asked = {"params": args.params, "tokens": args.tokens, "flops": args.flops}
    N, D, C = (None if text is None else parse_quantity(f"--{name}", text) for name, text in asked.items())
    wanted = predictions.allocation(fit, N, D, C)
    if not _counts_as_launches_do(outputs, fit):
        return wanted, None
    budget = f"tokens={args.tokens}" if C is None else f"flops={args.flops}"
    try:
        trial, launch = candidates.one_more(SweepDir(outputs.folder), args.params or wanted.N, budget)
    except UserError as error:  # a law answers for more than a launch can train
        print(f"no launch in {args.table} trains just this: {error}", file=sys.stderr)
        return wanted, None
    return Allocation(float(trial.params_non_embedding), float(trial.tokens), trial.flops), launch


def _counts_as_launches_do(outputs: OutputPaths, fit: Fit) -> bool:
    """Whether the fit is of a sweep that was launched here, and its N and C are those of model.params, budget.flops."""
    ours = outputs.is_sweep and SweepDir(outputs.folder).plan.exists()
    return ours and (fit.columns["N"], fit.convention.C) == ("params_non_embedding", "exact")


def _same_rows(data: pd.DataFrame, made: Fit | Prediction) -> Rows:
    """The table's rows, read as the fit (or the prediction) read them."""
    how = made.convention
    return prepare(data, columns=made.columns, n_convention=how.N, c_convention=how.C, units=how.units)


def describe(prediction: Prediction) -> str:
    ends = prediction.interval
    sure = f" [{ends.low:.4f}, {ends.high:.4f}] (90%)" if ends else ""
    return (
        f"N = {short(prediction.N)}, D = {short(prediction.D)}, C = {scientific(prediction.C)}: "
        f"loss {prediction.loss_nats:.4f}{sure}"
    )


def outcome(score: Score) -> str:
    inside = {True: ", inside the interval", False: ", OUTSIDE the interval", None: ""}[score.inside]
    at = f"N = {short(score.N)}, D = {short(score.D)} as trained"
    return f"row {score.row}: {score.loss_nats:.4f}; predicted for {at}: {100 * score.error:+.2f}% off{inside}"
