import contextlib
import errno
import json
import os
import subprocess
import sys

import pytest

import sweep.data.prepare
from sweep.common.errors import UserError
from sweep.data import tokenizer as tokenizers
from sweep.data.deduplicate import Spool
from sweep.data.prepare import MarkovSource, PythonSource, TextFiles, find, prepare
from sweep.data.sources import TokenizerConfig


def stories(count):
    return [f"Story {n}. " + " ".join(f"{word} {n * word % 17}" for word in range(n % 40 + 5)) for n in range(count)]


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "stories.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in stories(400)))
    return path


def config(path, **changes):
    return TextFiles(files=[str(path)], tokenizer=TokenizerConfig(vocab_size=300), validation_fraction=0.2, **changes)


def make(path, root, **changes):
    return prepare(config(path, **changes), root, progress=False)


def documents(tokens, split):
    text = tokens.decode(getattr(tokens, split))
    return text.split("<|endoftext|>")[:-1]


def test_every_document_is_in_one_split_and_reads_back(corpus, tmp_path):
    tokens = make(corpus, tmp_path / "tokens")
    train, validation = documents(tokens, "train"), documents(tokens, "validation")
    assert sorted(train + validation) == sorted(stories(400))
    assert 40 < len(validation) < 120
    assert tokens.meta["train"]["documents"] == len(train)
    assert tokens.vocab_size == 300
    assert tokens.train.dtype == "uint16"
    assert tokens.bytes_per_token == sum(map(len, validation)) / len(tokens.validation)
    assert tokens.bits_per_byte(1.0) == pytest.approx(1 / 0.6931471805599453 / tokens.bytes_per_token)


def test_duplicates_are_dropped_and_more_documents_move_none(corpus, tmp_path):
    before = make(corpus, tmp_path / "tokens")
    more = tmp_path / "more.jsonl"
    extra = ["a new document", "another one"]
    more.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*extra, *stories(400), *stories(9), ""]))
    after = make(more, tmp_path / "tokens")
    assert after.meta["duplicates_dropped"] == 9
    assert after.meta["documents"] == 402
    for split in ("train", "validation"):
        assert [text for text in documents(after, split) if text not in extra] == documents(before, split)


def test_the_tokenizer_is_trained_on_the_training_split_alone(corpus, tmp_path):
    """A string that only validation has gets no merges."""
    lines = [json.dumps({"text": text}) for text in documents(make(corpus, tmp_path / "tokens"), "train")]
    spool = Spool(tmp_path, 0.2)
    only = next(
        text
        for text in (f"{n} " + "qzqzqz " * 300 for n in range(100))
        if spool.add(text) and spool.documents("validation")
    )
    path = tmp_path / "only.jsonl"
    path.write_text("\n".join([*lines, json.dumps({"text": only})]))
    tokens = make(path, tmp_path / "tokens")
    assert documents(tokens, "validation") == [only]
    assert tokens.bytes_per_token < 1.2


def test_the_same_text_has_the_same_fingerprint(corpus, tmp_path):
    first = make(corpus, tmp_path / "tokens")
    assert make(corpus, tmp_path / "elsewhere").fingerprint == first.fingerprint
    os.utime(corpus, (1, 1))
    assert find(config(corpus), tmp_path / "tokens") is None, "a file touched is another request"
    assert make(corpus, tmp_path / "tokens").fingerprint == first.fingerprint
    assert len(list((tmp_path / "tokens" / "requests").iterdir())) == 2
    corpus.write_text(corpus.read_text() + '{"text": "one more"}\n')
    assert make(corpus, tmp_path / "tokens").fingerprint != first.fingerprint


