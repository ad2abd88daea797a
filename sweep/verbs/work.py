"""Train the families of a sweep that nobody else trains: what launchers start, one process per device."""

import argparse
from pathlib import Path

HELP = "train a sweep's families in this process"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sweep", help="the sweep's folder")


def run(args: argparse.Namespace) -> int:
    from sweep.config import RunOptions
    from sweep.plan import by_family, planned_trials
    from sweep.sweepdir import SweepDir
    from sweep.training.worker import Worker

    sweep = SweepDir(Path(args.sweep))
    settings = sweep.settings()
    paths, options = settings["paths"], RunOptions(**settings["run"])
    worker = Worker(Path(paths["runs"]), Path(paths["tokens"]), options, settings["device"])
    worker.stop.listen()
    return worker.run(by_family(planned_trials(sweep)))
