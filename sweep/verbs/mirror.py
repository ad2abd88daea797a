"""Mirror runs to W&B while others train them: what launchers start beside their workers.

Reads one line of JSON on stdin, what to follow (sweep.tracking.follow.Task), and ends when stdin does.
"""

import argparse
import json
import sys

from sweep.tracking.follow import Task, main


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def run(args: argparse.Namespace) -> int:
    return main(Task(**json.loads(sys.stdin.buffer.readline())))
