"""Windows of joined texts: documents one after the other, cut into sequences of one length.

A window is one text. It begins as the documents do, since a model that always saw a begin token is in trouble without;
inside it the token does not stand, so that no loss counts it as text. Only the generator's windows are cut anywhere, as
those that the embedded model was trained on.
"""

import itertools
import random
from collections.abc import Iterator
from typing import Any

from replaceme.config.calibrations import MICRO, CalibrationConfig, suffix_of
from replaceme.core.errors import ReplaceMeError
from replaceme.models.added_tokens import added_tokens


def packed(
    encoded: Iterator[list[int]], config: CalibrationConfig, tokenizer: Any
) -> tuple[Iterator[list[int]], list[int]]:
    """Return full sequences of `tokens` ids from joined documents, and the ids that each begins with.

    Each document is closed by one end-of-sequence token. A stream is cut as it comes; a .txt file, one document, is cut
    into windows that the seed puts in random order. Raises ReplaceMeError where nothing fits behind the begin.
    """
    first = next(encoded, [])
    begin = [] if config.dataset in MICRO else _begin(first, tokenizer)
    if len(begin) >= config.tokens:
        raise ReplaceMeError(f"{config.dataset}: tokens: {config.tokens} leaves no room behind what begins a text")
    documents = itertools.chain([first] if first else [], encoded)
    ids = itertools.chain.from_iterable(_inside(document, begin, tokenizer.eos_token_id) for document in documents)
    rows = _windows(ids, config.tokens - len(begin), begin)
    if suffix_of(config.dataset) != ".txt":
        return rows, begin
    windows = list(rows)
    if len(windows) > 1 and len(windows[-1]) < config.tokens:
        windows.pop()
    random.Random(config.seed).shuffle(windows)
    return iter(windows), begin


def _begin(document: list[int], tokenizer: Any) -> list[int]:
    """Return what a document begins with: what the tokenizer puts before a text, or the begin token of a template."""
    for begin in (added_tokens(tokenizer)[0], [tokenizer.bos_token_id]):
        if begin and document[: len(begin)] == begin:
            return begin
    return []


def _inside(document: list[int], begin: list[int], end: int | None) -> list[int]:
    """Return a document without what begins it, closed by one end token."""
    ids = document[len(begin) :] if document[: len(begin)] == begin else document
    return ids if end is None or ids[-1:] == [end] else [*ids, end]


def _windows(ids: Iterator[int], length: int, begin: list[int]) -> Iterator[list[int]]:
    """Cut a stream into pieces of `length`, the last as long as what is left, each behind the begin."""
    for first in ids:
        yield [*begin, first, *itertools.islice(ids, length - 1)]
