from itertools import pairwise

import numpy as np
import pytest

from sweep.data.markov import SPACE
from sweep.data.ngrams import reference_lines
from sweep.data.prepare import MarkovSource
from sweep.errors import UserError


@pytest.fixture(scope="module")
def source():
    return MarkovSource(tokens=2_000_000)


@pytest.fixture(scope="module")
def text(source):
    return source.generate("train")


def zipf(count):
    weights = 1 / np.arange(1, count + 1)
    return weights / weights.sum()


def test_words_are_distinct_and_as_long_as_asked(source):
    lexicon = source.lexicon()
    assert lexicon.shape == (16 * 2048, 8)
    assert len({row.tobytes() for row in lexicon}) == len(lexicon)
    assert (lexicon[:, 0] == SPACE).all()
    letters = lexicon[:, 1:] != SPACE
    assert set(letters.sum(axis=1)) == {3, 4, 5, 6, 7}
    assert (np.diff(letters.astype(int), axis=1) <= 0).all(), "padding only at the end"
    assert lexicon.max() == 63


def test_the_true_model_reads_the_text_at_the_entropy_rate(source, text):
    """An independent reader: cut at spaces, look words up, add up -log p(step) - log p(rank)."""
    names = {row[row != SPACE].tobytes(): number for number, row in enumerate(source.lexicon())}
    spaces = np.flatnonzero(text == SPACE)
    words = np.array([names[text[a + 1 : b].tobytes()] for a, b in pairwise(spaces)])
    classes, ranks = words // 2048, words % 2048
    steps = np.diff(classes) % 16
    nats = -np.log(zipf(16)[steps]) - np.log(zipf(2048)[ranks[1:]])
    tokens = np.diff(spaces)[1:]
    rate = source.entropy_rate_nats()
    # The ratio's sampling error: of a word's nats beyond what its length costs at the rate.
    error = (nats - rate * tokens).std() / np.sqrt(len(nats)) / tokens.mean()
    assert nats.sum() / tokens.sum() == pytest.approx(rate, abs=4 * error)
    assert error < 0.002
    assert np.bincount(classes, minlength=16) / len(classes) == pytest.approx(np.full(16, 1 / 16), abs=0.005)


def test_short_ngrams_stay_clearly_above_the_rate(source, text):
    lines = reference_lines(text, source.generate("validation"), 64)
    assert lines["unigram"] < lines["uniform"]
    assert lines["bigram"] < lines["unigram"] - 0.1
    assert lines["trigram"] > source.entropy_rate_nats() + 0.5


def test_one_word_of_one_letter_has_no_entropy():
    source = MarkovSource(tokens=100, vocab_size=3, classes=1, words_per_class=1, shortest=1, longest=1)
    assert source.entropy_rate_nats() == 0
    assert len(set(source.generate("train")[1::2].tolist())) == 1


def test_splits_are_different_texts_in_one_language(source, text):
    validation = source.generate("validation")
    assert len(text) == 1_900_000
    assert len(validation) == 100_000
    assert not np.array_equal(text[:1000], validation[:1000])
    assert np.array_equal(text, source.generate("train"))
    other = MarkovSource(tokens=2_000_000, seed=1)
    assert not np.array_equal(source.lexicon(), other.lexicon())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 2}, r"data\.vocab_size=2: must be at least 3"),
        ({"longest": 2}, r"data\.longest=2: must be 3 \(data\.shortest\) to 10"),
        ({"longest": 20}, r"data\.longest=20: must be"),
        ({"words_per_class": 10**6}, r"data\.words_per_class=1000000: too many for distinct words"),
        ({"seed": -1}, r"data\.seed=-1: must be at least 0"),
        ({"tokens": 0}, r"data\.tokens=0: must be at least"),
    ],
)
def test_impossible_languages(changes, message):
    with pytest.raises(UserError, match=message):
        MarkovSource(**changes).identity()
