"""Prepared token shards on disk, and the batches that training draws from them.

A token folder is `<root>/<fingerprint>/` with `meta.json`, `train.bin` and `validation.bin` (little-endian
uint16 or uint32, one stream per split) and, for text, `tokenizer.json`. `sweep.data.prepare.prepare` writes it and
nothing changes it later.

Shape suffixes: B sequences in a batch, T tokens in a sequence, N windows of a stream.
"""

import hashlib
import json
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sweep.common.errors import UserError
from sweep.data.placeholder import PlaceholderTokens

Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = ("train", "validation")
TokenArray = NDArray[np.unsignedinteger[Any]]


class Tokens:
    """One prepared data set, memory-mapped. Open it with `Tokens.open`."""

    def __init__(self, folder: Path, meta: dict[str, Any]):
        self.folder = folder
        self.meta = meta
        self.fingerprint: str = meta["fingerprint"]
        self.vocab_size: int = meta["vocab_size"]
        self.eot_id: int | None = meta["eot_id"]
        self.bytes_per_token: float = math.nan if meta["bytes_per_token"] is None else meta["bytes_per_token"]
        self.reference_lines: dict[str, float] = meta["reference_lines"]
        self.train: TokenArray = self._map("train")
        self.validation: TokenArray = self._map("validation")
        self._tokenizer: Any = None

    @classmethod
    def open(cls, root: Path | str, fingerprint: str, verify: bool = False) -> "Tokens":
        """Open `<root>/<fingerprint>`; sizes are always checked, the shards' checksums where `verify`.

        Raises UserError, naming the file and what to do, where the folder is missing or damaged.
        """
        folder = Path(root) / fingerprint
        meta = _read_meta(folder)
        for split in SPLITS:
            path = folder / f"{split}.bin"
            wanted_bytes = meta[split]["tokens"] * np.dtype(meta["dtype"]).itemsize
            found_bytes = path.stat().st_size if path.exists() else 0
            if found_bytes != wanted_bytes:
                raise _damaged(path, f"{found_bytes} bytes instead of {wanted_bytes}")
            if verify and file_sha256(path) != meta[split]["sha256"]:
                raise _damaged(path, "its checksum differs from meta.json")
        tokenizer = folder / "tokenizer.json"
        if meta["eot_id"] is not None and not tokenizer.exists():
            raise _damaged(tokenizer, "missing")
        if meta["eot_id"] is not None and file_sha256(tokenizer) != meta["tokenizer_sha256"]:
            raise _damaged(tokenizer, "its checksum differs from meta.json")
        return cls(folder, meta)

    def decode(self, ids: Any) -> str:
        """Text of a sequence of token ids; for a source without text, the ids with spaces between."""
        ids = [int(i) for i in ids]
        if self.eot_id is None:
            return " ".join(map(str, ids))
        if self._tokenizer is None:
            from tokenizers import Tokenizer

            self._tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        return self._tokenizer.decode(ids, skip_special_tokens=False)

    def bits_per_byte(self, loss_nats: float) -> float:
        """Loss per byte of validation text, in bits; nan where the tokens are not text."""
        return loss_nats / math.log(2) / self.bytes_per_token

    def _map(self, split: str) -> TokenArray:
        return np.memmap(self.folder / f"{split}.bin", dtype=self.meta["dtype"], mode="r")


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_NEEDED = (
    "fingerprint",
    "vocab_size",
    "eot_id",
    "tokenizer_sha256",
    "dtype",
    "bytes_per_token",
    "reference_lines",
)


def _read_meta(folder: Path) -> dict[str, Any]:
    path = folder / "meta.json"
    if not path.exists():
        raise UserError(f"{folder}: no prepared tokens here; run: python -m sweep prepare data=…")
    try:
        meta = json.loads(path.read_text("utf-8"))
    except ValueError:
        raise _damaged(path, "not valid JSON") from None
    if not isinstance(meta, dict) or any(key not in meta for key in (*_NEEDED, *SPLITS)):
        raise _damaged(path, "a field is missing")
    if meta["fingerprint"] != folder.name:
        raise _damaged(path, f"it is about {meta['fingerprint']}")
    return meta


