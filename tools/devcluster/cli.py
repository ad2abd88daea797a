"""A real Slurm on this one Debian machine, for tests and for trying things out. It needs root, but no systemd or GPU.

  eval "$(python -m tools.devcluster up)"        two nodes with two pretended GPUs each, partitions `low` and `high`
  python -m sweep launch sweep=lr cluster=devcluster
  python -m tools.devcluster down                ends its jobs and daemons, removes its folder

`low` is the default partition. Jobs in `high` preempt those in `low`, which are requeued. With accounting (slurmdbd)
sacct works, and `root` and `research` are the accounts; with --no-accounting sacct says that it is disabled.
To see what failures do: `slurmd n1 stop` (its jobs go on), `slurmd n1 crash` (its jobs are gone), `slurmd n1 start`,
`ctld stop`, `ctld start`, `ctld restart`. The logs are in FOLDER/log.
"""

import argparse
import os
import signal
import sys
from pathlib import Path

from sweep.common.errors import UserError
from tools.devcluster.cluster import CONTROLLER, Cluster, Settings

FOLDER = Path("/tmp/devcluster")


def main(arguments: list[str]) -> int:
    parser = _parser()
    args = parser.parse_args(arguments)
    try:
        return args.run(args, Cluster(args.folder.resolve()))
    except UserError as error:
        print(f"{parser.prog} {args.verb}: {error}", file=sys.stderr)
        return 2


def up(args: argparse.Namespace, cluster: Cluster) -> int:
    cluster.up(
        Settings(nodes=args.nodes, gpus=args.gpus, accounting=args.accounting, max_array_size=args.max_array_size)
    )
    line = f"export SLURM_CONF={cluster.conf}\n"
    if not args.hold:
        sys.stdout.write(line)
        folder = "" if cluster.folder == FOLDER else f" --folder {cluster.folder}"
        print(
            f"with that in your shell: python -m sweep launch sweep=lr cluster=devcluster\n"
            f"to end it: python -m tools.devcluster down{folder}",
            file=sys.stderr,
        )
        return 0
    for number in (signal.SIGINT, signal.SIGTERM):  # SIGINT too: in the background of a script it begins ignored
        signal.signal(number, signal.default_int_handler)
    try:
        os.write(
            sys.stdout.fileno(), line.encode()
        )  # unbuffered, as flushing at exit fails where nobody reads any more
        sys.stdin.read()
    except (KeyboardInterrupt, BrokenPipeError):
        pass
    finally:
        cluster.down()
    return 0


def down(args: argparse.Namespace, cluster: Cluster) -> int:
    cluster.down()
    return 0


def status(args: argparse.Namespace, cluster: Cluster) -> int:
    """Exit status 0 if all daemons run and all nodes respond, else 1."""
    if not cluster.exists:
        raise UserError(f"{cluster.folder}: no cluster here")
    stopped = [daemon for daemon in cluster.daemons if not cluster.pid(daemon)]
    print(f"export SLURM_CONF={cluster.conf}")
    print("stopped: " + ", ".join(stopped) if stopped else "all daemons run: " + ", ".join(cluster.daemons))
    if CONTROLLER in stopped:
        return 1
    states = cluster.node_states()
    print("nodes: " + ", ".join(f"{node} {state}" for node, state in states.items()))
    return 1 if stopped or any("down" in state or "*" in state for state in states.values()) else 0


def slurmd(args: argparse.Namespace, cluster: Cluster) -> int:
    if args.node not in cluster.nodes:
        raise UserError(f"{args.node}: no such node; there are {', '.join(cluster.nodes)}")
    {"start": cluster.start, "stop": cluster.stop, "crash": cluster.crash}[args.action](args.node)
    return 0


def ctld(args: argparse.Namespace, cluster: Cluster) -> int:
    if args.action in ("stop", "restart"):
        cluster.stop(CONTROLLER)
    if args.action in ("start", "restart"):
        cluster.start(CONTROLLER)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.devcluster", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    helps = {
        up: "start a cluster; prints the line that points Slurm's commands at it",
        down: "end a cluster and remove its folder",
        status: "which daemons run, and the nodes' states",
        slurmd: "start, stop or crash one node",
        ctld: "start, stop or restart the controller",
    }
    for run, text in helps.items():
        verb = verbs.add_parser(run.__name__, help=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        verb.set_defaults(run=run)
        if run is slurmd:
            verb.add_argument("node", metavar="NODE", help="n1, n2, …")
            verb.add_argument("action", choices=("start", "stop", "crash"))
        if run is ctld:
            verb.add_argument("action", choices=("start", "stop", "restart"))
        verb.add_argument(
            "--folder", type=Path, default=FOLDER, help="the folder of the cluster; each cluster has its own"
        )
        if run is up:
            verb.add_argument("--nodes", type=_positive, default=Settings.nodes)
            verb.add_argument("--gpus", type=_positive, default=Settings.gpus, help="GPUs of each node; none is real")
            verb.add_argument("--accounting", action=argparse.BooleanOptionalAction, default=True)
            verb.add_argument(
                "--max-array-size", type=_positive, default=Settings.max_array_size, help="as in slurm.conf"
            )
            verb.add_argument(
                "--hold", action="store_true", help="stay until standard input closes, then end the cluster"
            )
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text}: must be a positive number")
    return int(text)
