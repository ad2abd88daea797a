"""How wandb is used here: one place that imports it for runs, one call of its init.

A run says what it is about and nothing of whoever made it: no console output, git state, code, arguments or list of
packages. The key stays where wandb keeps it, and never passes through here.
"""

import importlib
import os
import re
from pathlib import Path
from typing import Any

from sweep.common.errors import UserError
from sweep.config.schema import WandbSection
from sweep.tracking import wandb_files
from sweep.tracking.wandb_files import Fields

OLDEST = (0, 31)
FLUSH_SECONDS = 1.0  # of records to the disk; wandb's own is 15
MODES_BY_ENVIRONMENT = {"online": "online", "offline": "offline", "dryrun": "offline", "disabled": "off"}
TAG_CHARACTERS = 64  # W&B's limit
PRIVATE = {
    "console": "off",
    "disable_code": True,
    "disable_git": True,
    "disable_job_creation": True,
    "save_code": False,
    "silent": True,
    "x_disable_meta": True,
    "x_save_requirements": False,
}


def asked_mode(section: WandbSection) -> str:
    """auto, online, offline or off; `auto` obeys WANDB_MODE."""
    if section.mode != "auto":
        return section.mode
    return MODES_BY_ENVIRONMENT.get(os.environ.get("WANDB_MODE", "").lower(), "auto")


def tag(sweep_name: str) -> str:
    return sweep_name if len(sweep_name) <= TAG_CHARACTERS else f"{sweep_name[: TAG_CHARACTERS - 1]}…"


def wandb_module() -> Any:
    """wandb; UserError where it is missing or too old."""
    os.environ["WANDB_ERROR_REPORTING"] = "false"
    install = "python -m pip install -r requirements.txt"
    try:
        wandb = importlib.import_module("wandb")
    except ImportError as error:
        raise UserError(f"wandb cannot be imported ({error}); {install}") from error
    found = re.findall(r"\d+", getattr(wandb, "__version__", "0"))
    if tuple(map(int, found[:2])) < OLDEST:
        raise UserError(f"wandb is {'.'.join(found)}, and {'.'.join(map(str, OLDEST))} is needed; {install}")
    return wandb


def has_key() -> bool:
    """Whether wandb finds a key here. Asks nobody, so it may be a wrong one. UserError where it cannot be one."""
    wandb = wandb_module()
    try:
        return wandb.login(prompt=False, verify=False)
    except wandb.Error as error:
        raise UserError(first_line(error)) from error


def start_run(
    section: WandbSection,
    runs: Path,
    mode: str,
    *,
    run_id: str,
    more_settings: Fields | None = None,
    **about: Any,
) -> Any:
    """A new run, or the next attempt at one; `about` is name, group, job_type, tags and config, as wandb.init has them.

    `mode` is online or offline. Raises wandb.Error where a server refuses or does not answer.
    """
    wandb = wandb_module()
    own = wandb_files.folder(runs).absolute() / "own"  # its logs, and tables on their way up
    own.mkdir(parents=True, exist_ok=True)
    os.environ |= {"WANDB_DATA_DIR": str(own), "WANDB_CACHE_DIR": str(own)}
    settings = wandb.Settings(
        mode=mode,
        root_dir=str(runs.absolute()),
        reinit="create_new",
        init_timeout=section.patience_seconds,
        finish_timeout=section.patience_seconds,
        finish_timeout_raises=True,
        x_transaction_log_flush_interval=FLUSH_SECONDS,
        **PRIVATE | (more_settings or {}),
    )
    return wandb.init(
        id=run_id, project=section.project, entity=section.entity, resume="allow", settings=settings, **about
    )


def file_of(run: Any) -> Path:
    """The `.wandb` file that a run writes."""
    return Path(run.settings.sync_file)


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
