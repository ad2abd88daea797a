"""Counts as people write them (`1M`, `3e15`, `10k`) and as people read them."""

import math
import re
from typing import Any

from sweep.common.errors import UserError

_SUFFIXES = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}
_UNITS = (86400, 3600, 60, 1)
_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")
_QUANTITY = re.compile(r"([0-9][0-9_]*\.?[0-9]*(?:e[+-]?[0-9]+)?)([kmbgt]?)", re.IGNORECASE)
# Groups of three digits with a mark between them: 7,867,315, and with spaces or apostrophes.
_THOUSANDS = re.compile(r"[+-]?\d{1,3}([,'\u00a0\u202f ]\d{3})+(\.\d*)?")


def parse_quantity(key: str, value: Any) -> float:
    """A positive finite number from 1000, "1k", "1e3", "2.5M", "3B". `key` is named in the error."""
    number = float("nan")
    if isinstance(value, int | float) and not isinstance(value, bool):
        number = float(value)
    elif isinstance(value, str) and (match := _QUANTITY.fullmatch(value.strip())):
        number = float(match[1].replace("_", "")) * _SUFFIXES[match[2].lower()]
    if not (math.isfinite(number) and number > 0):
        raise UserError(f"{key}={value}: not a positive number; write one such as 500k, 1M, 3e15")
    return number


def number_or_none(text: str) -> float | None:
    """A number from a cell of a table: 4.76, -1e-3, 400M, 7,867,315; NaN for nan and a dash. None for other words."""
    word = text.strip()
    if _THOUSANDS.fullmatch(word):
        word = re.sub(r"[^\d.+-]", "", word)
    if word.lower() in ("", "-", "--", "nan"):
        return float("nan")
    sign, digits = (-1, word[1:]) if word.startswith("-") else (1, word)
    if match := _QUANTITY.fullmatch(digits.replace(" ", "")):
        return sign * float(match[1].replace("_", "")) * _SUFFIXES[match[2].lower()]
    try:
        return float(word)
    except ValueError:
        return None


def parse_count(key: str, value: Any) -> int:
    """As `parse_quantity`, for what is counted in whole units."""
    return round(parse_quantity(key, value))


def parse_duration(key: str, value: Any) -> int:
    """Seconds from "90s", "30m", "2h", "1d12h". `key` is named in the error."""
    match = _DURATION.fullmatch(str(value).strip())
    counts = match.groups(default="0") if match else ()
    seconds = sum(int(count) * unit for count, unit in zip(counts, _UNITS, strict=False))
    if seconds <= 0:
        raise UserError(f"{key}={value}: not a time; write one with units such as 90s, 30m, 2h, 1d12h")
    return seconds


def short(number: float) -> str:
    """Three digits and a suffix, for tables and names: 3.2k, 1.05M, 2B."""
    for limit, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= 0.9995 * limit:
            return f"{number / limit:.3g}{suffix}"
    return f"{number:.3g}"


def scientific(number: float) -> str:
    """A FLOP count in three digits: 1e11, 3.16e15."""
    return f"{number:.3g}".replace("e+0", "e").replace("e+", "e")


def duration(seconds: float) -> str:
    """A span of time for people: 42 s, 3 m 05 s, 2 h 10 m, 5 d 3 h."""
    if not math.isfinite(seconds):
        return "?"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} m {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} m"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"


def format_bytes(count_bytes: float) -> str:
    """Bytes for people, in binary units."""
    for limit, suffix in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count_bytes >= limit:
            return f"{count_bytes / limit:.1f} {suffix}"
    return f"{count_bytes:.0f} B"


def counted(count: int, one: str, many: str) -> str:
    """1 family, 2 families."""
    return f"{count} {one if count == 1 else many}"
