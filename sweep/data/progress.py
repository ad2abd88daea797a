"""What a long job says meanwhile: a bar on a terminal, elsewhere a line at its start and one at its end."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)


class Phases:
    """Phases of one job, each with an amount of work (bytes or tokens) or none that is known. On stderr."""

    def __init__(self, name: str, shown: bool = True):
        self._name = name
        self._start = time.perf_counter()
        self._lines = shown and not sys.stderr.isatty()
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
            disable=not shown or self._lines,
        )
        self._task = self._bar.add_task(name, total=None)

    def __enter__(self) -> "Phases":
        self._bar.start()
        if self._lines:
            print(f"preparing {self._name} …", file=sys.stderr)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.stop()
        if self._lines and error is None:
            print(f"prepared {self._name} in {time.perf_counter() - self._start:.1f} s", file=sys.stderr)

    def phase(self, what: str, total: float | None = None) -> None:
        self._bar.reset(self._task, description=f"{self._name}: {what}", total=total)

    def advance(self, amount: float) -> None:
        self._bar.advance(self._task, amount)
