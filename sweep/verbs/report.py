"""Make the report of a sweep that was collected: figures, one interactive page, and every number in it.

  python -m sweep report default
  python -m sweep report default --out somewhere

Writes report.html (opens without a network), report.json and figures/*.png, *.svg, and prints a summary. Without a
fit it shows the data, and why there is no fit.
"""

import argparse
from pathlib import Path

from sweep.names import add_sweep

HELP = "figures, an interactive page, its numbers as JSON, and a summary of a collected sweep"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_sweep(parser)
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where to write (default: report/ in the sweep's folder)"
    )


def run(args: argparse.Namespace) -> int:
    from rich.console import Console

    from sweep.reporting import report, results
    from sweep.reporting.summary import summary
    from sweep.sweepdir import SweepDir

    folder = SweepDir.find(args.sweep, args.sweeps, collected=True).path
    out = args.out or folder / "report"
    numbers = report.write(results.load(folder), out)
    Console(highlight=False).print(summary(numbers, out))
    return 0
