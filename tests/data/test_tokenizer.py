import os
import subprocess
import sys

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from sweep.common.errors import UserError
from sweep.data import tokenizer as tokenizers
from sweep.data.sources import TokenizerConfig

TEXTS = ["def f(x):\n    return x\n" * 40, "naïve café — 三\n" * 20, "\t\r\n\x0b", "for i in range(3): print(i)\n" * 30]


def make(**config):
    return tokenizers.make(TokenizerConfig(**config), TEXTS)


@pytest.mark.parametrize("config", [{"vocab_size": 300}, {"vocab_size": 257}, {"kind": "bytes"}])
def test_ids_decode_to_the_text_and_end_with_the_end_of_text(config):
    tokenizer = make(**config)
    eot = tokenizers.eot_id(tokenizer)
    for text, ids in zip(TEXTS, tokenizers.encode(tokenizer, TEXTS, eot), strict=True):
        assert ids.count(eot) == 1
        assert ids[-1] == eot
        assert tokenizer.decode(ids[:-1]) == text
        assert max(ids) < tokenizers.vocab_size(tokenizer)


def test_vocabulary_sizes():
    assert tokenizers.vocab_size(make(vocab_size=300)) == 300
    assert tokenizers.vocab_size(make(kind="bytes")) == 257
    few = tokenizers.vocab_size(make(vocab_size=100_000))
    assert 257 < few < 1000, "a short text has only so many merges: the size is what came out"


def test_a_byte_is_a_token():
    (ids,) = tokenizers.encode(make(kind="bytes"), ["né\n"], 256)
    assert len(ids) == len("né\n".encode()) + 1


def test_text_that_spells_the_end_of_text_token_is_text():
    tokenizer = make(vocab_size=300)
    text = f"a {tokenizers.EOT} b"
    (ids,) = tokenizers.encode(tokenizer, [text], 0)
    assert ids.count(0) == 1
    assert tokenizer.decode(ids[:-1]) == text


def test_a_given_file_keeps_its_end_token_or_gets_one(tmp_path):
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "words.json"))
    given = make(kind="file", path=str(tmp_path / "words.json"))
    assert tokenizers.eot_id(given) == 3
    assert tokenizers.vocab_size(given) == 4
    assert list(tokenizers.encode(given, ["b a c"], 3)) == [[1, 0, 2, 3]]

    make(vocab_size=300).save(str(tmp_path / "bpe.json"))
    assert tokenizers.eot_id(make(kind="file", path=str(tmp_path / "bpe.json"))) == 0


@pytest.mark.slow
def test_training_does_not_depend_on_threads():
    code = (
        "from sweep.data import tokenizer as t; import sysconfig, pathlib;"
        "files = sorted(pathlib.Path(sysconfig.get_path('stdlib')).glob('*.py'))[:60];"
        "print(t.digest(t.train_bpe((f.read_text('utf-8') for f in files), 512)))"
    )
    digests = set()
    for threads in ("1", "2", "3"):
        env = os.environ | {"RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": threads}
        digests.add(subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True).stdout)
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"vocab_size": 256}, r"data\.tokenizer\.vocab_size=256: a byte-level BPE needs at least 257"),
        ({"kind": "word"}, r"data\.tokenizer\.kind=word: must be one of bpe, bytes, file, hub"),
        ({"kind": "file"}, r"data\.tokenizer\.path: kind=file needs a tokenizer\.json"),
        ({"kind": "hub"}, r"data\.tokenizer\.path: kind=hub needs a model"),
        ({"kind": "file", "path": "nope.json"}, r"data\.tokenizer\.path=nope\.json: no such file"),
        ({"kind": "file", "path": __file__}, r"data\.tokenizer\.path=.*: not a tokenizer\.json"),
    ],
)
def test_tokenizers_that_cannot_be(config, message):
    with pytest.raises(UserError, match=message):
        make(**config)
