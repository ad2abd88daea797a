"""`python -m sweep VERB …`: the one entry; everything is in sweep/cli.py.

What stops it before that is said in one line: a Python that is too old, and packages that are not installed. So this
file is valid for Python 3.9 too, and imports nothing of ours until the version is known.
"""

import os
import sys

OLDEST = (3, 11)
ADVICE = "`make sweep` makes an environment that has all of it, then run .venv/bin/sweep"


def start(arguments: "list[str]") -> int:
    """Run the command line. Returns its exit status; SystemExit with one line where this Python cannot run it."""
    if sys.version_info < OLDEST:
        sys.exit(f"sweep: {sys.executable} is Python {sys.version.split()[0]}, and 3.11 or newer is needed; {ADVICE}")
    try:
        from sweep.cli import main

        return main(arguments)
    except ModuleNotFoundError as error:
        if not error.name or "." in error.name:
            raise  # a mistake in our own code
        sys.exit(f"sweep: {sys.executable} has no package {error.name}; {ADVICE}")


if __name__ == "__main__":
    try:
        status = start(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # the reader (head, less) went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    sys.exit(status)
