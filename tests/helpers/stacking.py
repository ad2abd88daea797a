"""Training a plan's families in one stack, without a worker around it."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from sweep.data.tokens import Tokens
from sweep.plan.plan import Plan
from sweep.plan.trial import Trial
from sweep.runs import environment
from sweep.train.family import Family
from sweep.train.setup import Setup
from sweep.train.stack import Stack
from sweep.train.stack_scheduler import Member, StackScheduler

torch.set_num_threads(1)


def setup_of(plan: Plan, trial: Trial, slots: int | None = None, model=None, **options) -> Setup:
    chosen = dataclasses.replace(plan.config.run, **options)
    env = environment.describe("cpu", "sdpa", dataclasses.asdict(chosen), slots)
    tokens = Tokens.open(plan.config.paths.tokens, trial.config.data.fingerprint)
    return Setup.of(trial, tokens, chosen, "cpu", "sdpa", execution_class=env["execution_class"], shared_model=model)


def train(
    plan: Plan, runs: Path, slots: int, should_stop: Callable[[], bool] = lambda: False, **options
) -> dict[str, tuple[bool, list[str]]]:
    """By family: whether it was stopped, and its failures."""
    stack = Stack(setup_of(plan, plan.trials[0], slots, **options), slots)
    env = environment.describe("cpu", "sdpa", dataclasses.asdict(stack.setup.options), slots)
    ended = {}

    def members() -> Iterator[Member]:
        for trials in plan.families():
            family = Family(
                setup=setup_of(plan, trials[0], slots, stack.scratch_model, **options),
                trials=trials,
                runs=runs,
                env=env,
                should_stop=should_stop,
                on_progress=lambda news: None,
                asked=stack.setup.options,
            )
            yield Member(family, failed=lambda trial, error: f"{trial.trial_id}: {error}", ended=note)

    def note(member: Member) -> None:
        ended[member.family.family_id] = (member.stopped, member.failures)

    waiting = members()
    StackScheduler(stack, lambda: next(waiting, None)).train()
    return ended
