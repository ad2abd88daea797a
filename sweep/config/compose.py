"""What people write: the schema of `conf/`, composed by Hydra and checked key by key.

`compose` turns overrides into a `Config`; each section checks its own values when it is made. Nothing here is resolved
yet: sizes may be "1M", a learning rate may follow a rule. `sweep.plan.trial` turns a `Config` into the numbers that
define a trial.
"""

from dataclasses import MISSING, fields, is_dataclass
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, ConfigTypeError, OmegaConfBaseException, ValidationError

from sweep.common.checkout import CONF
from sweep.common.errors import UserError
from sweep.common.validate import one_of
from sweep.config.explain import explain_file, explain_yaml
from sweep.config.overrides import check_key, check_overrides, for_hydra, suggest
from sweep.config.schema import Config
from sweep.data.prepare import SCHEMAS

_KINDS: dict[str, type] = get_type_hints(Config)
_SECTIONS = [name for name, kind in _KINDS.items() if is_dataclass(kind)]
_SCALARS = [name for name in _KINDS if name not in _SECTIONS]
OFF_IS_A_WORD = ("run.stack", "wandb.mode")  # YAML reads it as false
_EXPECTED = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def compose(overrides: list[str]) -> Config:
    """The config that `conf/train.yaml` and these Hydra overrides say; UserError on anything unknown."""
    return typed(compose_untyped(overrides))


def compose_untyped(overrides: list[str]) -> DictConfig:
    """Hydra's composition, with the schema's defaults below it. UserError in one line for whatever is unknown."""
    check_overrides(overrides, CONF)
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
            raw = _over_defaults(hydra_compose("train", overrides=for_hydra(overrides)))
        OmegaConf.resolve(raw)
    except yaml.MarkedYAMLError as error:
        raise UserError(explain_yaml(error, CONF)) from error
    except (HydraException, OmegaConfBaseException) as error:
        one_line = " ".join((str(error) or str(error.__cause__)).split())
        raise UserError(explain_file(one_line, CONF) or one_line or repr(error)) from error
    _check_together(overrides, raw)
    return raw


def _over_defaults(raw: DictConfig) -> DictConfig:
    """A composed config laid over the defaults of the schema, so that every key is there."""
    full: dict[str, Any] = {field.name: field.default for field in fields(Config) if field.default is not MISSING}
    for name in _SECTIONS:
        if isinstance(written := raw.get(name), DictConfig | None):
            kind = _data_schema(written) if name == "data" else _KINDS[name]
            try:
                full[name] = OmegaConf.merge(OmegaConf.to_container(OmegaConf.structured(kind)), written or {})
            except ConfigTypeError as error:
                raise UserError(f"{name}: a list stands where lines of `key: value` belong, or they for it") from error
    written_keys = {str(name): raw._get_node(name) for name in raw if name not in full or name in _SCALARS}
    return OmegaConf.create({**full, **written_keys})


def _check_together(overrides: list[str], raw: DictConfig) -> None:
    """What an override or a file cannot mean beside the others."""
    for text in overrides:
        key = text.lstrip("+~").partition("=")[0]
        if key.startswith("data."):
            check_key(text, key, _data_schema(raw["data"]))
        if text.startswith("cluster.slurm.") and raw["cluster"]["scheduler"] != "slurm":
            scheduler = f"cluster.scheduler={raw['cluster']['scheduler']}"
            raise UserError(f"{text}: holds for a Slurm cluster, and {scheduler}; choose one, such as cluster=slurm")
    chosen = [text.partition("=")[2] for text in overrides if text.startswith("sweep=")]
    if chosen and OmegaConf.is_dict(raw["sweep"]) and "sweep" in raw["sweep"]:  # its file was laid under `sweep`
        raise UserError(f"conf/sweep/{chosen[-1]}.yaml: must begin with the line `# @package _global_`; add it")


def typed(raw: DictConfig) -> Config:
    """Each section of a composed config through its schema."""
    unknown = next((str(key) for key in raw if key not in _KINDS), None)
    if unknown is not None:
        raise UserError(f"{unknown}: unknown key; {suggest(unknown, list(_KINDS))}")
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
        raise UserError(f"{head}.{key}: unknown key; {suggest(key, _names(_inside(schema, head)), head)}") from error
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
