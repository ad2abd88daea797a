"""From overrides to the config of every point of a grid.

Axes are Hydra overrides in Hydra's sweep grammar, from `conf/sweep/*.yaml` and the command line. Hydra composes once
per combination of group choices (65 ms each); values are then laid over the composed sections, so that 1,000 points
take seconds.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sweep.common.checkout import CONF
from sweep.common.errors import UserError
from sweep.config.compose import compose_untyped, scalar, section, typed
from sweep.config.overrides import GROUPS, check_overrides, parse
from sweep.config.schema import Config

NOT_OF_A_TRIAL = ("run", "cluster", "wandb", "paths", "sweep")  # the same for a whole sweep, so no axis


@dataclass
class Point:
    """One point of the grid: the overrides that make it, and its config."""

    overrides: list[str]
    config: Config


def grid(overrides: list[str]) -> Iterator[Point]:
    """Every point of the grid, in the order of its axes, the last one fastest."""
    check_overrides(overrides, CONF)
    fixed, axes = _split(overrides)
    said = {parse(text, CONF).key_or_group for text in overrides}
    axes = {**_sweep_axes(fixed, said), **axes}
    for key in axes:
        if key.partition(".")[0] in NOT_OF_A_TRIAL:
            raise UserError(f"{key}: is the same for all trials of a sweep, so no axis; give it one value")
        if key == "optim.lr_base":  # rows of several rules would look alike, each at its own 1 ×
            raise UserError(f"{key}: is the rule's own, so no axis; to tune, take optim.lr_multiplier=0.5,1,2")
    group_axes = {key: values for key, values in axes.items() if key in GROUPS}
    value_axes = {key: values for key, values in axes.items() if key not in group_axes}
    composed = {
        choice: Composed(compose_untyped([*fixed, *choice]))
        for choice in itertools.product(*(_assignments(key, values) for key, values in group_axes.items()))
    }
    for combination in itertools.product(*(_assignments(key, values) for key, values in axes.items())):
        choice = tuple(text for key, text in zip(axes, combination, strict=True) if key in group_axes)
        values = [text for key, text in zip(axes, combination, strict=True) if key in value_axes]
        point = Point(list(combination), composed[choice].with_values(values))
        _refuse_another_budget(point.config, said)
        yield point


class Composed:
    """One composition, and the configs that differ from it in values only; each section is checked once."""

    def __init__(self, raw: DictConfig):
        self.raw = raw
        self.base = typed(raw)
        self.sections: dict[tuple[str, ...], Any] = {}

    def with_values(self, assignments: list[str]) -> Config:
        by_section: dict[str, list[str]] = defaultdict(list)
        for assignment in assignments:
            by_section[assignment.partition("=")[0].partition(".")[0]].append(assignment)
        changed = {name: self._changed(name, texts) for name, texts in by_section.items()}
        return Config(**{**vars(self.base), **changed})

    def _changed(self, name: str, assignments: list[str]) -> Any:
        key = (name, *assignments)
        if key not in self.sections:
            self.sections[key] = lay_over(self.raw, name, assignments)
        return self.sections[key]


def lay_over(raw: DictConfig, name: str, assignments: list[str]) -> Any:
    if name not in raw:
        raise UserError(f"{assignments[0]}: unknown key; valid keys: {', '.join(map(str, raw))}")
    changed = OmegaConf.create({name: raw[name]})
    for assignment in assignments:
        parsed = parse(assignment, CONF)
        try:
            OmegaConf.update(changed, parsed.key_or_group, parsed.value())
        except OmegaConfBaseException as error:
            raise UserError(f"{assignment}: {str(error).splitlines()[0]}") from error
    value = changed[name]
    return section(name, value) if isinstance(value, DictConfig) else scalar(name, value)


def composed_grid(overrides: list[str]) -> DictConfig:
    """The config of the whole grid: what holds for every point, its axes under `sweep.axes`."""
    check_overrides(overrides, CONF)
    fixed, axes = _split(overrides)
    raw = compose_untyped(fixed)
    raw["sweep"]["axes"] = {**raw["sweep"]["axes"], **{key: ",".join(values) for key, values in axes.items()}}
    return raw


def _split(overrides: list[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Overrides that hold for every point, and axes with their values as text."""
    fixed, axes = [], {}
    for text in overrides:
        override = parse(text, CONF)
        if override.is_sweep_override():
            axes[override.key_or_group] = _values(override)
        else:
            fixed.append(text)
    return fixed, axes


def _sweep_axes(fixed: list[str], said: set[str]) -> dict[str, list[str]]:
    """The axes of `sweep=…`, less those that the command line says itself."""
    raw = compose_untyped(fixed)
    axes = {}
    for key, values in section("sweep", raw["sweep"]).axes.items():
        if key not in said:
            text = ",".join(map(str, values)) if isinstance(values, list) else str(values)
            override = parse(f"{key}={text}", CONF)
            axes[key] = _values(override) if override.is_sweep_override() else [text]
    return axes


def _refuse_another_budget(config: Config, said: set[str]) -> None:
    """A budget on the command line beside one of another kind that the sweep gives: only the sweep's can be meant."""
    given = {f"budget.{key}" for key, value in vars(config.budget).items() if value is not None}
    asked = given & said
    if asked and given > asked:
        null = " ".join(f"{key}=null" for key in sorted(given - asked))
        raise UserError(f"{', '.join(sorted(asked))}: the sweep gives another budget; null its own: {null}")


def _values(override: Override) -> list[str]:
    try:
        return [_short_float(text) for text in override.sweep_string_iterator()]
    except HydraException as error:
        raise UserError(f"{override.input_line}: not a list of values; write key=a,b,c or key=range(…)") from error


def _short_float(text: str) -> str:
    """Hydra writes 3e11 as 300000000000.0; as people write it, where that is the same number."""
    try:
        short = f"{float(text):g}".replace("e+", "e")
    except ValueError:
        return text
    return short if "." in text and float(short) == float(text) else text


def _assignments(key: str, values: list[str]) -> list[str]:
    return [f"{key}={value}" for value in values]
