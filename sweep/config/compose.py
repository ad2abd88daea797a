"""What people write: the schema of `conf/`, composed by Hydra and checked key by key.

`compose` turns overrides into a `Config`; each section checks its own values when it is made. Nothing here is resolved
yet: sizes may be "1M", a learning rate may follow a rule. `sweep.plan.trial` turns a `Config` into the numbers that
define a trial.
"""

import difflib
from dataclasses import fields, is_dataclass
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException, ValidationError

from sweep.common.checkout import CONF
from sweep.common.errors import UserError
from sweep.common.validate import one_of
from sweep.config.explain import explain_file, explain_override, explain_yaml
from sweep.config.schema import Config
from sweep.data.prepare import SCHEMAS

_KINDS: dict[str, type] = get_type_hints(Config)
_SECTIONS = [name for name, kind in _KINDS.items() if is_dataclass(kind)]
_SCALARS = [name for name in _KINDS if name not in _SECTIONS]
OFF_IS_A_WORD = ("run.stack", "wandb.mode")  # YAML reads it as false
FREE_MAPPINGS = ("cluster.slurm.environment",)  # their keys are people's own
_EXPECTED = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def compose(overrides: list[str]) -> Config:
    """The config that `conf/train.yaml` and these Hydra overrides say; UserError on anything unknown."""
    return typed(compose_untyped(overrides))


def compose_untyped(overrides: list[str]) -> DictConfig:
    """Hydra's composition alone, its errors made into one line."""
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
            raw = hydra_compose("train", overrides=with_free_keys(overrides))
        OmegaConf.resolve(raw)
    except yaml.MarkedYAMLError as error:
        raise UserError(explain_yaml(error, CONF)) from error
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise UserError(_explain_composition(error, overrides)) from error
    chosen = [text.partition("=")[2] for text in overrides if text.startswith("sweep=")]
    if chosen and OmegaConf.is_dict(raw["sweep"]) and "sweep" in raw["sweep"]:  # its file was laid under `sweep`
        raise UserError(f"conf/sweep/{chosen[-1]}.yaml: must begin with the line `# @package _global_`; add it")
    return raw


def with_free_keys(overrides: list[str]) -> list[str]:
    """The overrides, with Hydra's ++ where one may name new keys: its composition knows those of a file only."""
    return [f"++{text}" if text.startswith(FREE_MAPPINGS) else text for text in overrides]


def typed(raw: DictConfig) -> Config:
    """Each section of a composed config through its schema."""
    unknown = next((str(key) for key in raw if key not in _KINDS), None)
    if unknown is not None:
        raise UserError(f"{unknown}: unknown key; {_suggest(unknown, list(_KINDS))}")
    sections = {name: section(name, raw[name]) for name in _SECTIONS}
    scalars = {name: scalar(name, raw[name]) for name in _SCALARS}
    return Config(**sections, **scalars)


def section(name: str, raw: Any) -> Any:
    """One section as its dataclass: unknown keys and wrong types are refused with the key and the value."""
    if not isinstance(raw, DictConfig | dict):
        raise UserError(f"{name}={raw}: is a section; give its keys, such as {name}.{_names(_KINDS[name])[0]}")
    schema = _data_schema(raw) if name == "data" else _KINDS[name]
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), raw, _off(name, raw)))
    except ConfigKeyError as error:
        head, _, key = f"{name}.{error.full_key}".rpartition(".")
        raise UserError(f"{head}.{key}: unknown key; {_suggest(key, _names(_inside(schema, head)), head)}") from error
    except ValidationError as error:
        raise UserError(_explain_value(schema, f"{name}.{error.full_key}", raw, error)) from error
    except OmegaConfBaseException as error:
        raise UserError(f"{name}: {str(error).splitlines()[0]}") from error


def _off(name: str, raw: Any) -> dict[str, str]:
    """The word where YAML read it as false."""
    keys = [key.partition(".")[2] for key in OFF_IS_A_WORD if key.partition(".")[0] == name]
    return {key: "off" for key in keys if key in raw and raw[key] is False}


