"""How a trial ended for good: one JSON file, published once, never changed."""

from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

from sweep.common.errors import UserError
from sweep.common.files import create_json, read_json
from sweep.runs.rundir import SCHEMA_VERSION


@dataclass
class Record:
    """The result of a finished or diverged trial. Losses are nats per token; None where there is none.

    `wall_seconds` is what the trial took from its first step to its last, the trunk included; `own_seconds` leaves
    out the `shared_steps` that it took over from the trunk; in a stack they are its share of the stack's time.
    `tokens_per_second` is the device's while training, all of a stack together; `mfu` is that in exact FLOPs over the
    `flops_ceiling` per second that the device's matrix products were measured to reach. `device_bytes` is the most
    GPU memory that tensors took, of the stack where it is one. `intrinsic_dimension` is that of the final layer's
    activations at `dimension_points` positions of the validation set. Fields with a default came later than the first
    records, which may lack them.
    """

    trial_id: str
    family_id: str
    status: str  # finished | diverged
    params: dict[str, int]
    params_non_embedding: int
    params_total: int
    tokens: int
    flops: float
    flops_per_token: float
    steps_done: int
    loss_nats: float | None
    best_loss_nats: float | None
    best_tokens: int | None
    train_loss_nats: float | None
    bits_per_byte: float | None
    shared_steps: int
    wall_seconds: float
    own_seconds: float
    tokens_per_second: float | None
    device: str
    execution_class: str
    execution_classes: list[str]
    code_hash: str
    finished_at: float
    intrinsic_dimension: float | None = None
    dimension_points: int | None = None
    mfu: float | None = None
    flops_ceiling: float | None = None
    device_bytes: int | None = None
    schema_version: int = SCHEMA_VERSION

    def publish(self, path: Path) -> bool:
        """Create the file; False if one is there already (the first wins)."""
        return create_json(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> "Record":
        value = read_json(path)
        return cls.from_json(value, path)

    @classmethod
    def from_json(cls, value: Any, where: Path) -> "Record":
        version = value.get("schema_version") if isinstance(value, dict) else None
        if version != SCHEMA_VERSION:
            raise UserError(
                f"{where}: schema version {version}, this code reads {SCHEMA_VERSION}; collect it with that code"
            )
        missing = [f.name for f in fields(cls) if f.name not in value and f.default is MISSING]
        if missing:
            raise UserError(f"{where}: damaged record (no {', '.join(missing)}); delete it to train the trial again")
        given = {f.name: value[f.name] for f in fields(cls) if f.name in value}
        wrong = [f.name for f in fields(cls) if f.name in given and not _fits(given[f.name], f.type)]
        if wrong or value["status"] not in ("finished", "diverged"):
            name = wrong[0] if wrong else "status"
            raise UserError(f"{where}: damaged record ({name}={value[name]!r}); delete it to train the trial again")
        return cls(**given)


def _fits(value: Any, kind: Any) -> bool:
    """Whether a JSON value is of an annotated type, the types inside lists and dicts aside."""
    if isinstance(kind, UnionType):
        return any(_fits(value, one) for one in get_args(kind))
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, get_origin(kind) or kind)
