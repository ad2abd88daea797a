"""Text to token ids: byte-level BPE trained on a sample, raw bytes, or a tokenizer that exists already.

All kinds are `tokenizers.Tokenizer`s, so that they are stored (`tokenizer.json`), run and decoded in one way.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from sweep.common.errors import UserError
from sweep.data.sources import BYTES_VOCABULARY, TokenizerConfig

KINDS = ("bpe", "bytes", "file", "hub")
EOT = "<|endoftext|>"
OTHER_EOT = ("<|end_of_text|>", "<eos>", "</s>")  # names that a given tokenizer may have for it


def check(config: TokenizerConfig) -> None:
    """Refuse what cannot work before any text is read."""
    if config.kind not in KINDS:
        raise UserError(f"data.tokenizer.kind={config.kind}: must be one of {', '.join(KINDS)}")
    if config.kind == "bpe" and config.vocab_size < BYTES_VOCABULARY:
        raise UserError(
            f"data.tokenizer.vocab_size={config.vocab_size}: a byte-level BPE needs at least {BYTES_VOCABULARY}, "
            "the 256 bytes and the end-of-text token"
        )
    if config.kind in ("file", "hub") and not config.path:
        what = "a tokenizer.json" if config.kind == "file" else "a model of the Hub, e.g. openai-community/gpt2"
        raise UserError(f"data.tokenizer.path: kind={config.kind} needs {what}")
    if config.kind == "file" and not Path(str(config.path)).is_file():
        raise UserError(f"data.tokenizer.path={config.path}: no such file")


def make(config: TokenizerConfig, sample: Iterable[str]) -> Tokenizer:
    """The tokenizer that `config` asks for; only `bpe` looks at the sample of training documents."""
    check(config)
    if config.kind == "bpe":
        return train_bpe(sample, config.vocab_size)
    if config.kind == "bytes":
        return byte_tokenizer()
    tokenizer = _from_file(str(config.path)) if config.kind == "file" else _from_hub(str(config.path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def train_bpe(sample: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE as in GPT-2 (Radford et al. 2019, section 2.2); ids do not depend on threads or order."""
    tokenizer = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sample, trainer)
    return tokenizer


def byte_tokenizer() -> Tokenizer:
    """Ids 0 to 255 are the bytes in the order of their printable stand-ins, 256 is the end of a text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = _byte_level(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    tokenizer.add_special_tokens([AddedToken(EOT, special=True)])
    return tokenizer


def _byte_level(model: models.BPE) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _from_file(path: str) -> Tokenizer:
    try:
        return Tokenizer.from_file(path)
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"data.tokenizer.path={path}: not a tokenizer.json ({error})") from error


def _from_hub(name: str) -> Tokenizer:
    from sweep.data.hub import download_tokenizer

    return _from_file(download_tokenizer(name))


def encode(tokenizer: Tokenizer, documents: list[str], eot_id: int) -> Iterator[list[int]]:
    """Ids of each document, `eot_id` last; the library's threads share the documents.

    A document that spells out the end-of-text token gets the ids of its letters, not the token.
    """
    tokenizer.encode_special_tokens = True
    for encoding in tokenizer.encode_batch_fast(documents, add_special_tokens=False):
        yield [*encoding.ids, eot_id]


def eot_id(tokenizer: Tokenizer) -> int:
    """Id of the token that ends a document; a tokenizer without one gets one."""
    for name in (EOT, *OTHER_EOT):
        if (found := tokenizer.token_to_id(name)) is not None:
            return found
    tokenizer.add_special_tokens([AddedToken(EOT, special=True)])
    return vocab_size(tokenizer) - 1


def vocab_size(tokenizer: Tokenizer) -> int:
    """Number of ids, unused ones included."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def digest(tokenizer: Tokenizer) -> str:
    """Hash of what ids mean: the token strings by id (the file's layout may change with the library's version)."""
    vocab = sorted((i, token) for token, i in tokenizer.get_vocab(with_added_tokens=True).items())
    return hashlib.sha256(json.dumps(vocab).encode()).hexdigest()
