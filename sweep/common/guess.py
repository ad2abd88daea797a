"""What a misspelt word was probably meant to be."""

import difflib
from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str], as_written: str = "{}") -> str:
    """The words `did you mean launch? ` where a known word is close to this one, else none. `as_written` says how the
    word is given, such as `sweep={}`."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean {as_written.format(close[0])}? " if close else ""
