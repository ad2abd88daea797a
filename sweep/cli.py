"""The command line: finds the verb, runs it. A person's mistake is one line and exit status 2."""

import argparse
import importlib
import sys
from types import ModuleType

from sweep.errors import UserError
from sweep.files import FULL

# In the order of a sweep's life.
VERBS = (
    "plan",
    "prepare",
    "launch",
    "status",
    "logs",
    "cancel",
    "retry",
    "train",
    "collect",
    "fit",
    "report",
    "predict",
    "next",
    "sync",
    "dashboard",
    "rerun",
    "clean",
)
HIDDEN = ("work", "mirror")  # what launchers start
DESCRIPTION = """Scaling sweeps of small GPTs: plan a grid of model and dataset sizes, train it, fit the frontier.

  python -m sweep launch sweep=default                          a sweep, from the grid to the report
  python -m sweep train model.params=1M budget.tokens=2M        one trial, without any sweep
  python -m sweep rerun RUN                                     one trial of a sweep again, compared with its record
"""


def main(arguments: list[str]) -> int:
    parser, verbs = _parser(arguments)
    if arguments[:1] and arguments[0] in verbs:  # options may stand between overrides, which a parser of verbs refuses
        args = verbs[arguments[0]].parse_intermixed_args(arguments[1:])
        args.verb = arguments[0]
    else:
        args = parser.parse_args(arguments)
    try:
        return args.run(args)
    except UserError as error:
        print(f"{parser.prog} {args.verb}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.filename is None and error.errno not in FULL:
            raise
        print(f"{parser.prog} {args.verb}: {error.filename or 'a file'}: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{parser.prog} {args.verb}: interrupted", file=sys.stderr)
        return 130


def _parser(arguments: list[str]) -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser, and those of its verbs: the one asked for; all of them only where their list is wanted."""
    parser = argparse.ArgumentParser(
        prog="python -m sweep", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    made = {}
    asked = [name for name in (*VERBS, *HIDDEN) if name in arguments[:1]]
    for name in asked or VERBS:
        module = _verb(name)
        made[name] = verbs.add_parser(
            name,
            help=module.HELP,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(made[name])
        made[name].set_defaults(run=module.run)
    return parser, made


def _verb(name: str) -> ModuleType:
    return importlib.import_module(f"sweep.verbs.{name}")
