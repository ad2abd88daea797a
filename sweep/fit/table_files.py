"""Files of tables as people have them: CSV in any dialect, TSV, JSON, JSONL, parquet, xlsx; plain, gzipped or zipped.

Of a text file the encoding, the separator and the decimal mark are found here, and every row is checked to have a value
for each name of the header; pandas reads the values. Lines that begin with # are comments.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from sweep.common.errors import UserError

SEPARATORS = (",", ";", "\t", "|")
TEXT = (".csv", ".tsv", ".txt", ".dat")
KINDS = (*TEXT, ".json", ".jsonl", ".ndjson", ".parquet", ".xlsx")
DECOMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.decompress,
    ".bz2": bz2.decompress,
    ".xz": lzma.decompress,
}
_COMMA_NUMBER = re.compile(r"[+-]?\d*,\d+(e[+-]?\d+)?", re.IGNORECASE)
_POINT_NUMBER = re.compile(r"[+-]?\d*\.\d+(e[+-]?\d+)?", re.IGNORECASE)
_GROUPS_OF_THREE = re.compile(r"[+-]?\d{1,3}([.,]\d{3})+")


def read(path: Path) -> pd.DataFrame:
    """The table in a file, its columns' names stripped. UserError, one line, where it cannot be read."""
    kind = kind_of(path)
    if kind not in KINDS:
        raise UserError(f"{path}: cannot read {kind or 'this kind of'} file; give .csv, .jsonl, .parquet or .xlsx")
    try:
        content = _content(path)
        table = _parse(content, kind, path)
    except UserError:
        raise
    except (
        ValueError,
        OSError,
        EOFError,
        RecursionError,
        csv.Error,
        zipfile.BadZipFile,
        lzma.LZMAError,
        zlib.error,
    ) as error:
        why = (str(error).splitlines() or ["empty"])[0]
        raise UserError(f"{path}: not a readable {kind[1:]} file: {why}") from None
    table.columns = pd.Index([str(name).strip() for name in table.columns])
    twice = table.columns[table.columns.duplicated()]
    if len(twice):
        raise UserError(f"{path}: two columns are called {twice[0]!r}; rename one")
    table.attrs["file"] = str(path)
    return table


def kind_of(path: Path) -> str:
    """The suffix that says what is in the file, in lower case, below that of a compressed one."""
    suffix = path.suffix.lower()
    if suffix in DECOMPRESS or suffix == ".zip":
        return Path(path.stem).suffix.lower() or ".csv"
    return suffix


def name_of(path: Path) -> str:
    """The file's name without its suffixes: runs of runs.csv.gz."""
    return Path(path.stem).stem if path.suffix.lower() in (*DECOMPRESS, ".zip") else path.stem


def place(table: pd.DataFrame, row: int) -> str:
    """Where a person finds a row: in a text file its line as an editor counts, the header and empty lines too."""
    path = Path(table.attrs.get("file", "the table"))
    kind = kind_of(path)
    if kind in TEXT:
        return f"{path.name} line {list(_Text.of(_decoded(_content(path))).records())[row + 1][0]}"
    if kind in (".jsonl", ".ndjson"):
        lines = _decoded(_content(path)).split("\n")
        return f"{path.name} line {[n for n, line in enumerate(lines, start=1) if line.strip()][row]}"
    return f"row {row} of {path.name}"


def _content(path: Path) -> bytes:
    if path.suffix.lower() == ".zip":
        with zipfile.ZipFile(path) as archive:
            inside = [name for name in archive.namelist() if not name.endswith("/") and "__MACOSX" not in name]
            if len(inside) != 1:
                raise UserError(f"{path}: holds {len(inside)} files; give one table")
            return archive.read(inside[0])
    content = path.read_bytes()
    return DECOMPRESS.get(path.suffix.lower(), bytes)(content)


def _parse(content: bytes, kind: str, path: Path) -> pd.DataFrame:
    if kind == ".parquet":
        return pd.read_parquet(io.BytesIO(content))
    if kind == ".xlsx":
        try:
            return pd.read_excel(io.BytesIO(content))
        except ImportError:
            raise UserError(f"{path}: reading .xlsx needs openpyxl; save the sheet as .csv, or install it") from None
    if kind in TEXT:
        return _read_text(_decoded(content), path)
    return pd.json_normalize(_json_records(_decoded(content), kind, path))


