"""How people name sweeps and runs on the command line: by name or folder, by id or a prefix that no other id has."""

import argparse
import difflib
from collections.abc import Collection

from sweep.common.errors import UserError

SHOWN = 3  # ids in a message, of those that begin with a name or are close to it


def add_sweep(
    parser: argparse.ArgumentParser, about: str = "the sweep's name or folder", nargs: str | None = None
) -> None:
    """The argument SWEEP, for `SweepDir.find(args.sweep, args.sweeps)`."""
    parser.add_argument("sweep", metavar="SWEEP", nargs=nargs, help=about)
    add_sweeps(parser)


def add_sweeps(parser: argparse.ArgumentParser) -> None:
    """The argument --sweeps."""
    parser.add_argument("--sweeps", default="sweeps", help="the folder of sweeps (default: sweeps)")


def one_run(name: str, known: Collection[str], where: str, give: str = "an id or a unique prefix of one") -> str:
    """The id that is `name`, or the only one that begins with it. UserError names those that do, or that are close."""
    begin_so = [name] if name in known else sorted(run_id for run_id in known if run_id.startswith(name))
    if len(begin_so) == 1:
        return begin_so[0]
    if begin_so:
        some = ", ".join(begin_so[:SHOWN]) + (", …" if begin_so[SHOWN:] else "")
        raise UserError(f"{name}: {len(begin_so)} runs begin with it: {some}")
    close = difflib.get_close_matches(name, known, n=SHOWN, cutoff=0.4)
    hint = f"close to it: {', '.join(close)}" if close else f"give {give}"
    raise UserError(f"{name}: no such run in {where}; {hint}")