def test_the_fingerprint_does_not_depend_on_threads(corpus, tmp_path):
    code = (
        "import sys; from sweep.data.prepare import TextFiles, prepare; from sweep.data.sources import TokenizerConfig;"
        "c = TextFiles(files=[sys.argv[1]], tokenizer=TokenizerConfig(vocab_size=300), validation_fraction=0.2);"
        "print(prepare(c, sys.argv[2]).fingerprint)"
    )
    fingerprints = {make(corpus, tmp_path / "here").fingerprint}
    for threads in ("1", "3"):
        root = tmp_path / threads
        env = os.environ | {"RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": threads}
        done = subprocess.run([sys.executable, "-c", code, corpus, root], env=env, capture_output=True, text=True)
        assert done.stderr.splitlines()[0] == "preparing text …"
        assert done.stderr.splitlines()[-1].startswith("prepared text in ")
        fingerprints.add(done.stdout.strip())
    assert len(fingerprints) == 1


def test_prepared_once(corpus, tmp_path, monkeypatch):
    root = tmp_path / "tokens"
    assert find(config(corpus), root) is None
    first = make(corpus, root)
    monkeypatch.setattr(TextFiles, "documents", lambda self: pytest.fail("read again"))
    assert make(corpus, root).fingerprint == first.fingerprint
    assert make(corpus, root, unique_tokens="1k").fingerprint == first.fingerprint
    assert find(config(corpus), root).fingerprint == first.fingerprint


def test_deleted_tokens_are_made_again(corpus, tmp_path):
    root = tmp_path / "tokens"
    first = make(corpus, root)
    for path in first.folder.iterdir():
        path.unlink()
    first.folder.rmdir()
    assert find(config(corpus), root) is None
    assert make(corpus, root).fingerprint == first.fingerprint


