"""What wandb left on disk: one `.wandb` file for each attempt at a run, in one folder for all runs.

<runs>/wandb/offline-run-<YYYYMMDD_HHMMSS>-<run id>/run-<run id>.wandb
<runs>/wandb/run-<YYYYMMDD_HHMMSS>-<run id>/run-<run id>.wandb              where it was online
…/run-<run id>.wandb.synced                                                 it is up, and needs no sync

Files are read by wandb's own reader, the one behind `wandb leet inspect --json`. A file ends where its writer was
killed or its disk was full; what comes before is whole.
"""

import glob
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Fields = dict[str, Any]  # what wandb takes and gives: settings, a config, a row, a summary, a record of its files


@dataclass
class Content:
    """What a fragment holds durably."""

    project: str | None
    entity: str | None
    last_step: int  # -1: no row
    ended: bool  # it was finished in order, and nothing was lost before


def folder(runs: Path) -> Path:
    """Where wandb's files of all runs lie; `wandb leet` shows it."""
    return runs / "wandb"


def of_run(runs: Path, run_id: str) -> list[Path]:
    """The `.wandb` files of a run, oldest first."""
    name = glob.escape(run_id)
    found = folder(runs).glob(f"*run-????????_??????-{name}*/run-{name}.wandb")
    return sorted(found, key=lambda path: (path.parent.name.removeprefix("offline-"), path.parent.name))


def is_offline(file: Path) -> bool:
    return file.parent.name.startswith("offline-")


def is_up(file: Path) -> bool:
    """Whether all of it is on the server; the mark is wandb's own."""
    return _mark(file).exists()


def mark_up(file: Path) -> None:
    _mark(file).touch()


def read(file: Path) -> Iterator[Fields]:
    """Its records, each with its `type`; of an incomplete file those that are whole."""
    from wandb.util import get_core_path

    command = [get_core_path(), "leet", "inspect", "--no-observability", "--json", "-run-file", str(file.absolute())]
    ended = subprocess.run(
        [*command, str(file.parent.parent.absolute())], stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    for line in ended.stdout.splitlines():
        yield json.loads(line)


def content(file: Path) -> Content:
    found = Content(project=None, entity=None, last_step=-1, ended=False)
    for record in read(file):
        kind = record["type"]
        if kind == "run":
            found.project, found.entity = record["run"].get("project"), record["run"].get("entity")
        elif kind == "history":
            found.last_step = int(record["history"].get("step", {}).get("num", 0))
        elif kind == "exit":
            found.ended = True
    return found


def last_step(runs: Path, run_id: str, project: str, entity: str | None) -> int:
    """The last step that a run's files hold for a project; -1 where they hold none."""
    held = [content(file) for file in of_run(runs, run_id)]
    ours = [one for one in held if one.project == project and (entity is None or one.entity in (None, entity))]
    return max((one.last_step for one in ours), default=-1)


def _mark(file: Path) -> Path:
    return file.with_name(f"{file.name}.synced")
