"""A synthetic source whose entropy rate is known exactly: a Markov chain whose logits have a power-law spectrum.

Each token depends on the one before it alone: P(j | i) is the softmax over j of z_ij = Σ_k σ_k u_ik v_jk, where u and v
are standard normal and σ_k ∝ k^-s, scaled to `logit_std`, the standard deviation of a logit.

Why the rate is exact. Every transition has positive probability, so the chain has one stationary distribution π, which
solves πP = π (a linear system, solved here to rounding). The text begins in it, so it is stationary, and the entropy
rate of a stationary Markov chain is H = Σ_i π_i H(P_i), H(P_i) the entropy of row i (Cover & Thomas, section 4.2).
Every position of a window sees the token before it, all that there is to know: the rate is the floor of the loss for
any sequence length.

Why losses fall towards it as power laws. A model of width C writes logits of rank C at most. What it leaves out, the
components after the C-th, costs about ½ Σ σ_k² ~ C^(1-2s) nats, and C² ~ N: L - H ~ N^-(s-½). Estimating one more
component, 2V numbers, from D tokens costs about V / D nats, which pays as long as σ_k² > 2V / D, for some D^(1/2s)
components: L - H ~ D^-(1-1/2s). For s = 1 both exponents are ½, as long as C is far below V.
"""

from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sweep.common.errors import UserError
from sweep.common.keys import key
from sweep.data.sources import DataConfig

TOKENS_AT_A_TIME = 1 << 18
_CHAIN, _STREAMS = 0, {"train": 1, "validation": 2}  # what each random stream is for


@dataclass
class MarkovSource(DataConfig):
    """`tokens` in all, train and validation."""

    source: str = key("markov", "which reader; set by the file of conf/data")
    tokens: int = key(3_000_000, "tokens of train and validation together")
    vocab_size: int = key(256, "tokens of the vocabulary")
    spectrum_exponent: float = key(1.0, "s: the k-th component of the logits is proportional to k^-s")
    logit_std: float = key(1.5, "standard deviation of a logit; 0 makes all tokens alike")
    seed: int = key(0, "draws the chain and the text")

    def identity(self) -> dict[str, int]:
        """Nothing beyond the config, which is checked here."""
        for name, least in {"tokens": 100, "vocab_size": 2, "spectrum_exponent": 0, "logit_std": 0, "seed": 0}.items():
            if not getattr(self, name) >= least:
                raise UserError(f"data.{name}={getattr(self, name)}: must be at least {least}")
        for name, most in {"vocab_size": 4096, "spectrum_exponent": 100, "logit_std": 5}.items():
            if getattr(self, name) > most:
                raise UserError(f"data.{name}={getattr(self, name)}: must be at most {most}")
        return {}

    def expected_vocab_size(self) -> int:
        return self.vocab_size

    @cached_property
    def transitions(self) -> NDArray[np.float64]:
        """P(next | present), (present, next)."""
        rng = np.random.Generator(np.random.Philox(key=[self.seed, _CHAIN]))
        u, v = rng.standard_normal((2, self.vocab_size, self.vocab_size))
        spectrum = np.arange(1, self.vocab_size + 1) ** -float(self.spectrum_exponent)
        spectrum *= self.logit_std / np.sqrt((spectrum**2).sum())
        logits = (u * spectrum) @ v.T
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        return weights / weights.sum(axis=1, keepdims=True)

    @cached_property
    def stationary(self) -> NDArray[np.float64]:
        """The π that solves πP = π, Σπ = 1."""
        equations = self.transitions.T - np.eye(self.vocab_size)
        equations[-1] = 1  # one equation follows from the others; in its place, the sum
        return np.linalg.solve(equations, np.eye(self.vocab_size)[-1])

    def entropy_rate_nats(self) -> float:
        """Nats per token (see the top of the file)."""
        P = self.transitions
        return float(-self.stationary @ (P * np.log(P)).sum(axis=1))

    def generate(self, split: str) -> NDArray[np.uint16]:
        """One split's tokens: the two are independent texts of one chain."""
        fraction = self.validation_fraction if split == "validation" else 1 - self.validation_fraction
        wanted = round(self.tokens * fraction)
        rng = np.random.Generator(np.random.Philox(key=[self.seed, _STREAMS[split]]))
        below = [row.tolist() for row in np.cumsum(self.transitions, axis=1)[:, :-1]]
        token = int(np.searchsorted(np.cumsum(self.stationary)[:-1], rng.random(), side="right"))
        text = np.empty(wanted, np.uint16)
        for start in range(0, wanted, TOKENS_AT_A_TIME):
            part = []
            for draw in rng.random(min(TOKENS_AT_A_TIME, wanted - start)).tolist():
                part.append(token)
                token = bisect_right(below[token], draw)
            text[start : start + len(part)] = part
        return text
