"""Typed values in JSON files. One mechanism checks whatever is read, so that a value is typed from its file to its use.

A file's type is a dataclass (or any other type that pydantic can validate). Reading is strict: a number in quotes is no
number. Keys that the type does not know are ignored, so that older code reads newer files; fields with a default may be
missing, so that newer code reads older ones.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, TypeAdapter, ValidationError

from sweep.common.errors import UserError

T = TypeVar("T")
# A float that may be NaN or infinite. JSON has no such numbers: `plain` writes null, and null is read as NaN.
Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
MEND = "restore it, or delete it to have it made again"


def read(kind: type[T], path: Path, mend: str = MEND) -> T:
    """The value in a JSON file. UserError names the file where it is missing, and the field where it is damaged."""
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    return decode(kind, content, path, mend)


def read_lines(kind: type[T], path: Path, mend: str = "restore the file, or remove it") -> list[T]:
    """The values of a file with one JSON value a line, none where there is no file. A last line without its end, which
    a killed writer left, is not one. UserError names the line that is damaged."""
    return list(iterate_lines(kind, path, mend))


def iterate_lines(
    kind: type[T], path: Path, mend: str = "restore the file, or remove it", last_first: bool = False
) -> Iterator[T]:
    """The same, each line parsed only when it is asked for; from the end of the file where `last_first`."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return
    numbered = list(enumerate(content[: content.rfind(b"\n") + 1].splitlines(), start=1))
    for number, line in reversed(numbered) if last_first else numbered:
        yield decode(kind, line, f"{path}:{number}", mend)


def decode(kind: type[T], content: bytes | str, where: Path | str, mend: str = MEND) -> T:
    """The value that JSON text holds. UserError says `where` it stands, which field is wrong, and how to `mend` it."""
    try:
        value: T = adapter(kind).validate_json(content, strict=True)  # type: ignore[arg-type]
    except ValidationError as error:
        raise UserError(f"{where}: damaged ({_first(error)}); {mend}") from error
    return value


@dataclass(frozen=True)
class Versioned:
    """What every versioned file says first of all."""

    schema_version: int | None = None


def check_version(content: bytes | str, where: Path | str, version: int, advice: str, mend: str = MEND) -> None:
    """UserError, with `advice`, where JSON text is of another schema version than the one that this code reads."""
    found = decode(Versioned, content, where, mend).schema_version
    if found != version:
        raise UserError(f"{where}: schema version {found}, this code reads {version}; {advice}")


@cache
def adapter(kind: Any) -> TypeAdapter[Any]:
    """pydantic's reader of a type, made once."""
    return TypeAdapter(kind)


def _first(error: ValidationError) -> str:
    """The first thing that is wrong, in one line: `field=value: what it should be`."""
    found = error.errors(include_url=False)[0]
    place = ".".join(map(str, found["loc"]))
    what = found["msg"].removeprefix("Value error, ").splitlines()[0]
    what = what[:1].lower() + what[1:]
    if not place:
        return what
    if found["type"] == "missing":
        return f"{place} is missing"
    return f"{place}={_short(found['input'])}: {what}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "…"
