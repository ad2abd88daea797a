"""From a `data=…` config to token shards, made once and found again by what they contain.

Documents → without duplicates, split by content hash → tokenizer, trained on the training split → ids, with
an end-of-text token after each document → `train.bin`, `validation.bin` → fingerprint, a hash of ids and
vocabulary.

`<root>/<fingerprint>/` is written under a temporary name and renamed; `<root>/requests/<hash>.json` remembers
which fingerprint a request (the config, and what tells one version of the source from another) led to.
"""

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import numpy as np

from sweep.common.errors import UserError
from sweep.common.files import write_json
from sweep.data.deduplicate import Spool
from sweep.data.hub import HubDataset
from sweep.data.markov import MarkovSource
from sweep.data.ngrams import COUNTED_TOKENS, reference_lines
from sweep.data.progress import Phases
from sweep.data.sources import DataConfig, PythonSource, TextConfig, TextFiles
from sweep.data.tokens import SPLITS, Tokens, file_sha256

SCHEMAS: dict[str, type[DataConfig]] = {
    "pysource": PythonSource,
    "text": TextFiles,
    "hub": HubDataset,
    "markov": MarkovSource,
}
FORMAT = 1  # raise it when the same request must give other tokens
TOKENIZER_SAMPLE_BYTES = 8_000_000
ENCODE_BYTES = 2_000_000  # text handed to the tokenizer's threads at a time; ids take some 50 times that in memory


