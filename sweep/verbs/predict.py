"""Predict the loss of a larger run before it is trained, and score the prediction when it is.

  python -m sweep predict default --flops 1e13                   the fit's best buy for 1e13 FLOPs
  python -m sweep predict default --params 1M --tokens 30M       one run
  python -m sweep predict default --score                        every prediction made so far

TABLE is what `fit` was given. A prediction goes to predictions/ beside fit.json (for runs.csv: to runs.predictions/
beside runs.fit.json), with its date and the hash of the data that it was made from, and is never overwritten.
"""

import argparse
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from sweep.fitting import fit, predict, table
from sweep.fitting.table import Rows
from sweep.names import add_sweeps
from sweep.quantity import parse_quantity, scientific, short


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
        for path, prediction in predict.load(home.path("predictions")):
            rows = _same_rows(data, prediction)
            print(f"{path.name}: {describe(prediction)}")
            scores = [outcome(entry) for entry in predict.score(prediction, rows)]
            print("\n".join(f"  {line}" for line in scores or ["not trained yet"]))
        return 0
    fitted = fit.read(home)
    asked = {name: getattr(args, name) for name in ("params", "tokens", "flops")}
    N, D, C = (None if v is None else parse_quantity(f"--{name}", v) for name, v in asked.items())
    wanted = predict.allocation(fitted, N, D, C)
    command = shlex.join(["python", "-m", "sweep", *sys.argv[1:]])
    prediction = predict.make(fitted, _same_rows(data, fitted), wanted, command)
    path = predict.save(prediction, home.path("predictions"))
    print(f"{describe(prediction)}, {prediction['times_dearest_run']:.3g}x the dearest run\nwritten to {path}")
    return 0


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
    return f"row {entry['row']}: {entry['loss_nats']:.4f}; predicted {100 * entry['error']:+.2f}% off{inside}"
