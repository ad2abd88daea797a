"""Folders that other nodes would not see are refused before jobs fail in silence."""

from pathlib import Path

import psutil
import pytest

from slurm import shared_folders
from slurm.shared_folders import check_folders, node_local
from sweep.common.errors import UserError


def test_temporary_folders_are_of_each_node(tmp_path):
    (tmp_path / "link").symlink_to("/tmp/x")
    assert node_local(Path("/tmp/x")) == "lies under /tmp"
    assert node_local(tmp_path / "link" / "runs") == "lies under /tmp"
    assert node_local(Path("/dev/shm/x")) == "lies under /dev/shm"


def test_a_file_system_in_memory_is_of_each_node(monkeypatch):
    mount = psutil.disk_partitions(all=True)[0]._replace(mountpoint="/scratch", fstype="tmpfs")
    monkeypatch.setattr(shared_folders.psutil, "disk_partitions", lambda all: [mount])
    assert node_local(Path("/scratch/me/runs")) == "is in memory (tmpfs)"
    assert node_local(Path("/home/me/runs")) is None


def test_it_is_one_line_that_names_the_key_and_what_to_do():
    with pytest.raises(UserError) as caught:
        check_folders({"runs": "/tmp/x"}, are_shared=False)
    assert str(caught.value) == (
        "paths.runs=/tmp/x: lies under /tmp, which other nodes do not see; give a folder on a shared file system, or "
        "say that it is on one: cluster.slurm.paths_are_shared=true"
    )


def test_a_word_that_they_are_shared_is_taken_and_the_folders_are_made(tmp_path):
    check_folders({"runs": str(tmp_path / "a" / "runs")}, are_shared=True)
    assert list((tmp_path / "a" / "runs").iterdir()) == []


def test_a_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file" / "runs", Path("/proc/runs")):
        with pytest.raises(UserError, match=f"paths.runs={folder}: .*; jobs must be able to write there"):
            check_folders({"runs": str(folder)}, are_shared=True)


def test_a_name_that_slurm_would_change(tmp_path):
    with pytest.raises(UserError, match=r"paths.sweeps=.*100%: has a %"):
        check_folders({"sweeps": str(tmp_path / "100%")}, are_shared=True)


def test_where_only_is_read_nothing_is_tried():
    check_folders({"tokens": "/proc/tokens"}, are_shared=True, only_read=("tokens",))
