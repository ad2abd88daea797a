"""Files that are there whole or not at all, on local and network file systems, and JSON in them."""

import json
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from sweep.errors import UserError


def write(path: Path, fill: Callable[[BinaryIO], Any]) -> None:
    """`fill` a temporary file, flush it to disk, rename it to `path`. A failure leaves the old file as it was."""
    _complete(path, fill, os.replace)


def write_json(path: Path, value: Any) -> None:
    write(path, lambda file: _dump(value, file))


def create_json(path: Path, value: Any) -> bool:
    """Write `path` only if nothing is there: of several writers exactly one gets True, and readers see it whole."""
    try:
        _complete(path, lambda file: _dump(value, file), _link)
    except FileExistsError:
        return False
    return True


def append_json(path: Path, row: dict[str, Any]) -> None:
    """One line, in one write, so that lines of several writers do not mix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, (json.dumps(row) + "\n").encode())
    finally:
        os.close(descriptor)


def read_json(path: Path) -> Any:
    """A JSON file; UserError that names it where it is missing or damaged."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: damaged ({error}); restore it, or delete it to have it made again"
        ) from error


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """All complete lines; a last line that a killed writer left half-written is not one."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text[: text.rfind(b"\n") + 1].splitlines()]


def _complete(path: Path, fill: Callable[[BinaryIO], Any], publish: Callable[[Path, Path], None]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "xb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _link(source: Path, target: Path) -> None:
    os.link(source, target)


def _dump(value: Any, file: BinaryIO) -> None:
    file.write((json.dumps(value, indent=1) + "\n").encode())
