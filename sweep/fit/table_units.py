"""Units of a table's numbers: a conversion that is asked for, and a warning where the numbers look like other units.

`fit` counts parameters, tokens and FLOPs in ones, and the loss in nats per token.
"""

import itertools
import math
import re
from collections.abc import Mapping

import numpy as np

from sweep.common.errors import UserError
from sweep.common.units import parse_quantity

NATS_PER_BIT = math.log(2)
LOSS_UNITS = ("nats", "bits", "perplexity", "bits_per_byte")
# C / 6ND that an architecture can have: under 1 where N counts embeddings or experts that are not used, above it where
# attention and logits outweigh a small model's layers (5 at 2k parameters).
LEAST_PER_6ND, MOST_PER_6ND = 0.02, 50.0
LEAST_PARAMS, LEAST_TOKENS = 100.0, 1000.0
LEAST_RATIO, MOST_RATIO, USUAL_RATIO = 0.005, 1e6, 20.0  # tokens per parameter
USUAL_PARAMS = 1e8
LARGEST_FRACTION = 1e5  # parameters or tokens; above it a derived column may have parts
LARGEST_VOCABULARY = 500_000  # a uniform guess over it costs 13.1 nats
# What people count N, D and C in. The last of C is a PF-day.
SCALES = {"N": (1.0, 1e3, 1e6, 1e9), "D": (1.0, 1e6, 1e9, 1e12), "C": (1.0, 1e9, 1e12, 1e15, 1e18, 8.64e19)}
_PER_BYTE = re.compile(r"bpb|bits?_per_byte|bits/byte", re.IGNORECASE)


def parse(text: str) -> dict[str, str]:
    """`N=1e6,loss=perplexity` -> {"N": "1e6", "loss": "perplexity"}. UserError for a unit that there is not."""
    units = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        role, _, unit = (word.strip() for word in part.partition("="))
        if role in SCALES and unit:
            parse_quantity(f"--units {role}", unit)
        elif role != "loss" or unit not in LOSS_UNITS:
            raise UserError(f"--units {part!r}: write N, D or C=FACTOR, such as N=1e6, or loss={'|'.join(LOSS_UNITS)}")
        units[role] = unit
    return units


def convert(values: Mapping[str, np.ndarray], units: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Parameters, tokens and FLOPs in ones and the loss in nats per token; bits per byte stay, since how many bytes a
    token has is not known."""
    made = dict(values)
    for role in SCALES.keys() & units.keys() & values.keys():
        made[role] = values[role] * parse_quantity(f"--units {role}", units[role])
    with np.errstate(all="ignore"):
        if units.get("loss") == "perplexity":
            made["loss"] = np.log(values["loss"])
        elif units.get("loss") == "bits":
            made["loss"] = values["loss"] * NATS_PER_BIT
    return made


def doubts(names: Mapping[str, str], values: Mapping[str, np.ndarray], units: Mapping[str, str]) -> list[str]:
    """A warning where N, D and C, or the loss, cannot be in ones and nats, with the conversion that would make sense.
    `values` are those of the rows that are fitted, after conversion."""
    if not len(values["loss"]):
        return []
    return [*_doubt_counts(names, values), *_doubt_loss(names["loss"], values["loss"], units)]


def _doubt_counts(names: Mapping[str, str], values: Mapping[str, np.ndarray]) -> list[str]:
    here = [role for role in "NDC" if role in names]
    N, D, C = (float(np.median(values[role])) for role in "NDC")
    ratio = float(np.median(values["C"] / (6 * values["N"] * values["D"])))
    if _plausible(N, D, ratio) and not any(_in_fractions(values[role]) for role in "ND" if role in names):
        return []
    columns = ", ".join(f"{role} ({names[role]})" for role in here)
    if not LEAST_PER_6ND <= ratio <= MOST_PER_6ND:
        said = f"C is {ratio:.2g} times 6 N D: the columns {columns} are in different units"
    else:
        said = f"N is {N:.3g} and D is {D:.3g} in the middle of the rows: the columns {columns} look like other units"
    advice = f"; give plain numbers{_suggestion(here, N, D, C)}"
    if "D" in here and D / N < LEAST_RATIO:
        advice += " (or D=TOKENS_PER_STEP, if these are steps)"
    return [said + advice]


def _suggestion(here: list[str], N: float, D: float, C: float) -> str:
    """The option with the factors by which all three make sense, few of them, the ratio of tokens to parameters near
    a usual one, and the size too; empty where there are none."""
    found = []
    for factors in itertools.product(*(SCALES[role] for role in here)):
        by = dict(zip(here, factors, strict=True))
        n, d, c = N * by.get("N", 1), D * by.get("D", 1), C * by.get("C", 1)
        if "N" not in by:
            n = c / (6 * d)
        elif "D" not in by:
            d = c / (6 * n)
        elif "C" not in by:
            c = 6 * n * d
        changed = sum(factor != 1 for factor in factors)
        if changed and _plausible(n, d, c / (6 * n * d)):
            unusual = abs(math.log10(d / n / USUAL_RATIO)) + 0.1 * abs(math.log10(n / USUAL_PARAMS))
            found.append((changed + unusual, factors))
    if not found:
        return ""
    best = dict(zip(here, min(found)[1], strict=True))
    asked = ",".join(
        f"{role}={factor:g}".replace("e+0", "e").replace("e+", "e") for role, factor in best.items() if factor != 1
    )
    return f", or --units {asked}"


def _in_fractions(count_n: np.ndarray) -> bool:
    """Whether small counts have parts, as 7.87 million has."""
    return bool(np.median(count_n) < LARGEST_FRACTION and np.any(count_n != np.round(count_n)))


def _plausible(N: float, D: float, per_6nd: float) -> bool:
    sizes = N >= LEAST_PARAMS and D >= LEAST_TOKENS
    return sizes and LEAST_RATIO <= D / N <= MOST_RATIO and LEAST_PER_6ND <= per_6nd <= MOST_PER_6ND


def _doubt_loss(column: str, loss: np.ndarray, units: Mapping[str, str]) -> list[str]:
    if units.get("loss") == "bits_per_byte" or ("loss" not in units and _PER_BYTE.search(column)):
        return [f"the loss ({column}) is in bits per byte: read that where a loss or a floor says nats per token"]
    uniform = math.log(LARGEST_VOCABULARY)
    if float(np.median(loss)) > uniform:
        return [
            f"the loss ({column}) is {np.median(loss):.3g} in the middle of the rows, where a uniform guess over "
            f"{LARGEST_VOCABULARY:,} tokens costs {uniform:.1f} nats: if it is a perplexity, --units loss=perplexity"
        ]
    return []
