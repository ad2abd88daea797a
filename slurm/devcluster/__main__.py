"""`python -m slurm.devcluster`: the entry; everything is in slurm/devcluster/cli.py."""

import sys

from slurm.devcluster.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
