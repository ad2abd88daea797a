"""Checks that config sections share: UserError with the key, the value, and what would be valid."""

from math import inf
from typing import Any

from sweep.common.errors import UserError


def one_of(key: str, value: Any, valid: tuple[str, ...]) -> None:
    if value not in valid:
        raise UserError(f"{key}={value}: must be one of {', '.join(valid)}")


def at_least(key: str, value: float, least: float) -> None:
    if not least <= value < inf:
        raise UserError(f"{key}={value}: must be at least {least}{', and finite' if value == inf else ''}")


def between(key: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise UserError(f"{key}={value}: must be between {low} and {high}")


def positive(key: str, value: float) -> None:
    if not 0 < value < inf:
        raise UserError(f"{key}={value}: must be positive{' and finite' if value == inf else ''}")


def word_or_count(key: str, value: Any, words: tuple[str, ...], of_what: str) -> None:
    """One of some words, or a positive whole number."""
    if value not in words and not (type(value) is int and value > 0):
        raise UserError(f"{key}={value}: must be {', '.join(words)} or a number of {of_what}")
