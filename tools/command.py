"""The command `sweep`, which `make sweep` puts into the environment: `python -m sweep` from any folder of a checkout.

It runs the code of the checkout that the current folder lies in, whichever checkout it was installed from. Folders
such as runs/ are then those of that checkout.
"""

import os
import runpy
import sys
from pathlib import Path

MARKS = ("sweep/__main__.py", "conf/train.yaml")  # a folder that holds both is a checkout


def checkout_of(folder: Path) -> "Path | None":
    """The nearest folder upwards that is a checkout."""
    return next((one for one in (folder, *folder.parents) if all((one / mark).is_file() for mark in MARKS)), None)


if __name__ == "__main__":
    here = Path.cwd()
    checkout = checkout_of(here)
    if checkout is None:
        sys.exit(f"sweep: {here} lies in no checkout; change into one, a folder with {' and '.join(MARKS)}")
    if checkout != here:
        print(f"sweep: using the checkout {checkout}; paths are relative to it", file=sys.stderr)
        os.chdir(checkout)
    sys.path[0] = str(checkout)
    runpy.run_module("sweep", run_name="__main__", alter_sys=True)
