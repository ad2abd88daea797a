"""Where people read what is printed: a terminal wraps at its width, a file or a pipe not at all."""

import sys

from rich.console import Console

PIPED_WIDTH = 1000  # rich has to have one; 80, its own, would cut numbers of a log in two


def open_console(stderr: bool = False) -> Console:
    """rich's console for what is said to people."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, highlight=False, width=None if stream.isatty() else PIPED_WIDTH)
