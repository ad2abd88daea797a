"""List the keys of the configuration: each with its default, its type and what it means, a line each.

  python -m sweep config                  all of them
  python -m sweep config model.norm       one key, or all keys of a section such as cluster.slurm
  python -m sweep config | grep warmup

A default holds unless the chosen files of conf/ say another value. What a grid or a trial resolves
to is shown by `python -m sweep plan … --cfg`.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from sweep.common.checkout import CONF
from sweep.common.errors import UserError
from sweep.common.guess import did_you_mean
from sweep.config.describe import KeyFacts, all_keys, json_schemas


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("key", nargs="?", default="", help="a key, or a section")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line instead")
    parser.add_argument(
        "--schema", action="store_true", help="write the JSON Schemas in conf/schema/, by which editors complete"
    )


def run(args: argparse.Namespace) -> int:
    if args.schema:
        write_schemas(CONF / "schema")
        print(f"wrote {CONF / 'schema'}", file=sys.stderr)
        return 0
    keys = all_keys()
    chosen = [facts for facts in keys if f"{facts.key}.".startswith(f"{args.key}.") or not args.key]
    if not chosen:
        meant = did_you_mean(args.key, [facts.key for facts in keys])
        raise UserError(f"{args.key}: unknown key; {meant}`python -m sweep config` lists all")
    for facts in chosen:
        print(json.dumps(asdict(facts)) if args.json else line(facts))
    return 0


def line(facts: KeyFacts) -> str:
    """A key as people read it, in one line."""
    default = json.dumps(facts.default, ensure_ascii=False) if not isinstance(facts.default, str) else facts.default
    sources = f" (data: {', '.join(facts.sources)})" if facts.sources else ""
    return f"{f'{facts.key}={default}':<44} {facts.type:<20} {facts.meaning}{sources}"


def write_schemas(folder: Path) -> None:
    """Write one JSON Schema for each kind of file of conf/."""
    folder.mkdir(exist_ok=True)
    for name, schema in json_schemas().items():
        (folder / name).write_text(json.dumps(schema, indent=1, ensure_ascii=False) + "\n")
