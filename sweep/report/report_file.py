"""What report.json holds: a `Report`, every number that the page, the terminal summary and W&B show.

Losses are nats per token, C is FLOPs, intervals are 90%; what is not known is None.
"""

from dataclasses import dataclass, field

from sweep.common.artefacts import Number
from sweep.fit.bootstrap import Bootstrap, Interval, SeedNoise
from sweep.fit.checks import Crossing, Floors
from sweep.fit.dimension_check import DimensionCheck
from sweep.fit.frontier import FlopsModel
from sweep.fit.holdout import Cut
from sweep.fit.rows import Dropped
from sweep.fit.sensitivity import ConventionEffect, DropEffect, LeaveOut
from sweep.report.answers import BudgetAnswer, Cost
from sweep.report.figure_spec import Figure, LeftOut

Cell = float | int | str | bool | None


@dataclass(frozen=True)
class Compute:
    """What the sweep took. `flops_alone`: had every trial been trained alone; `flops_saved`: by trunks that trials of a
    family share. `efficiency`: the share of what the devices' matrix products could do in that time."""

    flops: float
    flops_alone: float
    flops_saved: float | None
    share_saved: float | None
    device_hours: float | None
    dollars: float | None
    efficiency: float | None


@dataclass(frozen=True)
class BestRun:
    """The finished run of the least loss."""

    trial_id: str
    N: float
    D: float
    flops: float
    loss_nats: float
    bits_per_byte: float | None


@dataclass(frozen=True)
class Calculator:
    """What the page's calculator needs: the additive law with its replicates, and the measured rates."""

    params: dict[str, Number]
    flops_model: FlopsModel
    largest_flops: float
    flops_per_device_hour: float | None
    dollars_per_device_hour: float | None
    bytes_per_token: float | None
    replicates: dict[str, list[Number]] | None
    widening: float | None


@dataclass(frozen=True)
class ParameterRow:
    """A parameter of the law, or an exponent of the frontier (`kind`: law or frontier)."""

    name: str
    value: float | None
    interval: Interval | None
    meaning: str
    kind: str


@dataclass(frozen=True)
class ApproachRow:
    """An approach to the frontier, N ∝ C^a and D ∝ C^b; `note` says what it refused and why."""

    key: str
    label: str
    a: float | None
    b: float | None
    a_interval: Interval | None
    b_interval: Interval | None
    n_optima: int
    note: str


@dataclass(frozen=True, kw_only=True)
class LeaveOutRow(LeaveOut):
    """`what` was left out, in words."""

    what: str


@dataclass(frozen=True, kw_only=True)
class DroppedTrial(Dropped):
    """A row that the fit does not use, with its trial."""

    trial_id: str


@dataclass(frozen=True)
class FitTables:
    """The fit as the page's tables show it. The cuts of the hold-out are without their rows."""

    form: str
    formula: str
    objective: str
    columns: dict[str, str]
    n_rows: int
    n_families: int
    counted: str
    flops_model: FlopsModel
    rows: list[ParameterRow]
    approaches: list[ApproachRow]
    certificate: list[tuple[str, str]]
    dropped: list[DroppedTrial]
    bootstrap: Bootstrap | None
    seed_noise: SeedNoise | None
    floors: Floors
    crossing: Crossing
    dimension: DimensionCheck | None
    leave_out: list[LeaveOutRow]
    effect_of_drops: list[DropEffect]
    conventions: list[ConventionEffect]
    extrapolation: list[str]
    holdout: list[Cut]


@dataclass(frozen=True)
class Sample:
    """A text that a model wrote after so many steps and tokens of its training."""

    step: int
    tokens: float
    text: str
    prompt: str | None = None


@dataclass(frozen=True)
class SampleRun:
    """The samples of a size's longest trial along its training; `label` is the size."""

    label: str
    trial_id: str
    points: list[Sample]


@dataclass(frozen=True)
class TrialColumn:
    """A column of the table of trials: its key in the table, its heading, and how a cell is written (`page.py`)."""

    key: str
    label: str
    style: str

    @property
    def text(self) -> bool:
        return self.style == "text"


@dataclass(frozen=True)
class ExcludedGroup:
    """Points of the grid that were not planned, by the condition that they broke."""

    condition: str
    points: list[str]


@dataclass(frozen=True)
class Report:
    """report.json. `refused`: why there is no fit; `no_answers`: why the fit gives none; `priced` and `timed`: whether
    dollars and device-hours are known; `made`: how the page came to be, a line each."""

    name: str
    refused: str
    counts: dict[str, int]
    counts_text: str
    warnings: list[str]
    device: str
    bytes_per_token: float | None
    reference_lines: dict[str, float]
    compute: Compute
    best: BestRun | None
    no_answers: str
    priced: bool
    timed: bool
    next_nats: float
    budgets: list[BudgetAnswer]
    costs: list[Cost]
    calculator: Calculator | None
    fit: FitTables | None
    figures: list[Figure] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    samples: list[SampleRun] = field(default_factory=list)
    trial_columns: list[TrialColumn] = field(default_factory=list)
    trials: list[dict[str, Cell]] = field(default_factory=list)
    excluded: list[ExcludedGroup] = field(default_factory=list)
    made: list[str] = field(default_factory=list)
