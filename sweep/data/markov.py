"""A synthetic source whose entropy rate is known exactly: a language of Zipf-weighted words.

The lexicon has `classes` × `words_per_class` words, each a distinct random string of `shortest` to `longest`
letters; a text is words with a space before each. From word to word, the class moves a Zipf-distributed
number of steps around a circle (so the class of a word tells the likely classes of the next), and the rank
within the class is Zipf-distributed too. Letters can be predicted only by who has learnt the word, so a
bigger model, or more data, keeps on learning rarer words; and the first letters of a word depend on the whole
word before it, out of reach for short n-grams.

Why the rate is exact. Steps and ranks are independent of each other and of everything before; class and rank
name the word, since words are distinct. So a word carries H = H(step) + H(rank) nats given all words before
it, the same in every context. Spaces occur nowhere but before words, so text and words determine each other,
and n words of text hold n·H nats (and at most the entropy of the first word more). Steps do not depend on the
class, so the circle's transition matrix is doubly stochastic, and in the stationary distribution every class
has probability 1 / classes, word (class, rank) probability p(rank) / classes. With M the mean of 1 + letters
under it, n words are n·M tokens (ergodic theorem: every step has positive probability), and the entropy rate
is H / M nats per token.

A model that sees T tokens cannot know what its window cut off: its mean loss over the window lies above the
rate by at most the entropy of (word, place in the word) divided by T, which for the default lexicon is some
10 nats / T.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sweep.data.sources import DataConfig
from sweep.errors import UserError

SPACE = 0
WORDS_AT_A_TIME = 1 << 18
_LEXICON, _STREAMS = 0, {"train": 1, "validation": 2}  # what each random stream is for


@dataclass
class MarkovSource(DataConfig):
    """`tokens` in all, train and validation; tokens are letters (1 to vocab_size - 1) and the space (0)."""

    source: str = "markov"
    tokens: int = 6_000_000
    vocab_size: int = 64
    classes: int = 16
    words_per_class: int = 2048
    shortest: int = 3
    longest: int = 7
    zipf_exponent: float = 1.0
    seed: int = 0

    def identity(self) -> dict[str, int]:
        """Nothing beyond the config, which is checked here."""
        lowest = {"tokens": 100, "vocab_size": 3, "classes": 1, "words_per_class": 1, "shortest": 1, "seed": 0}
        for key, least in lowest.items():
            if getattr(self, key) < least:
                raise UserError(f"data.{key}={getattr(self, key)}: must be at least {least}")
        if self.longest < self.shortest or self.longest * math.log2(self.vocab_size) > 62:
            most = int(62 / math.log2(self.vocab_size))
            raise UserError(f"data.longest={self.longest}: must be {self.shortest} (data.shortest) to {most}")
        if self.classes * self.words_per_class > (self.vocab_size - 1) ** self.shortest // 2:
            raise UserError(
                f"data.words_per_class={self.words_per_class}: too many for distinct words of "
                f"data.shortest={self.shortest} letters; use longer words or more letters (data.vocab_size)"
            )
        return {}

    def entropy_rate_nats(self) -> float:
        """Nats per token, in closed form (see the top of the file)."""
        word_nats = _entropy_nats(self._steps()) + _entropy_nats(self._ranks())
        letters = (self.lexicon() != SPACE).sum(axis=1).reshape(self.classes, self.words_per_class)
        return float(word_nats / (1 + letters.mean(axis=0) @ self._ranks()))

    def generate(self, split: str) -> NDArray[np.uint16]:
        """One split's tokens: the two are independent texts in one language."""
        fraction = self.validation_fraction if split == "validation" else 1 - self.validation_fraction
        wanted = round(self.tokens * fraction)
        rng = np.random.Generator(np.random.Philox(key=[self.seed, _STREAMS[split]]))
        lexicon = self.lexicon()
        pieces: list[NDArray[np.uint16]] = []
        made, last_class = 0, 0
        while made < wanted:
            words, last_class = self._words(rng, last_class)
            rows = lexicon[words]
            letters = rows != SPACE
            letters[:, 0] = True  # the space before the word
            pieces.append(rows[letters])
            made += len(pieces[-1])
        return np.concatenate(pieces)[:wanted]

    def lexicon(self) -> NDArray[np.uint16]:
        """(words, 1 + longest): space, letters, spaces as padding; word = class · words_per_class + rank."""
        rng = np.random.Generator(np.random.Philox(key=[self.seed, _LEXICON]))
        words = np.empty((0, self.longest), np.int64)
        wanted = self.classes * self.words_per_class
        while len(words) < wanted:
            letters = rng.integers(1, self.vocab_size, (wanted, self.longest))
            lengths = rng.integers(self.shortest, self.longest + 1, wanted)
            letters[np.arange(self.longest) >= lengths[:, None]] = SPACE
            words = np.concatenate([words, letters])
            spelled = words @ self.vocab_size ** np.arange(self.longest, dtype=np.int64)
            words = words[np.sort(np.unique(spelled, return_index=True)[1])]
        return np.pad(words[:wanted], ((0, 0), (1, 0))).astype(np.uint16)

    def _words(self, rng: np.random.Generator, last_class: int) -> tuple[NDArray[np.int64], int]:
        """The next words, and the class of the last."""
        steps = np.searchsorted(np.cumsum(self._steps())[:-1], rng.random(WORDS_AT_A_TIME))
        ranks = np.searchsorted(np.cumsum(self._ranks())[:-1], rng.random(WORDS_AT_A_TIME))
        classes = (last_class + np.cumsum(steps)) % self.classes
        return classes * self.words_per_class + ranks, int(classes[-1])

    def _steps(self) -> NDArray[np.float64]:
        return _zipf(self.classes, self.zipf_exponent)

    def _ranks(self) -> NDArray[np.float64]:
        return _zipf(self.words_per_class, self.zipf_exponent)


def _zipf(count: int, exponent: float) -> NDArray[np.float64]:
    weights = np.arange(1, count + 1) ** -float(exponent)
    return weights / weights.sum()


def _entropy_nats(p: NDArray[np.float64]) -> float:
    return float(-(p * np.log(p)).sum())