def test_several_processes_at_once_make_one_folder(corpus, tmp_path):
    root = tmp_path / "tokens"
    code = (
        "import sys; from sweep.data.prepare import TextFiles, prepare; from sweep.data.sources import TokenizerConfig;"
        "c = TextFiles(files=[sys.argv[1]], tokenizer=TokenizerConfig(vocab_size=300), validation_fraction=0.2);"
        "print(prepare(c, sys.argv[2], progress=False).fingerprint)"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code, corpus, root], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    answers = {process.communicate()[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0] * 4
    assert len(answers) == 1
    assert sorted(path.name for path in root.iterdir()) == sorted([*answers, "requests"])
    assert find(config(corpus), root, verify=True).fingerprint in answers


def test_the_folder_that_another_process_made_meanwhile_is_used(corpus, tmp_path, monkeypatch):
    root = tmp_path / "tokens"
    first = make(corpus, root)
    monkeypatch.setattr(sweep.data.prepare, "find", lambda *args, **kwargs: None)
    stamp = (first.folder / "meta.json").read_text()
    assert make(corpus, root).fingerprint == first.fingerprint
    assert (first.folder / "meta.json").read_text() == stamp


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_what_is_interrupted_leaves_nothing(corpus, tmp_path, monkeypatch, error):
    def fail(*args):
        raise error

    root = tmp_path / "tokens"
    monkeypatch.setattr(sweep.data.prepare, "reference_lines", fail)
    wanted = UserError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(wanted) as caught:
        make(corpus, root)
    if wanted is UserError:
        assert str(caught.value) == f"paths.tokens={root}: the disk is full; free some space and prepare again"
    assert list(root.iterdir()) == []


def test_damaged_shards_are_refused_by_size_and_on_request_by_checksum(corpus, tmp_path):
    root = tmp_path / "tokens"
    path = make(corpus, root).folder / "train.bin"
    data = path.read_bytes()
    path.write_bytes(b"\1" + data[1:])
    make(corpus, root)
    with pytest.raises(UserError, match=r"train\.bin: damaged \(its checksum"):
        prepare(config(corpus), root, progress=False, verify=True)
    path.write_bytes(data[:-1])
    with pytest.raises(UserError, match=r"train\.bin: damaged .* delete the folder .* run prepare again"):
        make(corpus, root)


def test_a_damaged_tokenizer_is_refused(corpus, tmp_path):
    path = make(corpus, tmp_path / "tokens").folder / "tokenizer.json"
    path.write_text(path.read_text()[:-10])
    with pytest.raises(UserError, match=r"tokenizer\.json: damaged \(its checksum"):
        make(corpus, tmp_path / "tokens")
    path.unlink()
    with pytest.raises(UserError, match=r"tokenizer\.json: damaged \(missing\)"):
        make(corpus, tmp_path / "tokens")


def test_a_damaged_note_of_a_request_is_written_again(corpus, tmp_path):
    root = tmp_path / "tokens"
    first = make(corpus, root)
    (note,) = (root / "requests").iterdir()
    note.write_text("{")
    assert make(corpus, root).fingerprint == first.fingerprint
    assert json.loads(note.read_text()) == {"fingerprint": first.fingerprint}


@pytest.mark.parametrize(("count", "fraction", "split"), [(3, 0.0001, "validation"), (3, 0.9999, "train")])
def test_an_empty_split(tmp_path, count, fraction, split):
    path = tmp_path / "few.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"text {n}"}) for n in range(count)))
    few = TextFiles(files=[str(path)], validation_fraction=fraction, tokenizer=TokenizerConfig(kind="bytes"))
    with pytest.raises(UserError, match=rf"validation_fraction=\S+: the {split} split is empty \(3 documents in all\)"):
        prepare(few, tmp_path / "tokens", progress=False)


@pytest.mark.parametrize("fraction", [0, 1, -0.1])
def test_an_impossible_fraction(corpus, tmp_path, fraction):
    impossible = config(corpus)
    impossible.validation_fraction = fraction
    with pytest.raises(UserError, match=r"data\.validation_fraction=.*: must be between 0 and 1"):
        find(impossible, tmp_path)


def test_a_given_tokenizer_is_part_of_the_request(corpus, tmp_path):
    root = tmp_path / "tokens"
    first = make(corpus, root)
    given = tmp_path / "tokenizer.json"
    given.write_bytes((first.folder / "tokenizer.json").read_bytes())
    again = config(corpus)
    again.tokenizer = TokenizerConfig(kind="file", path=str(given))
    assert find(again, root) is None
    assert prepare(again, root, progress=False).fingerprint == first.fingerprint, "the same ids, the same content"
    given.write_text(given.read_text() + " ")
    assert find(again, root) is None


def test_the_bpe_sample_does_not_depend_on_the_order_of_documents(tmp_path):
    samples = []
    for order in (1, -1):
        spool = Spool(tmp_path, 0.1)
        for text in stories(200)[::order]:
            spool.add(text)
        samples.append(list(spool.sample(2000)))
        spool.close()
    assert samples[0] == samples[1]
    assert 1000 < sum(map(len, samples[0])) <= 2000


def test_reference_lines_of_text_fall_with_the_order(corpus, tmp_path):
    lines = make(corpus, tmp_path / "tokens").reference_lines
    assert lines["uniform"] > lines["unigram"] > lines["bigram"] > lines["trigram"]


def test_a_synthetic_source_knows_its_entropy_rate(tmp_path):
    source = MarkovSource(tokens=50_000)
    tokens = prepare(source, tmp_path, progress=False)
    assert tokens.reference_lines["entropy_rate"] == source.entropy_rate_nats()
    assert tokens.vocab_size == 256
    assert len(tokens.train) == 47_500
    assert tokens.decode([1, 0, 2]) == "1 0 2"
    assert find(source, tmp_path).fingerprint == tokens.fingerprint
    assert find(MarkovSource(tokens=50_000, seed=1), tmp_path) is None


def test_the_standard_library_is_enough_for_the_default_sweep(tmp_path):
    """At least 5M training tokens at a vocabulary of 512; measured on a sample, all of it takes some 10 seconds."""
    source = PythonSource()
    with contextlib.closing(Spool(tmp_path, source.validation_fraction)) as spool:
        for text in source.documents():
            spool.add(text)
        tokenizer = tokenizers.make(source.tokenizer, spool.sample(2_000_000))
        sample = list(spool.sample(500_000))
        ids = sum(map(len, tokenizers.encode(tokenizer, sample, eot_id=0)))
        bytes_per_token = sum(len(text.encode()) for text in sample) / ids
        assert 1.9 < bytes_per_token < 2.3
        assert spool.text_bytes("train") / bytes_per_token > 5_000_000
        assert spool.text_bytes("validation") / bytes_per_token > 50_000
        assert spool.documents("validation") > 10
