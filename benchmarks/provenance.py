"""Where a measured number comes from: every result file says device, versions, commit, code and date.

In a copy of the files without git the commit is what the environment variable COMMIT says.
"""

import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from sweep.common.devices import device_model
from sweep.runs.environment import code_hash

RESULTS = Path(__file__).parent / "results"


def save(name: str, packages: list[str], measured: Mapping[str, object], device: str = "cpu") -> Path:
    """Write `benchmarks/results/<name>.json` and return its path.

    `packages` are those whose version matters. `measured` may hold dataclasses, such as the rows of a table.
    """
    commit = _git("rev-parse", "--short", "HEAD")
    result = {
        "device": device_model(device),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {package: importlib.metadata.version(package) for package in packages},
        "commit": commit or os.environ.get("COMMIT"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no")) if commit else None,
        "training_code": code_hash(),
        "date": datetime.now(UTC).date().isoformat(),
        **measured,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(result, indent=1, default=asdict) + "\n")
    return path


def _git(*arguments: str) -> str:
    """What git prints; nothing where the files are a copy without git."""
    try:
        return subprocess.run(
            ["git", *arguments], cwd=RESULTS.parent, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (FileNotFoundError, subprocess.CalledProcessError):
        return ""
