"""Documents on their way to tokens: without duplicates, split by content hash, spooled to disk.

A tokenizer must see training text before the first token can be written, and a big set does not fit in
memory, so documents wait in one file per split.
"""

import hashlib
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sweep.data.tokens import Split


class Spool:
    """Two files of concatenated UTF-8 in `folder`, and where each document lies.

    Memory: about 100 bytes per document, for the digests that find duplicates.
    """

    def __init__(self, folder: Path, validation_fraction: float):
        self.duplicates = 0
        self._validation_below = validation_fraction * 2**64
        self._seen: set[bytes] = set()
        self._paths: dict[Split, Path] = {
            "train": folder / "train.text",
            "validation": folder / "validation.text",
        }
        self._files = {split: path.open("w+b") for split, path in self._paths.items()}
        self._lengths: dict[Split, array[int]] = {"train": array("Q"), "validation": array("Q")}
        self._train_ranks = array("Q")  # a second hash, that orders training documents for the sample

    def add(self, document: str) -> int:
        """Size of the document in bytes; an empty one or an exact duplicate is dropped."""
        text = document.encode("utf-8", "replace")  # JSON can hold lone surrogates, which are no text
        if not text:
            return 0
        digest = hashlib.blake2b(text, digest_size=16).digest()
        if digest in self._seen:
            self.duplicates += 1
            return len(text)
        self._seen.add(digest)
        place, rank = int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")
        split: Split = "validation" if place < self._validation_below else "train"
        self._files[split].write(text)
        self._lengths[split].append(len(text))
        if split == "train":
            self._train_ranks.append(rank)
        return len(text)

    def documents(self, split: Split) -> int:
        return len(self._lengths[split])

    def text_bytes(self, split: Split) -> int:
        return sum(self._lengths[split])

    def read(self, split: Split) -> Iterator[str]:
        """All documents of a split in the order they came."""
        file = self._files[split]
        file.seek(0)
        for length in self._lengths[split]:
            yield file.read(length).decode("utf-8")

    def sample(self, limit_bytes: int) -> Iterator[str]:
        """Training documents chosen by hash, up to `limit_bytes`: the same for any order of the documents."""
        lengths = np.array(self._lengths["train"], dtype=np.int64)
        starts = np.cumsum(lengths) - lengths
        order = np.argsort(np.array(self._train_ranks, dtype=np.uint64), kind="stable")
        room = np.searchsorted(np.cumsum(lengths[order]), limit_bytes, side="right")
        file = self._files["train"]
        for chosen in order[: max(1, int(room))]:
            file.seek(starts[chosen])
            yield file.read(min(lengths[chosen], limit_bytes)).decode("utf-8", "ignore")

    def close(self) -> None:
        for split, file in self._files.items():
            file.close()
            self._paths[split].unlink()
