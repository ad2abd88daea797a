"""How a trial ended for good: one JSON file, published once, never changed."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from sweep.common import artefacts
from sweep.common.errors import UserError
from sweep.common.files import create_json
from sweep.runs.rundir import SCHEMA_VERSION

Ending = Literal["finished", "diverged"]
MEND = "delete it to train the trial again"


@dataclass(frozen=True)
class Record:
    """The result of a finished or diverged trial. Losses are in nats per token, and None where there is none.

    `wall_seconds` is the time from the trial's first step to its last, including the trunk. `own_seconds` leaves out
    the `shared_steps` that the trunk trained. In a stack both are the trial's share of the stack's time.
    `tokens_per_second` is the throughput of the device while it trained, of all trials of a stack together. `mfu` is
    that throughput in exact FLOPs, divided by `flops_ceiling`, the FLOPs per second that matrix products were measured
    to reach on this device. `device_bytes` is the peak GPU memory of tensors, of the whole stack in a stack.
    `intrinsic_dimension` is measured on the final layer's activations at `dimension_points` positions of the
    validation set. Fields with a default came later than the first records, which may lack them.
    """

    trial_id: str
    family_id: str
    status: Ending
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
        """Create the file; False if there is one already, which stays."""
        return create_json(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> "Record":
        """The record in a file. UserError where it is of another schema version, or damaged."""
        try:
            content = path.read_bytes()
        except FileNotFoundError as error:
            raise UserError(f"{path}: no such file") from error
        artefacts.check_version(content, path, SCHEMA_VERSION, "collect it with that code", MEND)
        return artefacts.decode(cls, content, path, MEND)
