"""Prepare data: documents to token shards, once; a sweep or a trial that needs them finds them by their content.

  python -m sweep prepare
  python -m sweep prepare data=text 'data.files=[notes/*.txt]' data.tokenizer.vocab_size=1024
  python -m sweep prepare data=tinystories

Sources are the files of conf/data. plan, launch and train prepare what is missing by themselves.
"""

import argparse
import math
from pathlib import Path

from rich.table import Table

from slurm.provisional import finish
from slurm.submission import Submission
from sweep.common.console import open_console
from sweep.common.units import format_bytes, short
from sweep.config.compose import compose
from sweep.data.prepare import prepare
from sweep.data.tokens import Tokens


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", default=[], help="Hydra overrides: data=NAME, data.key=value")
    parser.add_argument("--submission", metavar="FOLDER", help=argparse.SUPPRESS)  # of the job that a launch submits
    parser.add_argument("--verify", action="store_true", help="check the checksums of shards that are there already")


def run(args: argparse.Namespace) -> int:
    if args.submission is not None:
        return _for_submission(Path(args.submission))
    config = compose(args.overrides)
    show(prepare(config.data, config.paths.tokens, verify=args.verify))
    return 0


def _for_submission(folder: Path) -> int:
    """Prepare all data of a sweep that waits for it in Slurm's queue."""
    plan = finish(Submission.read(folder))
    print(f"sweep {plan.name}: data prepared, {len(plan.trials)} trials, {len(plan.excluded)} points excluded")
    return 0


def show(tokens: Tokens) -> None:
    """Print what was prepared, and the losses that counting models reach on its validation split."""
    console = open_console()
    console.print(f"[bold]{tokens.meta['title']}[/]  {tokens.fingerprint}  in {tokens.folder}")
    for split in ("train", "validation"):
        facts = tokens.meta[split]
        documents = facts["documents"]
        text = f" from {documents} documents, {format_bytes(facts['bytes'])} of text" if documents else ""
        console.print(f"{split}: {facts['tokens']} tokens ({short(facts['tokens'])}){text}")
    is_text = math.isfinite(tokens.bytes_per_token)
    per_token = f", {tokens.bytes_per_token:.3f} bytes per token" if is_text else ""
    console.print(f"vocabulary: {tokens.vocab_size}{per_token}")
    table = Table(title="reference lines on validation", title_justify="left")
    table.add_column("model")
    table.add_column("nats per token", justify="right")
    if is_text:
        table.add_column("bits per byte", justify="right")
    for name, loss_nats in tokens.reference_lines.items():
        bits = [f"{tokens.bits_per_byte(loss_nats):.3f}"] if is_text else []
        table.add_row(name.replace("_", " "), f"{loss_nats:.4f}", *bits)
    console.print(table)
