"""Checks that jobs on other nodes will see the folders of a launch."""

import os
import tempfile
from pathlib import Path

import psutil

from sweep.common.errors import UserError

IN_MEMORY = ("tmpfs", "ramfs", "devtmpfs")
OF_EACH_NODE = ("/tmp", "/var/tmp", "/dev/shm", "/run")  # by convention each node has its own


def check_folders(paths: dict[str, str], are_shared: bool, only_read: tuple[str, ...] = ()) -> None:
    """Raise UserError for a folder that cannot be written to, or that other nodes do not see (`check_seen`).

    Nobody writes to the folders named by `only_read`. Jobs check again when they start.
    """
    check_seen(paths, are_shared)
    for key, folder in paths.items():
        if key in only_read:
            continue
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise UserError(f"paths.{key}={folder}: {error.strerror}; jobs must be able to write there") from error


def check_seen(paths: dict[str, str], are_shared: bool) -> None:
    """Raise UserError for a folder that looks as if each node had its own, or whose name Slurm cannot use.

    `paths` are the absolute `paths.*` of the config by their names. `are_shared` is the user's word that all nodes see
    them.
    """
    for key, folder in paths.items():
        if "%" in folder or "\n" in folder:
            raise UserError(f"paths.{key}={folder}: has a %, which Slurm replaces in the names of log files; rename it")
        if not are_shared and (why := node_local(Path(folder))) is not None:
            raise UserError(
                f"paths.{key}={folder}: {why}, which other nodes do not see; give a folder on a shared file system, "
                "or say that it is on one: cluster.slurm.paths_are_shared=true"
            )


def node_local(folder: Path) -> str | None:
    """Why a folder looks as if only this machine had it; None if it does not."""
    real = Path(os.path.realpath(folder))
    for parent in OF_EACH_NODE:
        if real.is_relative_to(parent):
            return f"lies under {parent}"
    mounts = {Path(mount.mountpoint): mount.fstype for mount in psutil.disk_partitions(all=True)}
    holds = next((parent for parent in (real, *real.parents) if parent in mounts), None)
    return f"is in memory ({mounts[holds]})" if holds is not None and mounts[holds] in IN_MEMORY else None
