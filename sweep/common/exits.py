"""What a process that trains says to whoever started it: its exit status, and lines on stderr."""

import sys

EXIT_DONE, EXIT_FAILED, EXIT_AGAIN = 0, 1, 75  # 75 is EX_TEMPFAIL: saved, run me again
FAILED = "failed: "  # begins a worker's line on a failure; a launch passes such lines on


def say(line: str) -> None:
    """One line in one write, so that those of several workers on one log do not mix."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
