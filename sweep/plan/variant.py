"""The config of a trial that was planned or trained before, with overrides laid over it."""

from omegaconf import OmegaConf

from sweep.config.compose import compose_untyped
from sweep.config.overrides import GROUPS
from sweep.config.schema import Config
from sweep.plan.grid import Composed
from sweep.plan.trial import Trial


def variant(trial: Trial, overrides: list[str]) -> Config:
    """The config that a trial was written as, with Hydra overrides (values or group choices) laid over it."""
    groups = [override for override in overrides if override.partition("=")[0] in GROUPS]
    values = [override for override in overrides if override not in groups]
    chosen = {group.partition("=")[0] for group in groups}
    written = {name: value for name, value in trial.written.as_config().items() if name not in chosen}
    if any(value.startswith("budget.") for value in values):
        written["budget"] = dict.fromkeys(vars(trial.written.budget))
    raw = OmegaConf.to_container(compose_untyped([f"model={trial.written.model.name}", *groups]))
    assert isinstance(raw, dict)
    if "model" in written:
        written["model"] = {**raw["model"], **written["model"]}
    return Composed(OmegaConf.create({**raw, **written})).with_values(values)
