"""What people add on the command line, checked against the schema before Hydra composes anything.

`model=gpt2` chooses an option of a group, which is a file of `conf/model/`; `model.depth=3` sets a key.
"""

from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from sweep.common.errors import UserError
from sweep.common.guess import did_you_mean
from sweep.config.schema import Config

GROUPS = ("model", "data", "optim", "schedule", "run", "cluster", "sweep")  # folders of conf/
FREE_MAPPINGS = ("cluster.slurm.environment", "sweep.axes")  # the keys below are people's own


def parse(text: str, conf: Path) -> Override:
    """An override in Hydra's grammar. UserError says how to write it where it is none."""
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException as error:
        key, equals, _ = text.partition("=")
        if not (key and equals):
            found = [group for group in reversed(GROUPS) if (conf / group / f"{text}.yaml").exists()]
            meant = f"did you mean {found[0]}={text}? " if found else ""
            said = f"{text}: not an override; {meant}write key=value, or key=a,b,c for an axis"
        else:
            how = f"\"{key}='…'\", in a list \"{key}=['…']\""
            said = f"{text}: not an override; quote a value that is no plain word: {how}"
        raise UserError(said) from error


def check_overrides(overrides: list[str], conf: Path) -> None:
    """UserError for the first override whose option or key is unknown. The keys of `data` depend on the source that is
    chosen, so `check_key` looks at them when that is known."""
    for text in overrides:
        override = parse(text, conf)
        if override.key_or_group in GROUPS:
            _check_option(text, override, conf / override.key_or_group)
        elif not override.key_or_group.startswith("data."):
            check_key(text, override.key_or_group)


def for_hydra(overrides: list[str]) -> list[str]:
    """The same for Hydra, which knows only the keys of its files unless one writes ++ before them."""
    plain = [text.startswith(("+", "~", "hydra")) or text.partition("=")[0] in GROUPS for text in overrides]
    return [text if is_plain else f"++{text}" for text, is_plain in zip(overrides, plain, strict=True)]


def check_key(said: str, key: str, data: type | None = None) -> None:
    """UserError that begins with what was `said` unless the schema has this dotted key; `data` is the source's type."""
    kind: Any = Config
    above = ""
    for name in key.split("."):
        if above in FREE_MAPPINGS:
            return
        if not is_dataclass(kind):
            raise UserError(f"{said}: unknown key; {above} has no keys below it")
        known = get_type_hints(kind)
        if name not in known:
            raise UserError(f"{said}: unknown key; {suggest(name, list(known), above)}")
        above = f"{above}.{name}" if above else name
        kind = data if above == "data" and data is not None else known[name]


def suggest(name: str, known: list[str], section: str = "") -> str:
    """The key that a misspelt one may be, and all that there are beside it."""
    as_written = f"{section}.{{}}" if section else "{}"
    return did_you_mean(name, known, as_written) + f"valid keys: {', '.join(known)}"


def option_unknown(group: str, name: str, folder: Path) -> str:
    """One line for an option that a group does not have."""
    options = sorted(path.stem for path in folder.glob("*.yaml"))
    meant = did_you_mean(name, options, f"{group}={{}}")
    return f"{group}={name}: no such option; {meant}conf/{group}/ has {', '.join(options)}"


def _check_option(text: str, override: Override, folder: Path) -> None:
    if override.is_sweep_override() or override.is_delete():
        return
    value = override.value()
    if value is not None and not isinstance(value, list) and not (folder / f"{value}.yaml").exists():
        raise UserError(option_unknown(override.key_or_group, str(value), folder))
