"""`python -m tools.devcluster`: the entry; everything is in tools/devcluster/cli.py."""

import sys

from tools.devcluster.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
