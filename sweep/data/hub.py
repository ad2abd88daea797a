"""Datasets of the Hugging Face Hub, streamed: only the tokens stay on disk (and text while they are made)."""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sweep.common.errors import UserError
from sweep.common.keys import key
from sweep.common.units import parse_count
from sweep.data.sources import TextConfig, no_text_field

PROBE_SECONDS = 20.0


@dataclass
class HubDataset(TextConfig):
    """Any dataset of the Hub with a text column.

    `name` is the dataset's configuration, `revision` a branch, tag or commit; `max_documents` and `max_bytes`
    (of UTF-8 text, e.g. 500M) end the stream. `HF_ENDPOINT` chooses another Hub, as everywhere.
    """

    source: str = key("hub", "which reader; set by the file of conf/data")
    path: str = key("", "name of the dataset on the Hub, such as roneneldan/TinyStories")
    name: str | None = key(None, "the dataset's configuration")
    split: str = key("train", "the dataset's split")
    revision: str | None = key(None, "a branch, tag or commit of the dataset")
    text_field: str = key("text", "field or column that holds the text")
    max_documents: int | None = key(None, "documents to read at most")
    max_bytes: int | float | str | None = key(None, "UTF-8 text to read at most, such as 500M; null: the whole split")

    @property
    def title(self) -> str:
        return self.path

    def identity(self) -> dict[str, Any]:
        """Nothing beyond the config: if a branch moves on, its prepared tokens stay until deleted."""
        if not self.path:
            raise UserError("data.path: name a dataset of the Hub, e.g. data.path=roneneldan/TinyStories")
        if self.max_bytes is not None:
            parse_count("data.max_bytes", self.max_bytes)
        return {}

    def documents(self) -> Iterator[str]:
        remaining_documents = math.inf if self.max_documents is None else self.max_documents
        remaining_bytes = math.inf if self.max_bytes is None else parse_count("data.max_bytes", self.max_bytes)
        for row in self._rows():
            text = row.get(self.text_field)
            if not isinstance(text, str):
                raise no_text_field(f"data.path={self.path}", self.text_field, row)
            remaining_documents -= 1
            remaining_bytes -= len(text.encode())
            if remaining_documents < 0 or remaining_bytes < 0:
                return
            yield text

    def _rows(self) -> Iterator[dict[str, Any]]:
        import datasets
        from huggingface_hub.errors import HTTPError

        _quiet()
        revision = self._commit()
        try:
            yield from datasets.load_dataset(self.path, self.name, split=self.split, revision=revision, streaming=True)
        except (OSError, HTTPError, ValueError, datasets.exceptions.DatasetsError) as error:
            advice = f"check data.name={self.name}, data.split={self.split}"
            raise _failed(f"data.path={self.path}", error, advice) from error

    def _commit(self) -> str:
        """The commit that `revision` means now. One request without retries: no network is known at once."""
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HTTPError

        try:
            commit = HfApi().dataset_info(self.path, revision=self.revision, timeout=PROBE_SECONDS).sha
        except (OSError, HTTPError, ValueError) as error:
            advice = f"check the name and data.revision={self.revision}"
            raise _failed(f"data.path={self.path}", error, advice) from error
        return commit or self.revision or "main"


def download_tokenizer(name: str) -> str:
    """Path of the `tokenizer.json` of a Hub model, by name or name@revision, in the Hub's own cache."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HTTPError

    _quiet()
    repository, _, revision = name.partition("@")
    try:
        return hf_hub_download(repository, "tokenizer.json", revision=revision or None)
    except (OSError, HTTPError, ValueError) as error:
        advice = "name a model that has a tokenizer.json"
        raise _failed(f"data.tokenizer.path={name}", error, advice) from error


def _quiet() -> None:
    """Its retries are warnings, line after line; the error that ends them says it all."""
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


def _failed(where: str, error: Exception, advice: str) -> UserError:
    """One line for what can go wrong between here and the Hub."""
    from huggingface_hub.constants import ENDPOINT
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalEntryNotFoundError

    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if status in (401, 403, 404):
            return UserError(f"{where}: {ENDPOINT} answers {status} (absent or private); {advice}")
        return UserError(f"{where}: {ENDPOINT} answers {status}; try again later")
    if isinstance(error, ConnectionError | TimeoutError | HTTPError | LocalEntryNotFoundError):
        return UserError(f"{where}: cannot reach {ENDPOINT}; check the network, or copy a tokens folder from elsewhere")
    return UserError(f"{where}: {' '.join(str(error).split())[:300]}; {advice}")
