"""Measure how far a model's predictions are from those of its original, on text that it was not made with.

    KL(original || model) of next-token distributions, mean over tokens, and the perplexity of both on the same text

Both models are held at once, so that no log-probabilities are stored; standard errors are over sequences.
"""

import logging
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from replaceme.activations.comparison import Compared, compare
from replaceme.activations.divergence import log_probabilities
from replaceme.calibration.samples import Samples
from replaceme.calibration.tokens import Tokens, check_vocabulary
from replaceme.core import uncertainty
from replaceme.core.errors import ReplaceMeError
from replaceme.core.files import RECORD, read_json
from replaceme.models.checkpoints import read_config
from replaceme.models.loading import ON_CPU, RunsOn, load_causal_model
from replaceme.provenance.environment import hardware, versions

log = logging.getLogger(__name__)


def divergence(original: str | Path, model: str | Path, tokens: Samples, runs_on: RunsOn = ON_CPU) -> dict[str, Any]:
    """Measure a checkpoint folder against that of its original and return a JSON-able record, in nats per token.

    Raises ReplaceMeError for images, for text that the model's record names as its own, for models of different
    vocabularies, and for predictions that are not finite.
    """
    started = time.perf_counter()
    _check_is_text(tokens)
    _check_record(tokens, model)
    folders = (original, model)
    for folder in folders:
        check_vocabulary(tokens, read_config(folder), str(folder))
    whole, other = (load_causal_model(one, runs_on.dtype, runs_on.device, runs_on.held) for one in folders)
    ours, theirs = compare(whole, [partial(log_probabilities, other)], tokens, "divergence")
    items = _items(theirs.divergence, theirs.tokens)
    value, stderr = uncertainty.rate([(-divergence, count) for divergence, count in items])
    log.info("divergence: %.4f nats per token", value)
    return {
        "model": str(model),
        "original": str(original),
        "kl": {"value": value, "stderr": stderr, "n": len(items), "tokens": tokens.count, "items": items},
        "perplexity": {"original": _perplexity(ours), "model": _perplexity(theirs)},
        "tokens_sha256": tokens.digest(),
        "seconds": time.perf_counter() - started,
        "dtype": runs_on.dtype,
        "device": runs_on.device,
        "versions": versions(),
        "hardware": hardware(),
    }


def _check_is_text(tokens: Samples) -> None:
    if not isinstance(tokens, Tokens):
        raise ReplaceMeError("divergence: it is of the next token: it needs text, not images")


def _check_record(tokens: Samples, model: str | Path) -> None:
    """Raise ReplaceMeError for the text that the record of a checkpoint names."""
    record = Path(model) / RECORD
    if record.is_file() and tokens.digest() in _digests(read_json(record)):
        raise ReplaceMeError(f"{model}: was made with this text; measure its divergence on text that it has not seen")


def check_unseen(tokens: Samples, seen: Samples, name: str) -> None:
    """Raise ReplaceMeError where sequences of `tokens` are among those of `seen`, as far as the shorter ones reach.

    And for images. `name` is what the error calls `seen`.
    """
    for one in (tokens, seen):
        _check_is_text(one)
    width = min(part.mask.shape[1] for part in (tokens, seen))
    known = set(_sequences(seen, width))
    shared = sum(one in known for one in _sequences(tokens, width))
    if shared:
        raise ReplaceMeError(
            f"{name}: has {shared} of the {len(tokens)} sequences that the divergence is to be measured on; take text "
            "that neither fit nor healing has seen (another file or split, or of `micro` another seed)"
        )


def _sequences(tokens: Tokens, width: int) -> Iterator[tuple[int, ...]]:
    """Yield the first `width` unmasked ids of each sequence."""
    for ids, mask in zip(tokens.input_ids, tokens.mask, strict=True):
        yield tuple(ids[mask][:width].tolist())


def _digests(record: Any) -> Iterator[str]:
    """Yield the hashes of all texts that a record names."""
    if isinstance(record, Mapping):
        if isinstance(record.get("tokens_sha256"), str):
            yield record["tokens_sha256"]
        record = list(record.values())
    if isinstance(record, list):
        for part in record:
            yield from _digests(part)


def _items(sums: Any, counts: Any) -> list[list[float]]:
    return [[float(value), float(count)] for value, count in zip(sums, counts, strict=True)]


def _perplexity(one: Compared) -> dict[str, Any]:
    items = _items(-one.loss, one.counted)
    value, stderr = uncertainty.perplexity(items)
    return {"value": value, "stderr": stderr, "items": items}
