"""Speed of encoding text into tokens: MB of UTF-8 text per second, by vocabulary size and number of threads.

  python -m benchmarks.encoding

The text is the standard library as `data=pysource` reads it, up to 12 MB of it chosen by hash. `prepare` is all of
it from files to shards: reading, splitting, training the tokenizer, encoding, hashing and counting n-grams.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.provenance import save

TEXT_BYTES = 12_000_000
REPEATS = 3
VOCABULARIES = (None, 512, 4096)  # None: raw bytes


def main() -> None:
    if len(sys.argv) == 2 and sys.argv[1] == "--measure":
        print(json.dumps(measure()))
        return
    other_load = round(os.getloadavg()[0], 1)  # over the last minute: other processes share the cores
    rows = []
    for threads in sorted({1, os.cpu_count() or 1}):
        env = os.environ | {"RAYON_NUM_THREADS": str(threads)}  # read once, when the tokenizer's threads start
        command = [sys.executable, "-m", "benchmarks.encoding", "--measure"]
        done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
        rows += [{"threads": threads, **row} for row in json.loads(done.stdout)]
    measured = {"load_average_before": other_load, "encoding": rows, "prepare": measure_prepare()}
    path = save("encoding", ["tokenizers", "numpy"], measured)
    print(path.read_text())


def measure() -> list[dict]:
    """One row per vocabulary, with the threads of this process: the best of several repeats."""
    from sweep.data import tokenizer as tokenizers
    from sweep.data.deduplicate import Spool
    from sweep.data.prepare import ENCODE_BYTES, batches_of
    from sweep.data.sources import PythonSource, TokenizerConfig

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        spool = Spool(Path(folder), 0.03)
        for text in PythonSource().documents():
            spool.add(text)
        texts = list(spool.sample(TEXT_BYTES))
        spool.close()
    text_bytes = sum(len(text.encode()) for text in texts)
    for vocab_size in VOCABULARIES:
        config = TokenizerConfig("bpe", vocab_size) if vocab_size else TokenizerConfig("bytes")
        start = time.perf_counter()
        tokenizer = tokenizers.make(config, texts)
        train_seconds = time.perf_counter() - start
        best = float("inf")
        for _ in range(REPEATS):
            start = time.perf_counter()
            tokens = sum(
                len(ids)
                for batch in batches_of(iter(texts), ENCODE_BYTES)
                for ids in tokenizers.encode(tokenizer, batch, 0)
            )
            best = min(best, time.perf_counter() - start)
        rows.append(
            {
                "vocab_size": tokenizers.vocab_size(tokenizer),
                "text_mb": round(text_bytes / 1e6, 2),
                "tokens": tokens,
                "train_seconds": round(train_seconds, 2),
                "encode_mb_per_second": round(text_bytes / best / 1e6, 2),
                "encode_tokens_per_second": round(tokens / best),
            }
        )
    return rows


def measure_prepare() -> dict:
    """The seconds of the whole `prepare data=pysource` the first time, and of finding its tokens again."""
    from sweep.data.prepare import find, prepare
    from sweep.data.sources import PythonSource

    with tempfile.TemporaryDirectory() as root:
        start = time.perf_counter()
        tokens = prepare(PythonSource(), root, progress=False)
        seconds = time.perf_counter() - start
        start = time.perf_counter()
        assert find(PythonSource(), root) is not None
        text_mb = sum(tokens.meta[split]["bytes"] for split in ("train", "validation")) / 1e6
        return {
            "text_mb": round(text_mb, 2),
            "train_tokens": len(tokens.train),
            "seconds": round(seconds, 2),
            "mb_per_second": round(text_mb / seconds, 2),
            "find_seconds": round(time.perf_counter() - start, 3),
        }


if __name__ == "__main__":
    main()
