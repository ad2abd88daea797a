"""Mirror runs to W&B while others train them: what launchers start beside their workers.

It reads what to follow as one line of JSON on stdin (`sweep.tracking.follow.Task`), and ends when stdin ends.
"""

import argparse
import sys

from sweep.common import artefacts
from sweep.tracking.follow import Task, main


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def run(args: argparse.Namespace) -> int:
    return main(artefacts.decode(Task, sys.stdin.buffer.readline(), "stdin"))
