import numpy as np
import pytest

from sweep.common.errors import UserError
from sweep.data.ngrams import reference_lines
from sweep.data.prepare import MarkovSource


@pytest.fixture(scope="module")
def source():
    return MarkovSource(tokens=1_000_000, vocab_size=64)


@pytest.fixture(scope="module")
def text(source):
    return source.generate("train")


def test_every_row_is_a_distribution_and_the_stationary_one_stays(source):
    P, pi = source.transitions, source.stationary
    assert (P > 0).all()
    assert P.sum(axis=1) == pytest.approx(np.ones(64))
    assert (pi > 0).all()
    assert pi @ P == pytest.approx(pi, rel=1e-10)
    assert np.linalg.matrix_power(P, 200)[7] == pytest.approx(pi, rel=1e-8), "from any token, at last"


def test_logits_have_the_spectrum_that_was_asked_for():
    source = MarkovSource(vocab_size=512, spectrum_exponent=1.5, logit_std=0.8)
    logits = np.log(source.transitions)
    logits -= logits.mean(axis=1, keepdims=True)
    assert logits.std() == pytest.approx(0.8, rel=0.1)
    values = np.linalg.svd(logits, compute_uv=False)
    slope = np.polyfit(np.log(np.arange(2, 40)), np.log(values[1:39]), 1)[0]
    assert slope == pytest.approx(-1.5, abs=0.15)


def test_the_true_model_reads_the_text_at_the_entropy_rate(source, text):
    """Counted from the text alone, and added up token by token; each within its sampling error."""
    P, rate = source.transitions, source.entropy_rate_nats()
    nats = -np.log(P[text[:-1], text[1:]])
    blocks = nats[: len(nats) // 1000 * 1000].reshape(-1, 1000).mean(axis=1)
    error = blocks.std() / np.sqrt(len(blocks))
    assert error < 0.003
    assert nats.mean() == pytest.approx(rate, abs=4 * error)
    pairs = np.bincount(text[:-1].astype(int) * 64 + text[1:], minlength=64 * 64).reshape(64, 64)
    seen = pairs / pairs.sum(axis=1, keepdims=True)
    counted = -(pairs * np.log(np.where(pairs, seen, 1))).sum() / pairs.sum()
    bias = 64 * 63 / (2 * len(text))  # of a plug-in entropy (Miller and Madow)
    assert counted + bias == pytest.approx(rate, abs=4 * error)
    assert np.bincount(text, minlength=64) / len(text) == pytest.approx(source.stationary, abs=0.003)


def test_only_the_token_before_matters(source, text):
    """Given the present token, the next one is independent of the one before: no mutual information but by chance."""
    common = np.argsort(source.stationary)[-2:]
    for present in common:
        at = np.flatnonzero(text[1:-1] == present) + 1
        before, after = np.isin(text[at - 1], common), text[at + 1]
        for outcome in np.argsort(source.transitions[present])[-3:]:
            odds = [(after[before == side] == outcome).mean() for side in (False, True)]
            deviation = np.sqrt(odds[0] * (1 - odds[0]) * (1 / before.sum() + 1 / (~before).sum()))
            assert abs(odds[0] - odds[1]) < 4.5 * deviation


def test_bigrams_come_down_to_the_rate_and_unigrams_do_not(source, text):
    lines = reference_lines(text, source.generate("validation"), 64)
    rate = source.entropy_rate_nats()
    assert rate - 0.01 < lines["bigram"] < rate + 0.03
    assert lines["unigram"] > rate + 0.3


def test_without_logits_all_tokens_are_alike():
    assert MarkovSource(vocab_size=16, logit_std=0.0).entropy_rate_nats() == pytest.approx(np.log(16))


def test_splits_are_different_texts_of_one_chain(source, text):
    validation = source.generate("validation")
    assert len(text) == 950_000
    assert len(validation) == 50_000
    assert not np.array_equal(text[:1000], validation[:1000])
    assert np.array_equal(text, source.generate("train"))
    assert not np.array_equal(source.transitions, MarkovSource(vocab_size=64, seed=1).transitions)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 1}, r"data\.vocab_size=1: must be at least 2"),
        ({"vocab_size": 10**6}, r"data\.vocab_size=1000000: must be at most 4096"),
        ({"spectrum_exponent": -1.0}, r"data\.spectrum_exponent=-1\.0: must be at least 0"),
        ({"spectrum_exponent": float("nan")}, r"data\.spectrum_exponent=nan: must be at least 0"),
        ({"logit_std": 50.0}, r"data\.logit_std=50\.0: must be at most 5"),
        ({"seed": -1}, r"data\.seed=-1: must be at least 0"),
        ({"tokens": 0}, r"data\.tokens=0: must be at least"),
    ],
)
def test_impossible_chains(changes, message):
    with pytest.raises(UserError, match=message):
        MarkovSource(**changes).identity()
