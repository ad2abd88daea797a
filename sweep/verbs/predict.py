"""Predict the loss of a larger run before it is trained, and score the prediction when it is.

  python -m sweep predict default --flops 1e13                   the fit's best buy for 1e13 FLOPs
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
from typing import Any

import pandas as pd

from sweep.common.errors import UserError
from sweep.common.units import parse_quantity, scientific, short
from sweep.fit import fit, predictions, table
from sweep.fit.table import Home, Rows
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
    data, _, home = table.read(args.table, Path(args.sweeps))
    home = replace(home, folder=Path(args.out)) if args.out else home
    if args.score:
        for path, prediction in predictions.load(home.path("predictions")):
            rows = _same_rows(data, prediction)
            print(f"{path.name}: {describe(prediction)}")
            scores = [outcome(entry) for entry in predictions.score(prediction, rows)]
            print("\n".join(f"  {line}" for line in scores or ["not trained yet"]))
        return 0
    fitted = fit.read(home)
    asked = {name: getattr(args, name) for name in ("params", "tokens", "flops")}
    N, D, C = (None if v is None else parse_quantity(f"--{name}", v) for name, v in asked.items())
    wanted = predictions.allocation(fitted, N, D, C)
    launch = None
    if _counts_as_launches_do(home, fitted):
        budget = f"tokens={args.tokens}" if C is None else f"flops={args.flops}"
        try:
            trial, launch = candidates.one_more(SweepDir(home.folder), args.params or wanted["N"], budget)
            wanted = {"N": float(trial.params_non_embedding), "D": float(trial.tokens), "C": trial.flops}
        except UserError as error:  # a law answers for more than a launch can train
            print(f"no launch in {args.table} trains just this: {error}", file=sys.stderr)
    command = shlex.join(["python", "-m", "sweep", *sys.argv[1:]])
    prediction = predictions.make(fitted, _same_rows(data, fitted), wanted, command)
    path = predictions.save(prediction | {"asked": asked}, home.path("predictions"))
    print(f"{describe(prediction)}, {prediction['times_dearest_run']:.3g}x the dearest run\nwritten to {path}")
    if launch is not None:
        print(f"to train it:\n  {shlex.join(launch)}")
    return 0


def _counts_as_launches_do(home: Home, fitted: dict[str, Any]) -> bool:
    """Whether the fit is of a sweep that was launched here, and its N and C are those of model.params, budget.flops."""
    ours = home.is_sweep and SweepDir(home.folder).plan.exists()
    return ours and (fitted["columns"]["N"], fitted["convention"]["C"]) == ("params_non_embedding", "exact")


def _same_rows(data: pd.DataFrame, made: dict[str, Any]) -> Rows:
    """The table's rows, read as the fit (or the prediction) read them."""
    convention = made["convention"]
    return table.prepare(data, columns=made["columns"], n_convention=convention["N"], c_convention=convention["C"])


def describe(prediction: dict[str, Any]) -> str:
    ends = prediction["interval"]
    sure = f" [{ends[0]:.4f}, {ends[1]:.4f}] (90%)" if ends else ""
    return (
        f"N = {short(prediction['N'])}, D = {short(prediction['D'])}, C = {scientific(prediction['C'])}: "
        f"loss {prediction['loss_nats']:.4f}{sure}"
    )


def outcome(entry: dict[str, Any]) -> str:
    inside = {True: ", inside the interval", False: ", OUTSIDE the interval", None: ""}[entry["inside"]]
    at = f"N = {short(entry['N'])}, D = {short(entry['D'])} as trained"
    return f"row {entry['row']}: {entry['loss_nats']:.4f}; predicted for {at}: {100 * entry['error']:+.2f}% off{inside}"
