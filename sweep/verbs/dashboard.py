"""Make a sweep's W&B workspace and report, or bring those it has up to date: dashboards as code.

  python -m sweep dashboard default
  python -m sweep dashboard default --export dashboards      their JSON, without a login

The workspace: loss against compute on log axes with the frontier, isoFLOP, learning curves by size, speed and MFU,
failures. The report: the same with the fit's numbers, as the last `report` made them. Their addresses are kept in
sweeps/<name>/wandb.json, so that a second call changes what the first one made; sections and blocks that people added
in W&B stay.
"""

import argparse
from pathlib import Path
from types import ModuleType

from sweep.common.errors import UserError
from sweep.runs.lookup import add_sweep
from sweep.runs.sweepdir import SweepDir
from sweep.tracking import client
from sweep.tracking.account import sign_in


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_sweep(parser)
    parser.add_argument(
        "--export",
        nargs="?",
        type=Path,
        const=Path(),
        metavar="DIR",
        help="only write their JSON (default: dashboard/ in the sweep's folder)",
    )


def run(args: argparse.Namespace) -> int:
    sweep = SweepDir.find(args.sweep, args.sweeps)
    section = sweep.settings().wandb
    client.wandb_module()
    dashboard = _dashboard()
    if args.export is not None:
        out = sweep.path / "dashboard" if args.export == Path() else args.export
        for path in dashboard.export(sweep, section, out):
            print(path)
        return 0
    for line in dashboard.save(sweep, section, sign_in(section)):
        print(line)
    return 0


def _dashboard() -> ModuleType:
    try:
        import sweep.tracking.dashboard as dashboard  # wandb, and what not everybody has
    except ImportError as error:
        install = "python -m pip install -r requirements.txt"
        raise UserError(f"wandb-workspaces cannot be imported ({error}); {install}") from error
    return dashboard
