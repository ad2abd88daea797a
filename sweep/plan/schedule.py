"""Learning-rate schedules as functions of the step, and where a trial leaves its family's trunk."""

import math
from dataclasses import dataclass


@dataclass
class Schedule:
    """Resolved to steps. `decay_fraction` of a trial's steps decay; before them the budgets of a family agree."""

    name: str  # wsd | cosine
    warmup_steps: int
    decay_fraction: float
    final_lr_fraction: float

    def branch_step(self, steps: int) -> int:
        """The first step whose learning rate depends on the budget: 0 for cosine, which shares nothing."""
        return 0 if self.name == "cosine" else steps - round(self.decay_fraction * steps)

    def lr_factor(self, step: int, steps: int) -> float:
        """The factor on the peak learning rate for update number `step` (from 0) of `steps`.

        Warm-up is linear. WSD (Hu et al. 2024, arXiv 2404.06395) then holds the peak and falls linearly to
        `final_lr_fraction` after the branch; cosine falls over all steps past the warm-up.
        """
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.name == "cosine":
            progress = (step - self.warmup_steps) / max(1, steps - self.warmup_steps)
            shape = 0.5 * (1 + math.cos(math.pi * progress))
        else:
            branch = self.branch_step(steps)
            if step < branch:
                return 1.0
            shape = (steps - step) / (steps - branch)
        return self.final_lr_fraction + (1 - self.final_lr_fraction) * shape
