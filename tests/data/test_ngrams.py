import math
from collections import Counter, defaultdict

import numpy as np
import pytest

from sweep.data.ngrams import BLOCK_TOKENS, KneserNey, reference_lines, spread

V = 7


@pytest.fixture(scope="module")
def stream():
    """A second-order chain over 7 tokens, one of which never occurs in training."""
    rng = np.random.default_rng(0)
    table = rng.dirichlet(np.full(V - 1, 0.3), size=(V, V))
    tokens = [0, 1]
    for _ in range(4000):
        tokens.append(rng.choice(V - 1, p=table[tokens[-2], tokens[-1]]))
    return np.array(tokens, dtype=np.uint16)


def all_ngrams(order):
    return np.arange(V**order, dtype=np.int64)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("length", [3, 10, 4000])
def test_probabilities_sum_to_one_in_every_context_seen_or_not(stream, order, length):
    model = KneserNey.count(stream[:length], order, V)
    p = model.probabilities(all_ngrams(order)).reshape(-1, V)
    assert p.sum(axis=1) == pytest.approx(1, abs=1e-12)
    assert (p > 0).all()


@pytest.mark.parametrize("order", [1, 2, 3])
def test_equals_the_definition_written_with_dictionaries(stream, order):
    text = stream[:300].tolist()
    model = KneserNey.count(stream[:300], order, V)
    wanted = [plain_kneser_ney(text, order, digits(key, order)) for key in all_ngrams(order)]
    assert model.probabilities(all_ngrams(order)) == pytest.approx(wanted)


def digits(key, order):
    return tuple(int(key) // V**place % V for place in range(order - 1, -1, -1))


def plain_kneser_ney(text, order, ngram):
    """Chen & Goodman 1998, equations 26 and 27, for one n-gram."""
    counts = {order: Counter(zip(*(text[i:] for i in range(order)), strict=False))}
    for n in range(order - 1, 0, -1):
        counts[n] = Counter(longer[1:] for longer in counts[n + 1])
    p = 1 / V
    for n in range(1, order + 1):
        of_counts = Counter(counts[n].values())
        y = of_counts[1] / max(1, of_counts[1] + 2 * of_counts[2])
        discount = {
            k: min(max(k - (k + 1) * y * of_counts[k + 1] / max(1, of_counts[k]), 0.05), k - 0.05) for k in (1, 2, 3)
        }
        followers = defaultdict(dict)
        for gram, count in counts[n].items():
            followers[gram[:-1]][gram[-1]] = count
        *context, last = ngram[order - n :]
        seen = followers.get(tuple(context))
        if seen:
            freed = sum(discount[min(count, 3)] for count in seen.values())
            own = seen[last] - discount[min(seen[last], 3)] if last in seen else 0
            p = (own + freed * p) / sum(seen.values())
    return p


def test_longer_contexts_predict_a_second_order_chain_better(stream):
    lines = reference_lines(stream[:3500], stream[3500:], V)
    assert list(lines) == ["uniform", "unigram", "bigram", "trigram"]
    assert lines["uniform"] == math.log(V)
    assert lines["uniform"] > lines["unigram"] > lines["bigram"] > lines["trigram"]


def test_the_unigram_line_of_independent_tokens_is_their_entropy():
    p = np.array([0.5, 0.2, 0.2, 0.1])
    tokens = np.random.default_rng(1).choice(4, 200_000, p=p)
    lines = reference_lines(tokens[:100_000], tokens[100_000:], 4)
    entropy = -(p * np.log(p)).sum()
    for name in ("unigram", "bigram", "trigram"):
        assert lines[name] == pytest.approx(entropy, abs=0.01)


def test_a_token_never_seen_costs_much_but_not_everything(stream):
    lines = reference_lines(stream, np.full(10, V - 1), V)
    assert all(math.isfinite(loss_nats) for loss_nats in lines.values())
    assert lines["unigram"] > lines["uniform"]


def test_large_vocabularies_do_not_overflow():
    tokens = np.random.default_rng(2).integers(0, 200_000, 5000).astype(np.uint32)
    lines = reference_lines(tokens, tokens, 200_000)
    assert lines["trigram"] < lines["uniform"] / 4, "the same text again is no surprise"


def test_a_stream_beyond_the_limit_is_counted_in_blocks_from_all_of_it():
    tokens = np.arange(50 * BLOCK_TOKENS, dtype=np.uint32)
    counted = spread(tokens, 4 * BLOCK_TOKENS)
    assert len(counted) == 4 * BLOCK_TOKENS
    assert counted[0] == 0
    assert counted[-1] == tokens[-1]
    assert spread(tokens, len(tokens)) is not None
    assert len(spread(tokens, len(tokens))) == len(tokens)
