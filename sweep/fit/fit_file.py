"""What fit.json holds: a `Fit`, written and read as it is. The types of its parts stand beside the code that makes
them.

Keys of older files that are still read under their old names: `roads` (now `approaches`), and in the certificate
`starts_given_up` (now `starts_stopped_early`).
"""

import json
import shlex
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import AliasChoices, BeforeValidator, Field

from sweep.common import artefacts, files
from sweep.common.artefacts import Number
from sweep.common.errors import UserError
from sweep.common.plain import plain
from sweep.common.units import counted
from sweep.fit.bootstrap import Bootstrap, Interval, SeedNoise
from sweep.fit.checks import Crossing, Floors
from sweep.fit.dimension_check import DimensionCheck
from sweep.fit.fitted_law import FittedLaw
from sweep.fit.frontier import Approach, FlopsModel, Optimum
from sweep.fit.holdout import Cut
from sweep.fit.rows import Convention, Dropped
from sweep.fit.sensitivity import ConventionEffect, DropEffect, LeaveOut
from sweep.fit.solve import Certificate
from sweep.fit.table import OutputPaths


@dataclass(frozen=True)
class Exponents:
    """a and b of N_opt ~ C^a and D_opt ~ C^b along the fitted form; None where it has no optimum."""

    a: float | None = None
    b: float | None = None


@dataclass(frozen=True, kw_only=True)
class Target(Optimum):
    """The compute-optimal model at `times` the largest compute of the rows."""

    times: int


@dataclass(frozen=True)
class Residual:
    """A row of the table (by its position) with its loss and the one that the law predicts there, in nats per token;
    `used` says whether it was fitted."""

    row: int
    N: Number
    D: Number
    C: Number
    loss_nats: Number
    predicted_nats: Number
    used: bool


def _older_approach(value: Any) -> Any:
    """In files before version 0.2 `refused` was the list of refused budgets, unless the approach was refused whole."""
    if isinstance(value, dict) and isinstance(value.get("refused"), list):
        return value | {"refused": "", "budgets_refused": value["refused"]}
    return value


@dataclass(frozen=True)
class Fit:
    """A law fitted to a table, with all that says how far to trust it. Losses are nats per token, C is FLOPs, intervals
    are 90%; rows are named by their position in the table."""

    # What was fitted, and how.
    form: str
    objective: str
    delta: Number  # of the Huber loss; infinite, null in the file, for squares
    columns: dict[str, str]  # role -> column of the table
    convention: Convention
    n_rows: int
    n_families: int
    dropped: list[Dropped]
    dropped_by_reason: dict[str, int]
    data_sha256: str
    # The law, and how sure it is.
    params: dict[str, Number]
    objective_value: Number
    certificate: Certificate
    flops_model: FlopsModel
    replicates: dict[str, list[Number]] | None  # parameter -> its values in the bootstrap replicates that are kept
    deviations: list[Number] | None  # of rows in log loss, from the law fitted without their family
    bootstrap: Bootstrap | None
    intervals: dict[str, Interval | None] | None  # of the parameters, a and b
    seed_noise: SeedNoise | None
    # The frontier.
    exponents: Exponents
    approaches: Annotated[
        dict[str, Annotated[Approach, BeforeValidator(_older_approach)]],
        Field(validation_alias=AliasChoices("approaches", "roads")),
    ]
    disagreements: list[str]
    targets: list[Target]
    # How far to trust it.
    residuals: list[Residual]
    holdout: list[Cut]
    leave_out: list[LeaveOut]
    effect_of_drops: list[DropEffect]
    conventions: list[ConventionEffect]
    floors: Floors
    crossing: Crossing
    dimension: DimensionCheck | None
    warnings: list[str]
    # How it came to be.
    versions: dict[str, str]
    command: str

    @cached_property
    def law(self) -> FittedLaw:
        """The fitted law, to ask for losses and optima."""
        return FittedLaw.of(
            self.form,
            self.params,
            self.certificate,
            self.flops_model,
            self.replicates,
            self.deviations,
            self.bootstrap,
        )

    def interval(self, name: str) -> Interval | None:
        """The 90% interval of a parameter, of a or of b; None where there is none."""
        return (self.intervals or {}).get(name)

    @property
    def rows_and_families(self) -> str:
        """`36 rows of 9 families`"""
        return f"{counted(self.n_rows, 'row', 'rows')} of {counted(self.n_families, 'family', 'families')}"

    def to_json(self) -> str:
        """One line for each key."""
        lines = [f"{json.dumps(name)}: {json.dumps(value, allow_nan=False)}" for name, value in plain(self).items()]
        return "{\n" + ",\n".join(lines) + "\n}\n"


@dataclass(frozen=True)
class Refusal:
    """What stands in a sweep's fit.json where the data could not carry a fit: why. None in the file of a fit."""

    refused: str | None = None


def write(fit: Fit, path: Path) -> None:
    """Write the fit, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, lambda file: file.write(fit.to_json().encode()))


def write_refusal(reason: str, path: Path) -> None:
    """Leave the reason where a sweep's fit would be, so that its report can say it and no older fit stands for this
    data. Not for the fit of a user's own file: there it would only take a good fit away."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, {"refused": reason})


def read(outputs: OutputPaths) -> Fit:
    """The fit of a table. UserError where there is none, it was refused, or its file is damaged."""
    path = outputs.path("fit.json")
    if not path.is_file():
        raise UserError(f"{path}: no fit yet; make it with `{_again(outputs)}`")
    found = load(outputs)
    if isinstance(found, Refusal):
        raise UserError(f"{path}: the fit was refused: {found.refused}")
    return found


def load(outputs: OutputPaths) -> Fit | Refusal:
    """The fit of a table, or the refusal that its file holds."""
    path, mend = outputs.path("fit.json"), f"make it again with `{_again(outputs)}`"
    refusal = artefacts.read(Refusal, path, mend)
    return artefacts.read(Fit, path, mend) if refusal.refused is None else refusal


def _again(outputs: OutputPaths) -> str:
    return shlex.join(["python", "-m", "sweep", "fit", outputs.source])
