"""Runs back out of W&B: a project as a table for `fit`, and one run as a run directory that `rerun` trains again."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from sweep.common import files
from sweep.common.errors import UserError
from sweep.config.schema import WandbSection
from sweep.plan.trial import Trial
from sweep.runs.rundir import RunDir
from sweep.tracking import account as accounts
from sweep.tracking.account import sign_in
from sweep.tracking.sweep_run import JOB_TYPE
from sweep.tracking.wandb_files import Fields

PREFIX = "wandb:"
ADDRESS = re.compile(r"https?://[^/]+/([^/?#]+)/([^/?#]+)(?:/runs/([^/?#]+))?")
NOT_IN_TABLES = ("trial",)  # a run's whole trial.json


def project_table(text: str) -> tuple[str, pd.DataFrame]:
    """(entity/project, a row for each run) in the columns of W&B's own CSV export: Name, ID, State, config, summary."""
    entity, project, _ = _parts(text, "ENTITY/PROJECT")
    account = sign_in(WandbSection())
    entity = entity or account.entity
    path = f"{entity}/{project}"
    try:
        runs = [run for run in account.api.runs(path, lazy=False) if run.job_type != JOB_TYPE]
    except account.errors as error:
        raise UserError(f"{text}: {accounts.explain(error)}") from error
    if not runs:
        raise UserError(f"{text}: the project has no runs")
    return path, pd.DataFrame([_row(run) for run in runs])


def _row(run: Any) -> Fields:
    config, summary = flat(run.config), flat(dict(run.summary))
    row = {"Name": run.name, "ID": run.id, "State": run.state, "Created": run.created_at}
    if config:  # the same config twice is the same trial twice
        row["config_sha256"] = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
    row |= summary
    for name, value in config.items():
        if name not in NOT_IN_TABLES:  # what was measured keeps its name
            row[name if name not in row else f"config.{name}"] = value
    return row


def flat(values: Mapping[str, Any], prefix: str = "") -> Fields:
    """Nested keys joined by dots, as the export writes them; without W&B's own keys, tables and pictures."""
    found: Fields = {}
    for name, value in values.items():
        if name.startswith("_"):
            continue
        if hasattr(value, "items"):
            found |= {} if "_type" in value else flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def run_directory(text: str, root: Path) -> Path:
    """A run directory below `root` with the run's trial.json, and its record.json if it came to an end."""
    entity, project, run_id = _parts(text, "ENTITY/PROJECT/RUN")
    account = sign_in(WandbSection())
    try:
        run = account.api.run(f"{entity}/{project}/{run_id}")
    except account.errors as error:
        raise UserError(f"{text}: {accounts.explain(error)}") from error
    if not isinstance(run.config.get("trial"), str):
        raise UserError(f"{text}: its config holds no `trial`, so it is not a run of a sweep of ours")
    trial = Trial.decode(run.config["trial"], f"{text}: `trial` in its config", "train it again by overrides")
    directory = RunDir(root / f"{trial.trial_id}-of-wandb")
    files.write_json(directory.trial, trial.to_json())
    if options := run.config.get("run"):
        files.write_json(directory.env, {"options": dict(options)})
    directory.record.unlink(missing_ok=True)
    record = _plain(dict(run.summary))
    if record.get("status") in ("finished", "diverged"):
        known = {"trial_id": trial.trial_id, "family_id": trial.family_id, "tokens": trial.tokens, "flops": trial.flops}
        files.write_json(directory.record, record | known)
    return directory.path


def _parts(text: str, form: str) -> tuple[str, str, str]:
    """(entity, project, run id), an entity or a run id that is not named as ""; UserError where `form` asks for others.

    A project alone is one of the key's own entity.
    """
    address = ADDRESS.match(text)
    parts = [part or "" for part in address.groups()] if address else text.removeprefix(PREFIX).split("/")
    parts = [part for part in parts if part]
    if len(parts) == 1 and form == "ENTITY/PROJECT":
        return "", parts[0], ""
    if len(parts) != form.count("/") + 1:
        raise UserError(f"{text}: write {PREFIX}{form}, or the address of its page")
    entity, project, run_id = (*parts, "")[:3]
    return entity, project, run_id


def _plain(value: Any) -> Any:
    """wandb's own mappings as dicts, without its own keys and media."""
    if hasattr(value, "items"):
        pairs = ((str(name), item) for name, item in value.items() if not str(name).startswith("_"))
        return {name: _plain(item) for name, item in pairs if not (hasattr(item, "items") and "_type" in item)}
    return value
