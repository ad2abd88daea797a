"""What is told of a trial while it is trained."""

from dataclasses import dataclass

from sweep.runs.metrics import MetricsRow


@dataclass(frozen=True)
class Progress:
    """How far a trial is. Until its branch its steps are the trunk's, which is trained for it."""

    trial_id: str
    steps: int  # of the whole trial
    step: int  # done
    row: MetricsRow | None = None  # where this step has one
    tokens_per_second: float | None = None  # of this row: the trial's share, where several are trained together

    @property
    def loss_nats(self) -> float | None:
        """Of this row: on the validation text where it was measured, else on the batches."""
        return (self.row.val_loss_nats or self.row.train_loss_nats) if self.row else None
