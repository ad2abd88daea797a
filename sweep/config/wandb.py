"""The config section `wandb`: whether a sweep is mirrored to W&B, where to, and how often."""

import re
from dataclasses import dataclass

from sweep.common.errors import UserError
from sweep.common.validate import one_of

MODES = ("auto", "online", "offline", "off")


@dataclass
class WandbSection:
    """Holds for a whole sweep; never part of a trial."""

    mode: str = "auto"
    project: str = "scaling-sweeps"
    entity: str | None = None
    every_seconds: float = 10.0
    patience_seconds: float = 30.0

    def __post_init__(self) -> None:
        """Refuse what W&B would refuse, and impossible times."""
        one_of("wandb.mode", self.mode, MODES)
        if not re.fullmatch(r"[^/\\#?%:]{1,128}", self.project):
            raise UserError(f"wandb.project={self.project}: up to 128 characters, none of / \\ # ? % :")
        for key in ("every_seconds", "patience_seconds"):
            if not getattr(self, key) > 0:
                raise UserError(f"wandb.{key}={getattr(self, key)}: must be positive")
