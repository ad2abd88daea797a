"""Files that are there whole or not at all, on local and network file systems, and JSON in them."""

import contextlib
import errno
import json
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from sweep.common.errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no space left, over a quota, over a limit on file sizes


def write(path: Path, fill: Callable[[BinaryIO], Any]) -> None:
    """`fill` a temporary file, flush it to disk, rename it to `path`. A failure leaves the old file as it was."""
    _complete(path, fill, os.replace)


def write_json(path: Path, value: Any) -> None:
    write(path, lambda file: _dump(value, file))


def write_json_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    write(path, lambda file: file.write(lines))


def create_json(path: Path, value: Any) -> bool:
    """Write `path` only if nothing is there: of several writers exactly one gets True, and readers see it whole."""
    try:
        _complete(path, lambda file: _dump(value, file), _link)
    except FileExistsError:
        return False
    return True


def append_json(path: Path, row: dict[str, Any]) -> None:
    """One line, in one write, so that lines of several writers do not mix. A full disk leaves no half of it."""
    line = (json.dumps(row) + "\n").encode()
    with full_disk_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            written = os.write(descriptor, line)
            if written < len(line):
                os.ftruncate(descriptor, os.lseek(descriptor, 0, os.SEEK_CUR) - written)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(descriptor)


def read_json(path: Path, mend: str = "restore it, or delete it to have it made again") -> Any:
    """A JSON file; UserError that names it where it is missing, or damaged: then also how to `mend` it."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: damaged ({error}); {mend}") from error


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """All complete lines; a last line that a killed writer left half-written is not one."""
    return list(read_json_lines_back(path))[::-1]


def read_json_lines_back(path: Path) -> Iterator[dict[str, Any]]:
    """The same from the last line to the first, each parsed only when it is asked for."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return
    lines = text[: text.rfind(b"\n") + 1].splitlines()
    for number in range(len(lines), 0, -1):
        try:
            yield json.loads(lines[number - 1])
        except ValueError as error:
            raise UserError(f"{path}:{number}: damaged line ({error}); restore the file, or remove it") from error


class Tail:
    """The whole lines that a growing text file gains, from where it ends now."""

    def __init__(self, path: Path):
        self.path = path
        self.read_to = path.stat().st_size if path.exists() else 0

    def lines(self) -> list[str]:
        """Those since the last call."""
        if not self.path.exists():
            return []
        with open(self.path, "rb") as file:
            file.seek(self.read_to)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self.read_to += len(whole)
        return whole.decode(errors="replace").splitlines()


@contextlib.contextmanager
def full_disk_named(path: Path) -> Iterator[None]:
    """A full disk as a UserError that names the file which did not fit."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        cause: BaseException | None = error
        while isinstance(cause, RuntimeError):  # torch.save lets its own error hide the one it comes from
            cause = cause.__context__
        if not isinstance(cause, OSError) or cause.errno not in FULL:
            raise
        raise UserError(f"{path}: {cause.strerror}; free some space and run again, what is done is kept") from error


def _complete(path: Path, fill: Callable[[BinaryIO], Any], publish: Callable[[Path, Path], None]) -> None:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with full_disk_named(path):
            path.parent.mkdir(parents=True, exist_ok=True)
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
