"""Reference lines: what models that only count reach on the validation split, in nats per token.

A network is worth its FLOPs only below these lines. The n-gram models are interpolated Kneser-Ney with three
discounts per order (Chen & Goodman 1998, "An Empirical Study of Smoothing Techniques for Language Modeling",
section 3): each order takes a discount D from every seen n-gram and hands the mass to the order below, which
counts in how many contexts a token occurs rather than how often; below the unigram lies the uniform
distribution. The discounts follow in closed form from how many n-grams occur 1, 2, 3 and 4 times, so
validation is never looked at.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ORDERS = {"unigram": 1, "bigram": 2, "trigram": 3}
COUNTED_TOKENS = 20 << 20  # of the training split: bounds memory to about 1 GB
SCORED_TOKENS = 1_000_000  # of the validation split
BLOCK_TOKENS = 1 << 16


def reference_lines(train: NDArray, validation: NDArray, vocab_size: int) -> dict[str, float]:
    """Nats per validation token under the uniform distribution and Kneser-Ney models of orders 1 to 3."""
    counted = spread(train, COUNTED_TOKENS)
    scored = np.asarray(validation[:SCORED_TOKENS])
    lines = {"uniform": math.log(vocab_size)}
    for name, order in ORDERS.items():
        lines[name] = KneserNey.count(counted, order, vocab_size).loss_nats(scored)
    return lines


def spread(tokens: NDArray, limit: int) -> NDArray:
    """All tokens, or about `limit` of them in blocks spread evenly over the stream."""
    if len(tokens) <= limit:
        return np.asarray(tokens)
    starts = np.linspace(0, len(tokens) - BLOCK_TOKENS, limit // BLOCK_TOKENS).astype(np.int64)
    return np.concatenate([tokens[start : start + BLOCK_TOKENS] for start in starts])


@dataclass
class Level:
    """Counts of one order. An n-gram is one int64: its tokens are digits to the base vocab_size."""

    ngrams: NDArray[np.int64]  # sorted
    discounted: NDArray[np.float64]  # per n-gram: its count minus the discount
    contexts: NDArray[np.int64]  # sorted: the n-grams without their last token
    totals: NDArray[np.float64]  # per context: the sum of counts
    freed: NDArray[np.float64]  # per context: the sum of discounts


@dataclass
class KneserNey:
    """An interpolated n-gram model; `levels` from unigram up."""

    vocab_size: int
    levels: list[Level]

    @classmethod
    def count(cls, tokens: NDArray, order: int, vocab_size: int) -> "KneserNey":
        """Count a stream of tokens; raises ValueError where it is shorter than one n-gram."""
        if len(tokens) < order:
            raise ValueError(f"{len(tokens)} tokens are too few to count {order}-grams")
        ngrams, counts = np.unique(_keys(tokens, order, vocab_size), return_counts=True)
        levels = [_level(ngrams, counts, vocab_size)]
        for lower in range(order - 1, 0, -1):
            ngrams, counts = np.unique(ngrams % vocab_size**lower, return_counts=True)
            levels.append(_level(ngrams, counts, vocab_size))
        return cls(vocab_size, levels[::-1])

    def probabilities(self, ngrams: NDArray[np.int64]) -> NDArray[np.float64]:
        """p(last token | the tokens before it) for n-grams given as int64 keys of the full order."""
        p = np.full(len(ngrams), 1 / self.vocab_size)
        for order, level in enumerate(self.levels, start=1):
            keys = ngrams % self.vocab_size**order
            context, seen = _find(level.contexts, keys // self.vocab_size)
            ngram, counted = _find(level.ngrams, keys)
            own = np.where(counted, level.discounted[ngram], 0.0)
            mixed = (own + level.freed[context] * p) / level.totals[context]
            p = np.where(seen, mixed, p)  # a context never seen: the shorter one decides
        return p

    def loss_nats(self, tokens: NDArray) -> float:
        """Mean nats per token of a stream, from the first that has a whole context; nan if none has."""
        order = len(self.levels)
        if len(tokens) < order:
            return math.nan
        return float(-np.log(self.probabilities(_keys(tokens, order, self.vocab_size))).mean())


def _keys(tokens: NDArray, order: int, vocab_size: int) -> NDArray[np.int64]:
    """All n-grams of a stream as int64 keys, (len(tokens) - order + 1,)."""
    keys = tokens[: len(tokens) - order + 1].astype(np.int64)
    for shift in range(1, order):
        keys *= vocab_size
        keys += tokens[shift : len(tokens) - order + 1 + shift]
    return keys


def _level(ngrams: NDArray[np.int64], counts: NDArray[np.int64], vocab_size: int) -> Level:
    discounts = _discounts(counts)[np.minimum(counts, 3)]
    of_context = ngrams // vocab_size
    starts = np.flatnonzero(np.r_[True, of_context[1:] != of_context[:-1]])
    return Level(
        ngrams=ngrams,
        discounted=counts - discounts,
        contexts=of_context[starts],
        totals=np.add.reduceat(counts.astype(np.float64), starts),
        freed=np.add.reduceat(discounts, starts),
    )


def _discounts(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """(0, D1, D2, D3+) from counts of counts, strictly inside (0, count): nothing gets zero mass."""
    n = np.bincount(np.minimum(counts, 5), minlength=6).astype(np.float64)
    y = n[1] / max(1.0, n[1] + 2 * n[2])
    raw = [k - (k + 1) * y * n[k + 1] / max(1.0, n[k]) for k in (1, 2, 3)]
    return np.array([0.0, *(min(max(d, 0.05), k - 0.05) for k, d in zip((1, 2, 3), raw, strict=True))])


def _find(table: NDArray[np.int64], keys: NDArray[np.int64]) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """(index into the sorted table, whether the key is there); meaningless but valid where it is not."""
    index = np.minimum(np.searchsorted(table, keys), len(table) - 1)
    return index, table[index] == keys
