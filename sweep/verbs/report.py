"""`python -m sweep report SWEEP`: figures, the interactive page, its numbers as JSON, and a summary."""

import argparse
from pathlib import Path

from sweep import report, results

HELP = "figures, one interactive HTML page, report.json and a terminal summary of a collected sweep"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sweep", help="a sweep's name, or its folder")
    parser.add_argument("--out", type=Path, help="where to write (default: the sweep's folder, report/)")


def run(args: argparse.Namespace) -> int:
    folder = Path(args.sweep) if Path(args.sweep).is_dir() else Path("sweeps") / args.sweep
    out = args.out or folder / "report"
    report.show(report.write(results.load(folder), out), out)
    return 0
