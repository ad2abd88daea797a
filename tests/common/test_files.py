import json
import threading

import pytest

from sweep.common import files
from sweep.common.errors import UserError


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "state.json"
    files.write_json(path, {"a": 1})

    def half(file):
        file.write(b'{"a": ')
        raise OSError(28, "No space left on device")

    with pytest.raises(Exception, match="No space left"):
        files.write(path, half)
    assert files.read_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["state.json"]


def test_folders_are_made_and_files_replaced(tmp_path):
    path = tmp_path / "a" / "b.json"
    files.write_json(path, [1])
    files.write_json(path, [2])
    assert json.loads(path.read_text()) == [2]


def test_of_several_creators_one_wins_and_its_content_stays(tmp_path):
    path = tmp_path / "record.json"
    barrier, won = threading.Barrier(8), []

    def create(number):
        barrier.wait()
        if files.create_json(path, number):
            won.append(number)

    threads = [threading.Thread(target=create, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert files.read_json(path) == won[0]
    assert [p.name for p in tmp_path.iterdir()] == ["record.json"]


def test_missing_and_damaged_json_are_named(tmp_path):
    with pytest.raises(UserError, match=r"gone\.json: no such file"):
        files.read_json(tmp_path / "gone.json")
    for content in (b'{"a": ', b"\xff\xfe", b""):
        (tmp_path / "bad.json").write_bytes(content)
        with pytest.raises(UserError, match=r"bad\.json: damaged .*; restore it, or delete it") as caught:
            files.read_json(tmp_path / "bad.json")
        assert "\n" not in str(caught.value)


def test_lines_of_a_log_survive_a_half_written_last_one(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert files.read_json_lines(path) == []
    files.append_json(path, {"n": 1})
    files.append_json(path, {"n": 2})
    with open(path, "ab") as file:
        file.write(b'{"n": 3')
    assert files.read_json_lines(path) == [{"n": 1}, {"n": 2}]


def test_a_damaged_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"n": 1}\n{"n": \n{"n": 3}\n')
    with pytest.raises(UserError, match=r"rows\.jsonl:2: damaged line"):
        files.read_json_lines(path)


def test_a_log_goes_on_after_a_line_that_a_full_disk_cut_short(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    files.append_json(path, {"n": 1})
    write = files.os.write

    def full(descriptor, data):
        write(descriptor, data[:4])
        return 4

    with monkeypatch.context() as patched:
        patched.setattr(files.os, "write", full)
        with pytest.raises((OSError, UserError)):
            files.append_json(path, {"n": 2})
    files.append_json(path, {"n": 3})
    assert files.read_json_lines(path) == [{"n": 1}, {"n": 3}]
