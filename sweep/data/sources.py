"""Where documents come from: each source is a config section that knows how to read itself.

To add a source, write a dataclass here with `identity` and `documents`, name it in `sweep.data.prepare.SCHEMAS`, and
add `conf/data/<name>.yaml`.
"""

import glob
import hashlib
import json
import os
import platform
import re
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweep.common.errors import UserError
from sweep.common.keys import key

TOKENIZERS = ("bpe", "bytes", "file", "hub")
BYTES_VOCABULARY = 256 + 1  # every byte, and the end-of-text token


@dataclass
class TokenizerConfig:
    """`bpe`: trained here, to `vocab_size`; `bytes`: one token per byte; `file`, `hub`: the one at `path`."""

    kind: str = key("bpe", "bpe: trained on the training split; file: a tokenizer.json; hub: a model", TOKENIZERS)
    vocab_size: int = key(512, "tokens of a bpe vocabulary")
    path: str | None = key(None, "for kind file and hub: the file, or the name of a model of the Hub")


@dataclass
class DataConfig:
    """What every `data=…` has. `unique_tokens` caps what a trial reads, not what is prepared."""

    source: str = key("", "which reader; set by the file of conf/data")
    validation_fraction: float = key(0.05, "fraction of the data that is held out for validation")
    unique_tokens: int | float | str | None = key(None, "training tokens that a trial may read, such as 1M; null: all")

    @property
    def title(self) -> str:
        """What people call it."""
        return self.source

    def identity(self) -> dict[str, Any]:
        """Checks the config; what tells versions of the source apart without reading it, as JSON."""
        raise NotImplementedError

    def expected_vocab_size(self) -> int:
        """As far as it is known before the data is prepared."""
        raise NotImplementedError


@dataclass
class TextConfig(DataConfig):
    """A source of text documents, which a tokenizer turns into tokens."""

    tokenizer: TokenizerConfig = key(TokenizerConfig, "how text becomes tokens")

    def documents(self) -> Iterator[str]:
        """All documents, in an order that depends on the source alone."""
        raise NotImplementedError

    def expected_vocab_size(self) -> int:
        return BYTES_VOCABULARY if self.tokenizer.kind == "bytes" else self.tokenizer.vocab_size


# ---- Python's own source files ----

PYTHON_SCOPES = ("stdlib", "packages")


@dataclass
class PythonSource(TextConfig):
    """Real text that every machine has: `.py` files of the standard library, or of all installed packages too.

    The standard library is taken as installed, with its test suite where there is one (python.org builds: 31
    MB; Debian and most containers leave it out: 11 MB). A document is a file.
    """

    source: str = key("pysource", "which reader; set by the file of conf/data")
    # The smallest standard libraries just reach 5M training tokens.
    validation_fraction: float = key(0.03, "fraction of the data that is held out for validation")
    scope: str = key("stdlib", "the standard library, or every installed package too, over 180 MB", PYTHON_SCOPES)

    def identity(self) -> dict[str, Any]:
        listing = hashlib.sha256()
        for name, path in self._files():
            listing.update(f"{name}\0{path.stat().st_size}\n".encode())
        return {"python": platform.python_version(), "listing": listing.hexdigest()}

    def documents(self) -> Iterator[str]:
        for _, path in self._files():
            text = _utf8(path.read_bytes())
            if text:  # a few files of the test suite are in other encodings on purpose
                yield text

    def _files(self) -> list[tuple[str, Path]]:
        """(relative name, path), sorted by name, the standard library first."""
        if self.scope not in PYTHON_SCOPES:
            raise UserError(f"data.scope={self.scope}: must be one of {', '.join(PYTHON_SCOPES)}")
        files = _python_files(Path(sysconfig.get_path("stdlib")), skip=_NOT_THE_LIBRARY)
        if self.scope == "packages":
            for folder in dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))):
                files += _python_files(Path(folder), skip=_CACHES)
        return files


_CACHES = re.compile(r"__pycache__")
# Other people's packages, and the files that record how and where this Python was built.
_NOT_THE_LIBRARY = re.compile(r"__pycache__|site-packages|dist-packages|config-\d.*|_sysconfigdata_.*\.py")


def _python_files(root: Path, skip: re.Pattern[str]) -> list[tuple[str, Path]]:
    """(name relative to root, path) of all `.py` files, sorted; folders and files that match `skip` are left out."""
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not skip.fullmatch(name)]
        names = [name for name in files if name.endswith(".py") and not skip.fullmatch(name)]
        found += [Path(folder, name) for name in names]
    return sorted((path.relative_to(root).as_posix(), path) for path in found if path.is_file())


# ---- files ----


