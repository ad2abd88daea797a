"""The schema for readers: every key in a line, and as JSON Schema, with which editors complete and check `conf/`."""

import types
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass, replace
from typing import Any, get_args, get_origin, get_type_hints

from sweep.config.overrides import GROUPS
from sweep.config.schema import Config
from sweep.data.prepare import SCHEMAS

JSON_TYPES = {int: "integer", float: "number", bool: "boolean", str: "string", types.NoneType: "null"}
WORDS = {int: "whole number", float: "number", bool: "true|false", str: "text", types.NoneType: "null"}
Schema = dict[str, Any]  # JSON Schema, draft 7


@dataclass(frozen=True)
class KeyFacts:
    """What is to be known about one key. `sources` are the data sources that have it; empty outside of `data`."""

    key: str
    type: str
    default: object
    meaning: str
    sources: tuple[str, ...] = ()


def all_keys() -> list[KeyFacts]:
    """Every key of the configuration, in the order of the schema; those of `data` from all sources."""
    return [facts for facts in _keys_of(Config, "") if not facts.key.startswith("data.")] + _keys_of_data()


def _keys_of_data() -> list[KeyFacts]:
    by_key: dict[tuple[str, str], list[str]] = {}
    found: dict[tuple[str, str], KeyFacts] = {}
    for source, kind in SCHEMAS.items():
        for facts in _keys_of(kind, "data."):
            same = (facts.key, repr(facts.default))
            found.setdefault(same, facts)
            by_key.setdefault(same, []).append(source)
    return [replace(facts, sources=tuple(by_key[same])) for same, facts in sorted(found.items())]


def _keys_of(kind: type, above: str) -> Iterator[KeyFacts]:
    hints = get_type_hints(kind)
    for field in fields(kind):
        hint, key = hints[field.name], f"{above}{field.name}"
        if is_dataclass(hint):
            start = _default(field) if field.default_factory is not MISSING else None
            for facts in _keys_of(hint, f"{key}."):  # type: ignore[arg-type]
                default = getattr(start, facts.key.removeprefix(f"{key}."), facts.default)
                yield KeyFacts(
                    facts.key, facts.type, facts.default if is_dataclass(default) else default, facts.meaning
                )
        else:
            yield KeyFacts(key, _type_in_words(field, hint), _default(field), field.metadata.get("meaning", ""))


def _default(field: "Field[Any]") -> Any:
    return field.default_factory() if field.default_factory is not MISSING else field.default


def _type_in_words(field: "Field[Any]", hint: Any) -> str:
    if choices := field.metadata.get("choices", ()):
        return "|".join(choices) + ("|number" if hint is Any else "")
    if get_origin(hint) is list:
        return "list"
    if get_origin(hint) is dict:
        return "mapping"
    options = get_args(hint) or (hint,)
    return "|".join(WORDS[option] for option in options if not (option is int and float in options))


# ---- JSON Schema ----


def json_schemas() -> dict[str, Schema]:
    """File name in conf/schema/ → the JSON Schema of one kind of file of `conf/`."""
    config = _object(Config)
    config["properties"]["data"] = _data()
    defaults = {"type": "array", "description": "Hydra's defaults list: which options this file builds on"}
    schemas = {}
    for name in ("train", *GROUPS):
        schema = config if name in ("train", "sweep") else config["properties"][name]
        properties = {"defaults": defaults, **schema["properties"]}
        draft = "http://json-schema.org/draft-07/schema#"
        schemas[f"{name}.json"] = {"$schema": draft, "title": f"conf/{name}", **schema, "properties": properties}
    return schemas


def _data() -> Schema:
    """The keys of all sources together: which of them a file may have depends on the source that it names."""
    properties: Schema = {}
    for kind in SCHEMAS.values():
        for name, property_schema in _object(kind)["properties"].items():
            properties.setdefault(name, {key: value for key, value in property_schema.items() if key != "default"})
    properties["source"] = {"enum": list(SCHEMAS), "description": "which reader of conf/data"}
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _object(kind: type) -> Schema:
    hints = get_type_hints(kind)
    properties = {field.name: _property(field, hints[field.name]) for field in fields(kind)}
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _property(field: "Field[Any]", hint: Any) -> Schema:
    if is_dataclass(hint):
        return _object(hint)  # type: ignore[arg-type]
    schema: Schema = {"description": field.metadata.get("meaning", ""), **_type(hint)}
    if choices := field.metadata.get("choices", ()):
        schema = {key: value for key, value in schema.items() if key != "type"}
        words: Schema = {"enum": [*choices, *([False] if "off" in choices else [])]}  # YAML reads off as false
        schema |= {"anyOf": [words, {"type": ["number", "null"]}]} if hint is Any else words
    default = _default(field)
    return schema if default is MISSING else {**schema, "default": default}


def _type(hint: Any) -> Schema:
    if hint is Any:
        return {}
    if get_origin(hint) is list:
        return {"type": "array", "items": _type(get_args(hint)[0])}
    if get_origin(hint) is dict:
        return {"type": "object"}
    kinds = [JSON_TYPES[option] for option in (get_args(hint) or (hint,))]
    return {"type": kinds[0] if len(kinds) == 1 else kinds}
