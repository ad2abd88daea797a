"""Collect a sweep's runs into sweeps/<name>/table.parquet, curves.parquet and samples.parquet.

Every planned trial is a row with its state, as `status` shows it, and the reason.
"""

import argparse

from slurm.queue_state import ask
from sweep.runs.collect import collect
from sweep.runs.lookup import add_sweep
from sweep.runs.sweepdir import SweepDir


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_sweep(parser)


def run(args: argparse.Namespace) -> int:
    collect_sweep(SweepDir.find(args.sweep, args.sweeps))
    return 0


def collect_sweep(sweep: SweepDir) -> None:
    """Write the sweep's tables, and say what is in them and what went wrong."""
    collected = collect(sweep, lambda: ask(sweep))
    counts = collected.table["status"].value_counts()
    said = ", ".join(f"{count} {status}" for status, count in counts.items())
    print(f"{sweep.path / 'table.parquet'}: {len(collected.table)} trials ({said}); {collected.read} read anew")
    for _, row in collected.table[
        collected.table["status"].isin(["failed", "given up", "damaged", "diverged"])
    ].iterrows():
        print(f"  {row['status']}: {row['trial_id']}: {row['reason']}")
