"""A key of the configuration: its default, its meaning and its choices, said once, in a dataclass."""

from dataclasses import field
from typing import Any


def key(default: Any, meaning: str, choices: tuple[str, ...] = ()) -> Any:
    """A field of a dataclass. A default such as `list` is called, so that every config has one of its own. `choices`
    are the only words that the key takes; what its type allows besides words (numbers, null) is not listed there."""
    metadata = {"meaning": meaning, "choices": choices}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)
