"""The frozen copy runs, holds what git would add and no secret, and is shared by launches of the same code."""

import os
import subprocess
import sys

import pytest

from slurm import code_snapshot
from sweep.common.checkout import ROOT
from sweep.common.errors import UserError


def git(root, *arguments):
    who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(root), *who, *arguments], check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path):
    """A small checkout with a commit, an ignored key and an ignored folder."""
    root = tmp_path / "checkout"
    (root / "sweep").mkdir(parents=True)
    (root / "sweep" / "cli.py").write_text("print('one')\n")
    (root / "tool.sh").write_text("true\n")
    (root / "tool.sh").chmod(0o755)
    (root / ".gitignore").write_text("secret.txt\n/runs/\n")
    (root / "secret.txt").write_text("key")
    (root / "runs").mkdir()
    (root / "runs" / "model.pt").write_text("weights")
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-qm", "first")
    return root


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_what_git_would_add_and_nothing_else(checkout, tmp_path):
    (checkout / "sweep" / "new.py").write_text("new")
    (checkout / ".env").write_text("WANDB_API_KEY=1")
    (checkout / ".netrc").write_text("password 1")
    taken = code_snapshot.take(tmp_path / "code", checkout)
    assert names(taken.folder) == [".gitignore", "sweep/cli.py", "sweep/new.py", "tool.sh"]
    assert os.access(taken.folder / "tool.sh", os.X_OK)
    assert taken.dirty
    assert list((tmp_path / "code").iterdir()) == [taken.folder]


def test_the_commit_and_how_the_code_differs_from_it(checkout, tmp_path):
    clean = code_snapshot.take(tmp_path / "code", checkout)
    assert (len(clean.commit), clean.dirty, clean.diff) == (40, False, b"")
    (checkout / "sweep" / "cli.py").write_text("print('two')\n")
    changed = code_snapshot.take(tmp_path / "code", checkout)
    assert changed.dirty
    assert b"-print('one')\n+print('two')" in changed.diff
    assert changed.folder != clean.folder
    assert (clean.folder / "sweep" / "cli.py").read_text() == "print('one')\n"


def test_the_same_content_is_the_same_folder_whatever_the_commit(checkout, tmp_path):
    (checkout / "sweep" / "cli.py").write_text("print('two')\n")
    before = code_snapshot.take(tmp_path / "code", checkout)
    git(checkout, "commit", "-qam", "second")
    after = code_snapshot.take(tmp_path / "code", checkout)
    assert (after.folder, after.dirty) == (before.folder, False)
    assert after.commit != before.commit


def test_a_deleted_file_and_a_large_one_are_left_out(checkout, tmp_path):
    (checkout / "tool.sh").unlink()
    with open(checkout / "corpus.txt", "wb") as file:
        file.truncate(code_snapshot.MOST_BYTES + 1)
    taken = code_snapshot.take(tmp_path / "code", checkout)
    assert names(taken.folder) == [".gitignore", "sweep/cli.py"]
    assert taken.left_out == ["corpus.txt"]


def test_without_git_it_is_the_rooms(tmp_path):
    root = tmp_path / "copied"
    for name in ("sweep/cli.py", "conf/train.yaml", "sweep/__pycache__/cli.pyc", "notes.txt", "runs/a/model.pt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    taken = code_snapshot.take(tmp_path / "code", root)
    assert names(taken.folder) == ["conf/train.yaml", "sweep/cli.py"]
    assert (taken.commit, taken.diff, taken.dirty) == (None, b"", False)


def test_where_there_is_no_code_nothing_is_copied(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="launch from a checkout"):
        code_snapshot.take(tmp_path / "code", tmp_path / "empty")


def test_a_copy_that_failed_leaves_nothing(checkout, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(code_snapshot.shutil, "copy2", full)
    with pytest.raises(OSError, match="No space"):
        code_snapshot.take(tmp_path / "code", checkout)
    assert list((tmp_path / "code").iterdir()) == []


def test_the_copy_of_this_checkout_runs_by_itself(tmp_path):
    taken = code_snapshot.take(tmp_path / "code")
    environment = {**os.environ, "PYTHONPATH": str(taken.folder), "PYTHONSAFEPATH": "1"}
    code = "import sweep.cli, slurm.script; print(sweep.cli.__file__, slurm.script.__file__)"
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert ended.stdout.split() == [str(taken.folder / "sweep" / "cli.py"), str(taken.folder / "slurm" / "script.py")]
