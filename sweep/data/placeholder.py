"""Stand-ins for data that is not there yet, so that a plan can be made of it before its ids are known."""

import hashlib
import json
from dataclasses import asdict

import numpy as np

from sweep.data.sources import DataConfig

PREFIX = "unprepared"  # stands in plans that wait in a queue, so it stays as it is


class PlaceholderTokens:
    """What a plan asks of tokens: a vocabulary, and as many of them as you like."""

    def __init__(self, vocab_size: int, fingerprint: str = PREFIX):
        self.fingerprint = fingerprint
        self.vocab_size = vocab_size
        self.train = self.validation = np.broadcast_to(np.uint16(0), (2**50,))


def stand_in(config: DataConfig) -> PlaceholderTokens:
    """The stand-in of a data section, which no other section has but those that only read less of it."""
    asked = {key: value for key, value in asdict(config).items() if key != "unique_tokens"}
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:12]
    return PlaceholderTokens(config.expected_vocab_size(), f"{PREFIX}-{digest}")


def is_stand_in(fingerprint: str) -> bool:
    return fingerprint.startswith(PREFIX)