def scalar(name: str, value: Any) -> Any:
    """One of the keys that belong to no section, if it is of its kind."""
    kind = _KINDS[name]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise UserError(f"{name}={value}: must be {'a whole number' if kind is int else 'a word'}")
    return value


def _data_schema(raw: Any) -> type:
    source = raw.get("source")
    one_of("data.source", source, tuple(SCHEMAS))
    return SCHEMAS[str(source)]


def _suggest(key: str, valid: list[str], section: str = "") -> str:
    close = difflib.get_close_matches(key.split(".")[-1], valid, n=1)
    meant = f"{section}.{close[0]}" if close and section else "".join(close)
    return (f"did you mean {meant}? " if meant else "") + f"valid keys: {', '.join(valid)}"


def _explain_value(schema: type, key: str, raw: Any, error: ValidationError) -> str:
    """A value that its key's type does not take; in OmegaConf's words where that is not one of the plain types."""
    head, _, leaf = key.rpartition(".")
    owner = _inside(schema, head)
    kind = get_type_hints(owner).get(leaf) if owner is not None else None
    options = get_args(kind) or (kind,)
    expected = [_EXPECTED[option] for option in options if option in _EXPECTED]
    value = OmegaConf.select(raw, key.partition(".")[2]) if isinstance(raw, DictConfig) else None
    if get_origin(kind) is list and isinstance(value, str):
        return f"{key}={value}: must be a list; write \"{key}=['{value}']\", in a file {leaf}: ['{value}']"
    if get_origin(kind) is dict and value is not None:
        return f"{key}={value}: must be lines of `key: value`"
    if not expected or value is None:
        return f"{key}: {str(error).splitlines()[0]}"
    return f"{key}={value}: must be {expected[0]}{' or null' if NoneType in options else ''}"


def _explain_composition(error: Exception, overrides: list[str]) -> str:
    """Hydra names the key deep inside a multi-line text; say which override it was and what there is instead."""
    text = str(error)
    if isinstance(error, OverrideParseException):
        return explain_override(str(error.override))
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        group = CONF / key
        if group.is_dir() and not (group / f"{value}.yaml").exists():
            options = sorted(path.stem for path in group.glob("*.yaml"))
            return f"{override}: no such option; conf/{key}/ has {', '.join(options)}"
        if f"'{key}'" not in text and f"'{override}'" not in text:
            continue
        if "Could not override" in text or "not in struct" in text:
            head, _, leaf = key.rpartition(".")
            top = key.partition(".")[0]
            known = _keys_at(head, overrides)
            if leaf in known:
                return (
                    f"{override}: the file chosen of conf/{top}/ does not have it; add it there, or write +{override}"
                )
            while not known:  # what it was looked for in is no section itself
                head, _, leaf = head.rpartition(".")
                known = _keys_at(head, overrides)
            said = _suggest(leaf, known, head)
            return f"{override}: unknown key; {said}"
    one_line = " ".join((text or str(error.__cause__)).split())
    return explain_file(one_line, CONF) or one_line or repr(error)


def _keys_at(path: str, overrides: list[str]) -> list[str]:
    """The keys below a dotted path of the config; those of `data` are the chosen source's."""
    section_name = path.partition(".")[0]
    if path == "":
        return list(_KINDS)
    if section_name == "data":
        choices = [text for text in overrides if (CONF / text.partition("=")[0]).is_dir()]
        return _names(_inside(_data_schema(compose_untyped(choices)["data"]), path))
    return _names(_inside(_KINDS[section_name], path)) if section_name in _SECTIONS else []


def _inside(schema: type, path: str) -> type | None:
    """The dataclass at a dotted path, whose first part names `schema`; None where that is no section."""
    for name in path.split(".")[1:]:
        found = {f.name: f.type for f in fields(schema)}.get(name) if is_dataclass(schema) else None
        if not isinstance(found, type):
            return None
        schema = found
    return schema


def _names(schema: type | None) -> list[str]:
    return [f.name for f in fields(schema)] if is_dataclass(schema) else []
