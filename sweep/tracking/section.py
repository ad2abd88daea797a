"""The config section `wandb`: whether a sweep is mirrored to W&B, where to, and how often."""

import re
from dataclasses import dataclass

from sweep.errors import UserError

MODES = ("auto", "online", "offline", "off")


@dataclass
class WandbSection:
    """Holds for a whole sweep; never part of a trial."""

    mode: str = "auto"
    project: str = "scaling-sweeps"
    entity: str | None = None
    every_seconds: float = 10.0
    patience_seconds: float = 30.0


def check(section: WandbSection) -> None:
    """Refuse what W&B would refuse, and impossible times, with the key and the value."""
    if section.mode == "False":
        section.mode = "off"  # as YAML reads that word
    if section.mode not in MODES:
        raise UserError(f"wandb.mode={section.mode}: must be one of {', '.join(MODES)}")
    if not re.fullmatch(r"[^/\\#?%:]{1,128}", section.project):
        raise UserError(f"wandb.project={section.project}: up to 128 characters, none of / \\ # ? % :")
    if not section.every_seconds > 0:
        raise UserError(f"wandb.every_seconds={section.every_seconds}: must be positive")
    if not section.patience_seconds > 0:
        raise UserError(f"wandb.patience_seconds={section.patience_seconds}: must be positive")
