"""The command line: finds the verb, runs it. A person's mistake is one line and exit status 2."""

import argparse
import importlib
import sys
import tomllib
from types import ModuleType

from sweep.common.checkout import ROOT
from sweep.common.errors import UserError
from sweep.common.files import FULL
from sweep.common.guess import did_you_mean

PROGRAM = "python -m sweep"
# What each does, in the order of a sweep's life. Here and not in their files, so that listing them imports none.
VERBS = {
    "plan": "the table of trials of a grid, and its price",
    "config": "the keys of the configuration: default, type and meaning of each",
    "prepare": "documents to token shards, with reference lines",
    "launch": "run a sweep, from the grid to the report",
    "status": "how a sweep stands: done, running, queued, failed, lost",
    "logs": "the log of the workers that trained a run, or train it",
    "cancel": "stop a sweep, or some of its runs; what is trained is kept",
    "retry": "try runs again that failed or were given up",
    "train": "train one trial here",
    "collect": "every run of a sweep into one table",
    "fit": "fit a scaling law to a sweep, or to any table with columns for N, D and loss",
    "report": "figures, an interactive page, its numbers as JSON, and a summary of a collected sweep",
    "predict": "the loss of a larger run, written down before it is trained; scored when it is",
    "next": "which trials to run next, as commands",
    "sync": "upload a sweep's offline W&B runs, and the sweep itself as a run",
    "dashboard": "a W&B workspace and a report of a sweep, made or brought up to date",
    "rerun": "train one recorded trial again and compare",
    "clean": "free disk; lists before it removes",
}
HIDDEN = ("work", "mirror")  # what launchers start
DESCRIPTION = """Scaling sweeps of small GPTs: plan a grid of model and dataset sizes, train it, fit the frontier.

  python -m sweep launch sweep=default                          a sweep, from the grid to the report
  python -m sweep train model.params=1M budget.tokens=2M        one trial, without any sweep
  python -m sweep rerun RUN                                     one trial of a sweep again, compared with its record
"""


def main(arguments: list[str]) -> int:
    name = arguments[0] if arguments else ""
    if name not in (*VERBS, *HIDDEN):
        parser = _list_of_verbs()
        if name and not name.startswith("-"):
            parser.error(f"{name}: no such verb; {did_you_mean(name, VERBS)}`{PROGRAM} --help` lists them")
        parser.parse_args(arguments[:1])  # shows the help or the version, or says what is missing, and exits
    try:
        verb = _verb(name)
        # Options may stand between overrides, which a parser of verbs refuses.
        return verb.run(_parser(name, verb).parse_intermixed_args(arguments[1:]))
    except UserError as error:
        print(f"{PROGRAM} {name}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.filename is None and error.errno not in FULL:
            raise
        print(f"{PROGRAM} {name}: {error.filename or 'a file'}: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{PROGRAM} {name}: interrupted", file=sys.stderr)
        return 130


def _list_of_verbs() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, prog=PROGRAM, description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=_version())
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, what in VERBS.items():
        verbs.add_parser(name, help=what)
    return parser


def _parser(name: str, verb: ModuleType) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        prog=f"{PROGRAM} {name}",
        description=verb.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verb.add_arguments(parser)
    return parser


def _version() -> str:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return f"{project['name']} {project['version']}"


def _verb(name: str) -> ModuleType:
    return importlib.import_module(f"sweep.verbs.{name}")
