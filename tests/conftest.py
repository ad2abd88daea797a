import json
import os
import signal

import pytest

from tests.helpers import tiny

pytest_plugins = [
    "tests.helpers.lanes",
    "tests.helpers.slurm_cluster",
    "tests.helpers.held_submissions",
    "tests.helpers.processes",
]
os.environ["TRITON_INTERPRET"] = "1"  # read when kernels are decorated, so before they are imported
os.environ["WANDB_MODE"] = "disabled"  # what a test sends to W&B, it says
os.environ["OMP_NUM_THREADS"] = "1"  # test processes run beside each other, as many as there are cores
# A shell that starts the tests in the background has SIGINT ignored, and what they launch would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """(corpus, tokens folder): a small text, and its token shards prepared once."""
    from sweep.data.prepare import TextFiles, prepare
    from sweep.data.sources import TokenizerConfig

    folder = tmp_path_factory.mktemp("data")
    corpus = tiny.write_corpus(folder / "corpus.jsonl")
    config = TextFiles(files=[str(corpus)], tokenizer=TokenizerConfig(kind="bytes"), validation_fraction=0.2)
    prepare(config, folder / "tokens", progress=False)
    return corpus, folder / "tokens"


@pytest.fixture(scope="session")
def overrides(prepared):
    """Hydra overrides of a trial over the small text, all but its budget."""
    corpus, tokens = prepared
    data = [
        "data=text",
        f"data.files=[{json.dumps(str(corpus))}]",
        "data.tokenizer.kind=bytes",
        "data.validation_fraction=0.2",
    ]
    return [*data, f"paths.tokens={tokens}", *tiny.OVERRIDES]


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """An empty folder to run verbs in; what they do to signals is undone."""
    monkeypatch.chdir(tmp_path)
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)}
    yield tmp_path
    for number, handler in kept.items():
        signal.signal(number, handler)
