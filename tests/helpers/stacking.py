"""Training a plan's families in one stack, without a worker around it."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch

from sweep.data.tokens import Tokens
from sweep.plan.plan import Plan
from sweep.plan.trial import Trial
from sweep.runs import environment
from sweep.runs.progress import Progress
from sweep.train.family import Family
from sweep.train.setup import Setup
from sweep.train.stack import Stack
from sweep.train.stack_scheduler import StackScheduler

torch.set_num_threads(1)


def setup_of(plan: Plan, trial: Trial, slots: int | None = None, model=None, **options) -> Setup:
    chosen = dataclasses.replace(plan.config.run, **options)
    described = environment.describe("cpu", "sdpa", chosen, slots)
    tokens = Tokens.open(plan.config.paths.tokens, trial.config.data.fingerprint)
    return Setup.of(trial, tokens, chosen, "cpu", "sdpa", described.execution_class, shared_model=model)


class Owner:
    """Notes how its family went."""

    def __init__(self, should_stop: Callable[[], bool]) -> None:
        self.should_stop = should_stop
        self.failures: list[str] = []
        self.outcomes: list[str] = []

    def hear(self, progress: Progress) -> None:
        pass

    def fail(self, trial: Trial, error: Exception) -> None:
        self.failures.append(f"{trial.trial_id}: {error}")

    def end(self, outcome: str) -> None:
        self.outcomes.append(outcome)


def train(
    plan: Plan, runs: Path, slots: int, should_stop: Callable[[], bool] = lambda: False, **options
) -> dict[str, tuple[bool, list[str]]]:
    """By family: whether it was stopped, and its failures."""
    stack = Stack(setup_of(plan, plan.trials[0], slots, **options), slots)
    described = environment.describe("cpu", "sdpa", stack.setup.options, slots)
    owners = {trials[0].family_id: Owner(should_stop) for trials in plan.families()}
    families = (
        Family(
            setup=setup_of(plan, trials[0], slots, stack.scratch_model, **options),
            trials=trials,
            runs=runs,
            environment=described,
            owner=owners[trials[0].family_id],
            asked=stack.setup.options,
        )
        for trials in plan.families()
    )
    StackScheduler(stack, lambda: next(families, None)).train()
    assert [len(owner.outcomes) for owner in owners.values()] == [1] * len(owners)  # each ends, once
    return {family_id: (owner.outcomes == ["stopped"], owner.failures) for family_id, owner in owners.items()}