def _decoded(content: bytes) -> str:
    """Text in UTF-8 or UTF-16, with or without a byte-order mark, or as old spreadsheets write it (Windows-1252)."""
    head = content[:200]
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        text = content.decode("utf-16")
    elif 3 * head.count(0) > len(head):
        text = content.decode("utf-16-be" if head.startswith(b"\0") else "utf-16-le")
    else:
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = content.decode("cp1252")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _json_records(text: str, kind: str, path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON array, of an object of columns, of an object around one array, or of lines of JSON."""
    if kind == ".json":
        found = json.loads(text)
        if isinstance(found, dict):
            lists = [value for value in found.values() if isinstance(value, list)]
            of_rows = [value for value in lists if value and isinstance(value[0], dict)]
            if len(of_rows) == 1:
                found = of_rows[0]
            elif lists and len(lists) == len(found):
                found = pd.DataFrame(found).to_dict("records")
        if not isinstance(found, list):
            raise UserError(f"{path}: no table; give an array with an object for each run")
        numbered = list(enumerate(found))
    else:
        numbered = []
        for line, words in enumerate(text.split("\n"), start=1):
            if words.strip():
                try:
                    numbered.append((line, json.loads(words)))
                except ValueError as error:
                    raise UserError(f"{path} line {line}: not JSON: {error}") from None
    for position, record in numbered:
        if not isinstance(record, dict):
            where = f"entry {position}" if kind == ".json" else f"line {position}"
            raise UserError(f"{path} {where}: not an object with a value for each column")
    return [record for _, record in numbered]


@dataclass(frozen=True)
class _Text:
    """A text file's lines, comments emptied, and its separator (a space stands for any run of spaces)."""

    lines: list[str]
    separator: str

    @classmethod
    def of(cls, text: str) -> "_Text":
        lines = text.split("\n")
        comments = [line.lstrip().startswith("#") for line in lines]
        start = next((i for i, line in enumerate(lines) if line.strip() and not comments[i]), len(lines))
        below = [comment for comment, line in zip(comments, lines, strict=True) if line.strip()][
            sum(comments[:start]) + 1 :
        ]
        if 2 * sum(below) > len(below):  # then # begins the names of runs, such as #12
            comments[start:] = [False] * len(comments[start:])
        lines = ["" if comment else line for line, comment in zip(lines, comments, strict=True)]
        header = next((line for line in lines if line.strip()), "")
        separator = max(SEPARATORS, key=lambda mark: len(next(csv.reader([header], delimiter=mark), [])))
        if separator not in header:
            separator = " " if " " in header.strip() else ","
        return cls([line.strip() for line in lines] if separator == " " else lines, separator)

    def records(self) -> Iterator[tuple[int, list[str]]]:
        """(number of its last line, values stripped) of each record that is not empty, the header first."""
        reader = csv.reader((f"{line}\n" for line in self.lines), delimiter=self.separator, skipinitialspace=True)
        for record in reader:
            if len(record) > 1 or "".join(record).strip():
                yield reader.line_num, [value.strip() for value in record]


def _read_text(text: str, path: Path) -> pd.DataFrame:
    lines = _Text.of(text)
    records = list(lines.records())
    if not records:
        raise UserError(f"{path}: not a readable {kind_of(path)[1:]} file: it is empty")
    (_, header), rows = records[0], records[1:]
    for line, values in rows:
        if len(values) < len(header) or any(values[len(header) :]):
            raise UserError(
                f"{path} line {line}: {len(values)} values under the header's {len(header)} names "
                f"({', '.join(header)}); name every column, and leave a value that is missing empty"
            )
    marks: dict[str, Any] = {"decimal": ",", "thousands": "."} if _has_decimal_commas(lines.separator, rows) else {}
    table = pd.read_csv(
        io.StringIO("\n".join(lines.lines)),
        sep=r"\s+" if lines.separator == " " else lines.separator,
        skipinitialspace=True,
        names=range(max([len(header), *(len(values) for _, values in rows)])),
        header=0,
        index_col=False,
        low_memory=False,
        **marks,
    )
    table = table.iloc[:, : len(header)]
    table.columns = pd.Index(header)
    nameless = [
        i for i, name in enumerate(header) if not name and table.iloc[:, i].isna().all()
    ]  # a separator too many
    return table.iloc[:, [i for i in range(len(header)) if i not in nameless]].rename(columns={"": "unnamed"})


def _has_decimal_commas(separator: str, rows: list[tuple[int, list[str]]]) -> bool:
    """Whether 4,76 is a number here. 7,867 alone is taken as thousands, except between semicolons, which are there
    because the comma is the decimal mark."""
    if separator == ",":
        return False
    values = {value for _, record in rows for value in record if "," in value or "." in value}
    points = any(_POINT_NUMBER.fullmatch(value) and not _GROUPS_OF_THREE.fullmatch(value) for value in values)
    commas = [value for value in values if _COMMA_NUMBER.fullmatch(value)]
    surely = any(not _GROUPS_OF_THREE.fullmatch(value) for value in commas)
    return not points and (surely or (separator == ";" and bool(commas)))
