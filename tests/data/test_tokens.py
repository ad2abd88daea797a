import json
import math

import numpy as np
import pytest
import torch

from sweep.common.errors import UserError
from sweep.data.prepare import MarkovSource, prepare
from sweep.data.tokens import (
    Batches,
    Tokens,
    count_sequences,
    more_than_available,
    windows,
)
from sweep.train.setup import documents_from

SEQ_LEN = 8
STREAM = np.arange(1000, dtype=np.uint16)  # token n is its own position, so a row says which window it is


def window_numbers(inputs_BT):
    return (inputs_BT[:, 0] // SEQ_LEN).tolist()


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    return prepare(MarkovSource(tokens=20_000), tmp_path_factory.mktemp("tokens"), progress=False)


@pytest.fixture
def copied(tokens, tmp_path):
    """A folder of our own to damage."""
    folder = tmp_path / tokens.fingerprint
    folder.mkdir()
    for path in tokens.folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.mark.parametrize(("length", "sequences"), [(0, 0), (1, 0), (8, 0), (9, 1), (16, 1), (17, 2), (1000, 124)])
def test_count_sequences_needs_one_token_more_for_the_last_target(length, sequences):
    assert count_sequences(STREAM[:length], SEQ_LEN) == sequences


def test_a_batch_is_whole_windows_and_targets_are_one_token_later():
    inputs_BT, targets_BT = Batches(STREAM, SEQ_LEN, sequences=4, seed=3).batch(5)
    assert inputs_BT.shape == targets_BT.shape == (4, SEQ_LEN)
    assert inputs_BT.dtype == targets_BT.dtype == np.int64
    assert (inputs_BT[:, 0] % SEQ_LEN == 0).all()
    assert (np.diff(inputs_BT, axis=1) == 1).all()
    assert (targets_BT == inputs_BT + 1).all()


def test_each_epoch_reads_every_unique_sequence_once_in_another_order():
    batches = Batches(STREAM, SEQ_LEN, sequences=5, unique_sequences=20, seed=0)
    epochs = [[n for i in range(4) for n in window_numbers(batches.batch(4 * e + i)[0])] for e in range(3)]
    assert len(set(epochs[0])) == 20
    assert set(epochs[0]) == set(epochs[1]) == set(epochs[2])
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_batch_straddles_epochs_and_may_hold_several():
    whole = Batches(STREAM, SEQ_LEN, sequences=1, unique_sequences=7, seed=1)
    stream = [window_numbers(whole.batch(i)[0])[0] for i in range(40)]
    for sequences in (3, 7, 20):
        batches = Batches(STREAM, SEQ_LEN, sequences, unique_sequences=7, seed=1)
        for i in range(40 // sequences):
            assert window_numbers(batches.batch(i)[0]) == stream[i * sequences : (i + 1) * sequences]


def test_a_batch_does_not_depend_on_the_batches_before_it():
    wanted = Batches(STREAM, SEQ_LEN, 4, 10, seed=5)
    forward = [wanted.batch(i)[0].tolist() for i in range(30)]
    for i in (29, 0, 17, 3, 28, 1):
        assert Batches(STREAM, SEQ_LEN, 4, 10, seed=5).batch(i)[0].tolist() == forward[i]
        assert wanted.batch(i)[0].tolist() == forward[i]


def test_subsets_are_nested_and_do_not_depend_on_the_seed():
    def subset(unique, seed):
        batches = Batches(STREAM, SEQ_LEN, sequences=unique, unique_sequences=unique, seed=seed)
        return set(window_numbers(batches.batch(0)[0]))

    assert subset(10, seed=0) == subset(10, seed=1)
    assert subset(10, seed=0) < subset(30, seed=0) < subset(100, seed=2)
    assert max(subset(10, seed=0)) > 30, "a subset is spread over the stream, not its beginning"


def test_seeds_give_other_orders():
    orders = [window_numbers(Batches(STREAM, SEQ_LEN, 50, seed=seed).batch(0)[0]) for seed in range(3)]
    assert orders[0] != orders[1] != orders[2]


def test_golden_order():
    """Trials are named by their config and compared bit by bit: if this changes, raise the trial's schema version."""
    batches = Batches(STREAM, SEQ_LEN, sequences=6, unique_sequences=12, seed=0)
    assert window_numbers(batches.batch(0)[0]) == [123, 115, 27, 43, 82, 9]
    assert window_numbers(batches.batch(2)[0]) == [13, 42, 16, 9, 27, 115]


@pytest.mark.parametrize("unique", [0, -1, 125])
def test_more_unique_sequences_than_there_are(unique):
    with pytest.raises(UserError, match=rf"unique_sequences={unique}: must be 1 to 124"):
        Batches(STREAM, SEQ_LEN, 4, unique)


def test_windows_share_one_token_with_the_next_and_no_memory_is_copied():
    rows = windows(STREAM, SEQ_LEN)
    assert rows.shape == (124, SEQ_LEN + 1)
    assert (rows[:, 0] == 8 * np.arange(124)).all()
    assert (np.diff(rows.astype(int), axis=1) == 1).all()
    assert np.shares_memory(rows, STREAM)
    assert not rows.flags.writeable


def test_documents_are_counted_by_the_ends_before_a_position():
    tokens_BT = torch.tensor([[5, 0, 6, 7, 0, 0, 8], [0, 1, 1, 1, 1, 1, 0]])
    assert documents_from(tokens_BT, eot_id=0).tolist() == [[0, 0, 1, 1, 1, 2, 3], [0, 1, 1, 1, 1, 1, 1]]
    assert not documents_from(tokens_BT, eot_id=None).any()


def test_open_gives_what_was_prepared(tokens):
    again = Tokens.open(tokens.folder.parent, tokens.fingerprint, verify=True)
    assert np.array_equal(again.train, tokens.train)
    assert again.reference_lines == tokens.reference_lines
    assert again.eot_id is None
    assert math.isnan(again.bytes_per_token)
    assert math.isnan(again.bits_per_byte(1.0))
    assert again.decode(np.array([3, 0, 12])) == "3 0 12"


def test_unknown_fingerprint(tokens):
    with pytest.raises(UserError, match=r"0123: no prepared tokens here; run: python -m sweep prepare"):
        Tokens.open(tokens.folder.parent, "0123")


@pytest.mark.parametrize("name", ["train.bin", "validation.bin"])
def test_a_truncated_shard_is_named(copied, name):
    path = copied / name
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(
        UserError, match=rf"{name}: damaged \(.* bytes instead of .*\); delete the folder .* prepare again"
    ):
        Tokens.open(copied.parent, copied.name)


def test_a_missing_shard_is_named(copied):
    (copied / "train.bin").unlink()
    with pytest.raises(UserError, match=r"train\.bin: damaged \(0 bytes"):
        Tokens.open(copied.parent, copied.name)


def test_a_changed_shard_is_found_by_its_checksum(copied):
    path = copied / "train.bin"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    Tokens.open(copied.parent, copied.name)
    with pytest.raises(UserError, match=r"train\.bin: damaged \(its checksum"):
        Tokens.open(copied.parent, copied.name, verify=True)


@pytest.mark.parametrize("text", ["{", "[]", json.dumps({"fingerprint": "x"})])
def test_a_damaged_meta_is_named(copied, text):
    (copied / "meta.json").write_text(text)
    with pytest.raises(UserError, match=r"meta\.json: damaged"):
        Tokens.open(copied.parent, copied.name)


def test_a_folder_under_another_name_is_refused(copied):
    copied.rename(copied.with_name("other"))
    with pytest.raises(UserError, match=rf"meta\.json: damaged \(it is about {copied.name}\)"):
        Tokens.open(copied.parent, "other")


def test_too_many_unique_tokens_says_how_many_there_are(tokens):
    error = more_than_available(10**9, tokens, seq_len=128)
    assert "data.unique_tokens=1000000000" in str(error)
    assert str((len(tokens.train) - 1) // 128 * 128) in str(error)
