"""How the report writes numbers: 0.523, 3×10¹¹, $12, 0.52 [0.47, 0.58]. For counts and times: `sweep.common.units`."""

import math
from collections.abc import Sequence

from sweep.common.units import short

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def significant(value: float, digits: int = 3) -> str:
    """`value` at `digits` significant digits, without an exponent where the number is short enough to read."""
    if not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    if abs(value) >= 1e6 or abs(value) < 1e-4:
        return power(value, digits)
    rounded = float(f"{value:.{digits}g}")
    places = max(0, digits - 1 - math.floor(math.log10(abs(rounded))))
    text = f"{rounded:.{places}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def power(value: float, digits: int = 2) -> str:
    """Scientific notation as papers set it: 3×10¹¹, 10¹²."""
    if not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
    if int(exponent) == 0:
        return mantissa
    raised = "10" + str(int(exponent)).translate(_SUPERSCRIPT)
    return raised if mantissa == "1" else f"-{raised}" if mantissa == "-1" else f"{mantissa}×{raised}"


def dollars(value: float) -> str:
    """A price: $0.0013, $12, $3.4M."""
    if not math.isfinite(value):
        return "–"
    return "$" + (short(value) if value >= 1 else significant(value, 2))


def with_interval(value: float, interval: Sequence[float] | None, digits: int = 3) -> str:
    """`0.52 [0.47, 0.58]`, or the bare value when there is no interval."""
    text = significant(value, digits)
    if not interval:
        return text
    return f"{text} [{significant(interval[0], digits)}, {significant(interval[1], digits)}]"
