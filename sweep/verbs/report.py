"""Make the report of a sweep that was collected: figures, one interactive page, and every number in it.

  python -m sweep report default
  python -m sweep report default --out somewhere

Writes report.html (opens without a network), report.json and figures/*.png, *.svg, and prints a summary. Without a
fit it shows the data, and why there is no fit.
"""

import argparse
from pathlib import Path

from sweep.common.console import open_console
from sweep.runs.lookup import add_sweep
from sweep.runs.sweepdir import SweepDir


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_sweep(parser)
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where to write (default: report/ in the sweep's folder)"
    )


def run(args: argparse.Namespace) -> int:
    report_sweep(SweepDir.find(args.sweep, args.sweeps, collected=True), args.out)
    return 0


def report_sweep(sweep: SweepDir, out: Path | None = None) -> None:
    """Write a sweep's report, and print its summary."""
    from sweep.report import report, results  # plotting
    from sweep.report.summary import summary

    out = out or sweep.path / "report"
    numbers = report.write(results.load(sweep.path), out)
    open_console().print(summary(numbers, out))