def _damaged(path: Path, what: str) -> UserError:
    return UserError(f"{path}: damaged ({what}); delete the folder {path.parent} and run prepare again")


def count_sequences(tokens_1d: TokenArray, seq_len: int) -> int:
    """Windows of `seq_len` inputs (and one more token, the last target) that fit, at stride `seq_len`."""
    return max(0, (len(tokens_1d) - 1) // seq_len)


def windows(tokens_1d: TokenArray, seq_len: int) -> TokenArray:
    """View (N, seq_len + 1) of all windows at stride `seq_len`: row n is tokens [n·T, n·T + T]."""
    count = count_sequences(tokens_1d, seq_len)
    flat = np.asarray(tokens_1d)  # the same memory without np.memmap's slow indexing
    (stride,) = flat.strides
    return np.lib.stride_tricks.as_strided(
        flat, shape=(count, seq_len + 1), strides=(seq_len * stride, stride), writeable=False
    )


def more_than_available(unique_tokens: int, tokens: Tokens | PlaceholderTokens, seq_len: int) -> UserError:
    """The error for a `data.unique_tokens` that the training split cannot give."""
    available = count_sequences(tokens.train, seq_len) * seq_len
    return UserError(
        f"data.unique_tokens={unique_tokens}: the training split of {tokens.fingerprint} has {available} "
        f"tokens in whole sequences of {seq_len}; ask for at most that many, or prepare more data"
    )


class Batches:
    """Training batches as a pure function of (seed, i).

    The stream of sequences is epoch after epoch, each a permutation of the unique sequences keyed by
    (seed, epoch); batch i is positions i·B to i·B + B - 1 of it, so a batch may straddle epochs. The unique
    sequences are a prefix of one fixed permutation, the same for every seed: sets for growing
    `unique_sequences` are nested.
    """

    def __init__(
        self,
        tokens_1d: TokenArray,
        seq_len: int,
        sequences: int,
        unique_sequences: int | None = None,
        seed: int = 0,
    ):
        available = count_sequences(tokens_1d, seq_len)
        unique = available if unique_sequences is None else unique_sequences
        if not 1 <= unique <= available:
            raise UserError(
                f"unique_sequences={unique}: must be 1 to {available}, the sequences of {seq_len} "
                f"tokens that {len(tokens_1d)} training tokens hold"
            )
        self.sequences = sequences
        self.unique_sequences = unique
        self.seed = seed
        self._windows = windows(tokens_1d, seq_len)
        self._subset = _permutation(available, _SUBSET_KEY, 0)[:unique]
        self._orders: dict[int, NDArray[np.int64]] = {}

    def batch(self, i: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(inputs_BT, targets_BT), views of one int64 array: targets are the inputs shifted by one token."""
        rows = self._windows[self.window_numbers(i)].astype(np.int64)
        return rows[:, :-1], rows[:, 1:]

    def window_numbers(self, i: int) -> NDArray[np.int64]:
        """Which windows of the stream make batch i."""
        epoch, start = divmod(i * self.sequences, self.unique_sequences)
        chosen = self._order(epoch)[start : start + self.sequences]
        while len(chosen) < self.sequences:
            epoch += 1
            chosen = np.concatenate([chosen, self._order(epoch)[: self.sequences - len(chosen)]])
        return chosen

    def _order(self, epoch: int) -> NDArray[np.int64]:
        """Window numbers of an epoch in the order they are read; the last two epochs are kept."""
        if epoch not in self._orders:
            while len(self._orders) >= 2:
                del self._orders[next(iter(self._orders))]
            self._orders[epoch] = self._subset[_permutation(self.unique_sequences, self.seed, epoch)]
        return self._orders[epoch]


_SUBSET_KEY = 2**64 - 1  # no seed: seeds are below 2**63


def _permutation(count: int, key: int, stream: int) -> NDArray[np.int64]:
    """A permutation of `count` keyed by two integers.

    Sorts Philox's raw output: NumPy promises to keep bit generators as they are across versions, but not
    `Generator.permutation`.
    """
    bits = np.random.Philox(key=np.array([key, stream], dtype=np.uint64)).random_raw(count)
    return np.argsort(bits, kind="stable")