@dataclass
class TextFiles(TextConfig):
    """Your own files: paths and globs of `.txt`, `.jsonl` and `.parquet`.

    A row of jsonl or parquet is a document. A txt file is cut at line ends into documents of about
    `document_bytes`, so that one long file can be split into train and validation; 0 leaves it whole.
    """

    source: str = key("text", "which reader; set by the file of conf/data")
    files: list[str] = key(list, "paths and globs of .txt, .jsonl and .parquet files")
    text_field: str = key("text", "field or column that holds the text")
    document_bytes: int = key(16_384, "a .txt file is cut at line ends into documents of about this size; 0: whole")

    def identity(self) -> dict[str, Any]:
        if self.document_bytes < 0:
            raise UserError(
                f"data.document_bytes={self.document_bytes}: must be a number of bytes, or 0 for whole files"
            )
        stats = [(str(path), path.stat()) for path in self._paths()]
        return {"files": [[path, stat.st_size, stat.st_mtime_ns] for path, stat in stats]}

    def documents(self) -> Iterator[str]:
        for path in self._paths():
            yield from _READERS[path.suffix](path, self)

    def _paths(self) -> list[Path]:
        """Files in the order given, each glob's matches sorted; a file that is named twice is read once."""
        if not self.files:
            raise UserError("data.files=[]: name at least one file or glob, e.g. data.files=[notes/*.txt]")
        paths: dict[Path, None] = {}
        for pattern in self.files:
            if Path(pattern).is_dir():
                inside = Path(pattern) / "*.txt"
                raise UserError(f"data.files: {pattern} is a folder; name files in it, e.g. {inside}")
            matches = [pattern] if Path(pattern).is_file() else sorted(glob.glob(pattern, recursive=True))
            found = [Path(match) for match in matches if Path(match).is_file()]
            if not found:
                raise UserError(f"data.files: nothing matches {pattern}; check the path (from {Path.cwd()})")
            paths.update(dict.fromkeys(path.resolve() for path in found))
        for path in paths:
            if path.suffix not in _READERS:
                raise UserError(f"{path}: unknown file type; data=text reads {', '.join(_READERS)}")
            if path.stat().st_size == 0:
                raise UserError(f"{path}: the file is empty; remove it from data.files")
        return list(paths)


def _read_txt(path: Path, config: TextFiles) -> Iterator[str]:
    document: list[bytes] = []
    size = 0
    with path.open("rb") as file:
        for line in file:
            document.append(line)
            size += len(line)
            if config.document_bytes and size >= config.document_bytes:
                yield _text_of(b"".join(document), path)
                document, size = [], 0
    if document:
        yield _text_of(b"".join(document), path)


def _read_jsonl(path: Path, config: TextFiles) -> Iterator[str]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(_text_of(line, path))
            except json.JSONDecodeError:
                raise UserError(f"{path}:{number}: not valid JSON; each line must be one object") from None
            if not isinstance(row, dict) or not isinstance(row.get(config.text_field), str):
                raise no_text_field(f"{path}:{number}", config.text_field, row)
            yield row[config.text_field]


def _read_parquet(path: Path, config: TextFiles) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid:
        raise UserError(f"{path}: not a parquet file, or a damaged one; write it again") from None
    with file:
        schema = file.schema_arrow
        names = set(schema.names)
        if config.text_field not in names or not _is_string(schema.field(config.text_field).type):
            raise no_text_field(str(path), config.text_field, dict.fromkeys(names))
        for batch in file.iter_batches(batch_size=1024, columns=[config.text_field]):
            yield from (text for text in batch.column(0).to_pylist() if text is not None)


def _is_string(kind: Any) -> bool:
    import pyarrow

    return pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)


_READERS: dict[str, Callable[[Path, TextFiles], Iterator[str]]] = {
    ".txt": _read_txt,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}


def _text_of(data: bytes, path: Path) -> str:
    text = _utf8(data)
    if text is None:
        raise UserError(f"{path}: not UTF-8 text (a binary file?); convert it, or leave it out of data.files")
    return text


def _utf8(data: bytes) -> str | None:
    """The text, or None for what is not text: other encodings, and anything with a zero byte."""
    try:
        return None if b"\0" in data else data.decode("utf-8")
    except UnicodeDecodeError:
        return None


def no_text_field(where: str, text_field: str, row: Any) -> UserError:
    """The error for a row without the text column, which lists the columns that there are."""
    columns = ", ".join(sorted(map(str, row))) if isinstance(row, dict) else f"no columns, but {row!r:.40}"
    return UserError(f"{where}: no text in the field {text_field!r}; it has {columns}: set data.text_field")
