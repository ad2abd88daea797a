"""How numbers are written for people: 3.2k, 3×10¹¹, 1.1 h. For figures, the report and the terminal."""

import math

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_SUFFIXES = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


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


def compact(value: float, digits: int = 2) -> str:
    """A count such as parameters or tokens: 820, 3.2k, 1.1M, 250B."""
    if not math.isfinite(value):
        return "–"
    rounded = float(f"{value:.{max(digits, 1)}g}")
    for size, suffix in _SUFFIXES:
        if abs(rounded) >= size:
            return significant(rounded / size, digits) + suffix
    return significant(rounded, digits)


def power(value: float, digits: int = 2) -> str:
    """Scientific notation as papers set it: 3×10¹¹, 10¹²."""
    if not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
    raised = "10" + str(int(exponent)).translate(_SUPERSCRIPT)
    return raised if mantissa == "1" else f"-{raised}" if mantissa == "-1" else f"{mantissa}×{raised}"


def seconds(value: float) -> str:
    """A duration in the unit that reads best: 0.4 s, 12 min, 3.1 h, 12 d."""
    if not math.isfinite(value):
        return "–"
    for size, unit in ((86_400 * 2, "d"), (3_600, "h"), (60, "min")):
        if value >= size:
            return f"{significant(value / (86_400 if unit == 'd' else size), 2)} {unit}"
    return f"{significant(value, 2)} s"


def dollars(value: float) -> str:
    """A price: $0.0013, $12, $3.4M."""
    if not math.isfinite(value):
        return "–"
    return "$" + (compact(value, 3) if value >= 1 else significant(value, 2))


def with_interval(value: float, interval: list[float] | None, digits: int = 3) -> str:
    """`0.52 [0.47, 0.58]`, or the bare value when there is no interval."""
    text = significant(value, digits)
    if not interval:
        return text
    return f"{text} [{significant(interval[0], digits)}, {significant(interval[1], digits)}]"
