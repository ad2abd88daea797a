"""A frozen copy of the code, which jobs run however long they wait and whatever is edited meanwhile.

`sweeps/<name>/code/<hash>/` is named by its content, so that submissions of the same code share it. The copy holds what
git would add: tracked files, and new ones that git does not ignore. So it holds no environment, no results, and no
secret that is kept out of git. Without git it holds the folders of code and configuration.
"""

import hashlib
import os
import re
import shutil
import subprocess
import uuid
from dataclasses import dataclass
from pathlib import Path

from sweep.common.checkout import ROOT
from sweep.common.errors import UserError

ROOMS = ("kernels", "models", "sweep", "slurm", "hydra_plugins", "conf")
MOST_BYTES = 20_000_000  # of one file; a larger file is data
NEVER = re.compile(r"\.env.*|\.netrc|.*\.(pem|key)|id_(rsa|ecdsa|ed25519).*|credentials(\.json)?", re.IGNORECASE)


@dataclass(frozen=True)
class Snapshot:
    folder: Path
    commit: str | None
    diff: bytes  # of tracked files against the commit
    dirty: bool  # by tracked or new files
    left_out: list[str]  # files that are too large


def take(codes: Path, root: Path = ROOT, copy: bool = True) -> Snapshot:
    """Copy the code at `root` to `codes/<hash>`, unless it is there. Without `copy`, only say where it would go."""
    commit = _git(root, "rev-parse", "HEAD").decode().strip() or None
    files, left_out = _files(root)
    digest = hashlib.sha256()
    for name in files:
        path = root / name
        content = os.readlink(path).encode() if path.is_symlink() else path.read_bytes()
        digest.update(f"{name}\0{path.lstat().st_mode & 0o111}\0{len(content)}\0".encode() + content)
    folder = codes / digest.hexdigest()[:12]
    if copy and not folder.exists():
        _copy(root, files, folder)
    status = _git(root, "status", "--porcelain") if commit else b""
    return Snapshot(folder, commit, _git(root, "diff", "HEAD") if commit else b"", bool(status.strip()), left_out)


def _files(root: Path) -> tuple[list[str], list[str]]:
    """The files to be copied, and those that are too large to be code; both relative to `root`."""
    if Path(os.fsdecode(_git(root, "rev-parse", "--show-toplevel").strip()) or "/").resolve() == root.resolve():
        listed = _git(root, "ls-files", "--cached", "--others", "--exclude-standard", "-z")
        names = {os.fsdecode(name) for name in listed.split(b"\0") if name}
    else:
        found = (path for room in ROOMS for path in (root / room).rglob("*") if "__pycache__" not in path.parts)
        names = {str(path.relative_to(root)) for path in found}
    files: list[str] = []
    left_out: list[str] = []
    for name in sorted(names):
        path = root / name
        if NEVER.fullmatch(path.name) or not (path.is_symlink() or path.is_file()):
            continue
        (left_out if path.lstat().st_size > MOST_BYTES else files).append(name)
    if not any(name.startswith("sweep/") for name in files):
        raise UserError(f"{root}: holds no sweep/ that could be copied for jobs to run; launch from a checkout")
    return files, left_out


def _copy(root: Path, files: list[str], folder: Path) -> None:
    """Copy under a temporary name, then rename. Of two that do it at once one wins, and both have the same copy."""
    partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.tmp")
    try:
        for name in files:
            target = partial / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, target, follow_symlinks=False)
        try:
            partial.rename(folder)
        except OSError:
            if not folder.exists():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _git(root: Path, *arguments: str) -> bytes:
    """What git prints; nothing where there is no git or no repository."""
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, check=False)
    except FileNotFoundError:
        return b""
    return done.stdout if done.returncode == 0 else b""
