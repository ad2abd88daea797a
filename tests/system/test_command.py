"""The command `sweep` from any folder, and what it says where it cannot start: one line, no traceback."""

import ast
import subprocess
import sys

import pytest

from sweep.common.checkout import ROOT

COMMAND = ROOT / "tools" / "command.py"


def run(*arguments, folder):
    ended = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert "Traceback" not in ended.stderr
    return ended


def test_it_works_below_a_checkout_and_says_which_one():
    ended = run(COMMAND, "--version", folder=ROOT / "conf" / "sweep")
    assert ended.returncode == 0
    assert ended.stdout.startswith("scaling-sweeps ")
    assert ended.stderr == f"sweep: using the checkout {ROOT}; paths are relative to it\n"
    assert run(COMMAND, "--version", folder=ROOT).stderr == ""


def test_it_runs_the_checkout_that_it_is_called_in(tmp_path):
    """Whichever it was installed from."""
    for name, text in (("sweep/__init__.py", ""), ("sweep/__main__.py", "print('another')"), ("conf/train.yaml", "")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "runs").mkdir()
    assert run(COMMAND, "status", folder=tmp_path / "runs").stdout == "another\n"


def test_outside_of_a_checkout_it_says_what_one_is(tmp_path):
    ended = run(COMMAND, "status", folder=tmp_path)
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"sweep: {tmp_path} lies in no checkout; change into one")


def test_a_package_that_is_missing_is_one_line():
    ended = run("-S", "-m", "sweep", "status", folder=ROOT)  # without site-packages
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert " has no package " in line
    assert "make sweep" in line


@pytest.mark.parametrize("path", [COMMAND, ROOT / "sweep" / "__main__.py", ROOT / "sweep" / "__init__.py"])
def test_an_old_python_gets_far_enough_to_say_so(path):
    ast.parse(path.read_text(), feature_version=(3, 9))
