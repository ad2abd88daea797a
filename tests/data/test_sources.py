import json
import sysconfig

import pyarrow
import pyarrow.parquet
import pytest

from sweep.common.errors import UserError
from sweep.data.prepare import SCHEMAS
from sweep.data.sources import PythonSource, TextFiles


@pytest.fixture
def python(tmp_path, monkeypatch):
    """A small Python installation."""
    stdlib = tmp_path / "lib" / "python3"
    packages = stdlib / "site-packages"
    for name, text in {
        "os.py": "import abc\n",
        "json/__init__.py": "from .decoder import loads\n",
        "test/test_os.py": "import os\n",
        "test/latin.py": None,
        "empty.py": "",
        "__pycache__/os.py": "cached\n",
        "_sysconfigdata__linux.py": "build_time_vars = {}\n",
        "config-3.11-x86_64/python-config.py": "prefix\n",
        "site-packages/torch/nn.py": "class Module: ...\n",
        "dist-packages/apt.py": "debian\n",
    }.items():
        path = stdlib / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"caf\xe9" if text is None else text.encode())
    paths = {"stdlib": str(stdlib), "purelib": str(packages), "platlib": str(packages)}
    monkeypatch.setattr(sysconfig, "get_path", paths.__getitem__)
    return stdlib


def test_the_standard_library_is_its_own_utf8_files_by_name(python):
    assert list(PythonSource().documents()) == ["from .decoder import loads\n", "import abc\n", "import os\n"]


def test_packages_come_after_the_standard_library(python):
    documents = list(PythonSource(scope="packages").documents())
    assert documents[:3] == list(PythonSource().documents())
    assert documents[3:] == ["class Module: ...\n"]


def test_another_file_is_another_library(python):
    before = PythonSource().identity()
    assert PythonSource().identity() == before
    (python / "site-packages" / "new.py").write_text("not ours")
    assert PythonSource().identity() == before
    (python / "abc.py").write_text("class ABC: ...")
    assert PythonSource().identity() != before


def test_txt_is_cut_at_line_ends(tmp_path):
    path = tmp_path / "a.txt"
    text = "".join(f"line {n}\n" for n in range(100)) + "no newline at the end"
    path.write_text(text)
    documents = list(TextFiles(files=[str(path)], document_bytes=200).documents())
    assert "".join(documents) == text
    assert len(documents) > 3
    assert all(document.endswith("\n") and 200 <= len(document) < 210 for document in documents[:-1])
    assert list(TextFiles(files=[str(path)], document_bytes=0).documents()) == [text]


def test_rows_of_jsonl_and_parquet_are_documents(tmp_path):
    texts = ["one", "zwei\nzwei", "三"]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"body": text, "n": 1}) for text in texts) + "\n\n")
    table = pyarrow.table({"body": [*texts, None], "n": [1, 2, 3, 4]})
    pyarrow.parquet.write_table(table, tmp_path / "b.parquet")
    for name in ("a.jsonl", "b.parquet"):
        assert list(TextFiles(files=[str(tmp_path / name)], text_field="body").documents()) == texts


def test_globs_are_sorted_and_a_file_named_twice_is_read_once(tmp_path, monkeypatch):
    for name in ("b", "a", "c"):
        (tmp_path / f"{name}.txt").write_text(name)
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "d.txt").write_text("d")
    monkeypatch.chdir(tmp_path)
    assert list(TextFiles(files=["c.txt", "*.txt"]).documents()) == ["c", "a", "b"]
    assert list(TextFiles(files=["**/*.txt"]).documents()) == ["a", "b", "c", "d"]


def test_identity_follows_the_files(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one")
    source = TextFiles(files=[str(path)])
    before = source.identity()
    assert source.identity() == before
    path.write_text("other")
    assert source.identity() != before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", r"a\.txt: the file is empty; remove it"),
        ("a.txt", b"\xff\xfe\x00binary", r"a\.txt: not UTF-8 text \(a binary file\?\)"),
        ("a.txt", b"zero \x00 byte", r"a\.txt: not UTF-8 text"),
        ("a.pdf", b"%PDF", r"a\.pdf: unknown file type; data=text reads \.txt, \.jsonl, \.parquet"),
        ("a.jsonl", b"{not json}\n", r"a\.jsonl:1: not valid JSON"),
        ("a.jsonl", b'{"text": "x"}\n{"body": "y"}\n', r"a\.jsonl:2: no text in the field 'text'; it has body"),
        ("a.jsonl", b'{"text": 5}\n', r"a\.jsonl:1: no text in the field 'text'; it has text"),
        ("a.jsonl", b'"text"\n', r"a\.jsonl:1: no text in the field 'text'; it has no columns"),
        ("a.jsonl", b"\xff\xfe\n", r"a\.jsonl: not UTF-8 text"),
        ("a.parquet", b"PAR0 this is none", r"a\.parquet: not a parquet file"),
    ],
)
def test_files_that_cannot_be_read_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        list(TextFiles(files=[str(tmp_path / name)]).documents())
    assert "\n" not in str(caught.value)


def test_a_parquet_file_without_the_text_column(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"body": ["x"], "text": [1]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet: no text in the field 'text'; it has body, text"):
        list(TextFiles(files=[str(tmp_path / "a.parquet")]).documents())


def test_nothing_named_and_nothing_matched(tmp_path):
    with pytest.raises(UserError, match=r"data\.files=\[\]: name at least one"):
        TextFiles().identity()
    with pytest.raises(UserError, match=r"data\.files: nothing matches .*\*\.txt; check the path"):
        TextFiles(files=[str(tmp_path / "*.txt")]).identity()
    with pytest.raises(UserError, match=r"data\.files: .* is a folder; name files in it"):
        TextFiles(files=[str(tmp_path)]).identity()


def test_negative_documents(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(UserError, match=r"data\.document_bytes=-1: must be"):
        TextFiles(files=[str(tmp_path / "a.txt")], document_bytes=-1).identity()


def test_unknown_scope():
    with pytest.raises(UserError, match=r"data\.scope=all: must be one of stdlib, packages"):
        PythonSource(scope="all").identity()


def test_schemas_are_named_by_their_source():
    assert {name: schema().source for name, schema in SCHEMAS.items()} == {name: name for name in SCHEMAS}