def find(config: DataConfig, root: Path | str, verify: bool = False) -> Tokens | None:
    """What this config was prepared to before, or None. UserError where that is damaged."""
    _check(config)
    request = _request_path(config, Path(root))
    try:
        fingerprint = json.loads(request.read_text("utf-8"))["fingerprint"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None  # never asked, or a half-copied note of it
    if not (Path(root) / fingerprint).exists():
        return None  # the tokens were deleted
    return Tokens.open(root, fingerprint, verify=verify)


def prepare(config: DataConfig, root: Path | str, progress: bool = True, verify: bool = False) -> Tokens:
    """Tokens for this config, made unless they are there. Safe for several processes at once.

    `verify` checks checksums of what is there. UserError for a source that cannot be read or split, for
    damaged tokens, and for a full disk.
    """
    root = Path(root)
    found = find(config, root, verify=verify)
    if found is not None:
        return found
    with _work_folder(root) as work, Phases(config.title, progress) as bar:
        meta = _make(config, work, bar)
        write_json(work / "meta.json", meta)
        _publish(work, root / meta["fingerprint"])
        write_json(_request_path(config, root), {"fingerprint": meta["fingerprint"]})
    return Tokens.open(root, meta["fingerprint"], verify=verify)


def _check(config: DataConfig) -> None:
    if not 0 < config.validation_fraction < 1:
        raise UserError(f"data.validation_fraction={config.validation_fraction}: must be between 0 and 1")
    if isinstance(config, TextConfig):
        from sweep.data.tokenizer import check

        check(config.tokenizer)


def _request_path(config: DataConfig, root: Path) -> Path:
    asked = asdict(config)
    del asked["unique_tokens"]
    request: dict[str, Any] = {"format": FORMAT, "config": asked, "identity": config.identity()}
    if isinstance(config, TextConfig) and config.tokenizer.kind == "file":
        request["tokenizer"] = file_sha256(Path(str(config.tokenizer.path)))
    digest = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
    return root / "requests" / f"{digest[:24]}.json"


@contextlib.contextmanager
def _work_folder(root: Path) -> Iterator[Path]:
    """A folder of this process alone, gone at the end whatever happens; a full disk is one line."""
    work = root / f".preparing-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        work.mkdir(parents=True)
        yield work
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"paths.tokens={root}: the disk is full; free some space and prepare again") from error
        raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _publish(work: Path, folder: Path) -> None:
    """Rename, unless the same content is there already (another process, or another request, made it)."""
    try:
        work.rename(folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def _make(config: DataConfig, work: Path, bar: Phases) -> dict[str, Any]:
    """Write the shards (and tokenizer) to `work` and return what `meta.json` says."""
    start = time.perf_counter()
    if isinstance(config, TextConfig):
        made = _make_text(config, work, bar)
    else:
        made = _make_synthetic(cast(MarkovSource, config), work, bar)
    for split in SPLITS:
        if made[split]["tokens"] < 2:
            raise UserError(
                f"data.validation_fraction={config.validation_fraction}: the {split} split is empty "
                f"({made.get('documents', 0)} documents in all); change the fraction, add documents, "
                "or cut them smaller (data.document_bytes)"
            )
        made[split]["sha256"] = file_sha256(work / f"{split}.bin")
    bar.phase("counting n-grams")
    train, validation = (np.memmap(work / f"{split}.bin", dtype=made["dtype"], mode="r") for split in SPLITS)
    lines = reference_lines(train, validation, made["vocab_size"]) | made.pop("lines", {})
    content = {key: made[key] for key in ("dtype", "vocab_size", "eot_id", "vocab_sha256")}
    content |= {split: made[split]["sha256"] for split in SPLITS}
    fingerprint = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    return {
        "fingerprint": fingerprint,
        "format": FORMAT,
        "title": config.title,
        "source": asdict(config),
        **made,
        "reference_lines": lines,
        "reference_counted_tokens": min(len(train), COUNTED_TOKENS),
        "seconds": round(time.perf_counter() - start, 2),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _make_text(config: TextConfig, work: Path, bar: Phases) -> dict[str, Any]:
    from sweep.data import tokenizer as tokenizers

    with contextlib.closing(Spool(work, config.validation_fraction)) as spool:
        bar.phase("reading")
        for document in config.documents():
            bar.advance(spool.add(document))
        bar.phase("making the tokenizer")
        tokenizer = tokenizers.make(config.tokenizer, spool.sample(TOKENIZER_SAMPLE_BYTES))
        eot_id = tokenizers.eot_id(tokenizer)
        vocab_size = tokenizers.vocab_size(tokenizer)
        tokenizer.save(str(work / "tokenizer.json"))
        dtype = _dtype(vocab_size)
        made: dict[str, Any] = {
            "vocab_size": vocab_size,
            "vocab_sha256": tokenizers.digest(tokenizer),
            "tokenizer_sha256": file_sha256(work / "tokenizer.json"),
            "eot_id": eot_id,
            "dtype": dtype.str,
            "documents": sum(spool.documents(split) for split in SPLITS),
            "duplicates_dropped": spool.duplicates,
        }
        bar.phase("encoding", total=sum(spool.text_bytes(split) for split in SPLITS))
        for split in SPLITS:
            tokens = 0
            with (work / f"{split}.bin").open("wb") as file:
                for batch in batches_of(spool.read(split), ENCODE_BYTES):
                    for ids in tokenizers.encode(tokenizer, batch, eot_id):
                        file.write(np.asarray(ids, dtype=dtype).tobytes())
                        tokens += len(ids)
                    bar.advance(sum(map(len, batch)))
            made[split] = {
                "tokens": tokens,
                "documents": spool.documents(split),
                "bytes": spool.text_bytes(split),
            }
    validation = made["validation"]
    made["bytes_per_token"] = validation["bytes"] / max(1, validation["tokens"])
    return made


def _make_synthetic(config: MarkovSource, work: Path, bar: Phases) -> dict[str, Any]:
    bar.phase("generating")
    dtype = _dtype(config.vocab_size)
    made: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "vocab_sha256": None,
        "tokenizer_sha256": None,
        "eot_id": None,
        "dtype": dtype.str,
        "bytes_per_token": None,
        "lines": {"entropy_rate": config.entropy_rate_nats()},
    }
    for split in SPLITS:
        tokens = config.generate(split)
        (work / f"{split}.bin").write_bytes(tokens.astype(dtype).tobytes())
        made[split] = {"tokens": len(tokens), "documents": 0, "bytes": 0}
    return made


def _dtype(vocab_size: int) -> np.dtype[Any]:
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


def batches_of(documents: Iterator[str], limit_chars: int) -> Iterator[list[str]]:
    """Lists of documents of about `limit_chars` together."""
    batch: list[str] = []
    chars = 0
    for document in documents:
        batch.append(document)
        chars += len(document)
        if chars >= limit_chars:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch
