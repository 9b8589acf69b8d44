"""Calibration text to token ids and mask, deterministic in (source, seed), saved with hashes of their content.

Documents come from `documents`, images from `images`, prompts with pictures from `pictures`. Two ways to make sequences
of text: `pack` joins documents and cuts full sequences; otherwise each document is one sequence, truncated or
right-padded, and the padding is masked in every later step.
"""

import itertools
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from replaceme.calibration.documents import describe, read_documents
from replaceme.calibration.images import Images, calibrate_images
from replaceme.calibration.pictures import calibrate_pictured
from replaceme.calibration.samples import PassedOver, Samples, number_of
from replaceme.calibration.sequences import IDS, MASK, Tokens, stored_sequences
from replaceme.calibration.windows import packed
from replaceme.config.calibrations import CalibrationConfig, packed_alone
from replaceme.core.errors import ReplaceMeError
from replaceme.core.files import load_tensors
from replaceme.core.progress import progress
from replaceme.models.added_tokens import added_tokens
from replaceme.models.checkpoints import read_config

log = logging.getLogger(__name__)


def load_tokens(path: str | Path) -> tuple[Samples, dict[str, Any]]:
    """Read a file of `Samples.save`, tokens or images, and check its hash."""
    tensors, metadata = load_tensors(path)
    if {IDS, MASK} <= tensors.keys():
        tokens = stored_sequences(tensors)
    elif "pixel_values" in tensors:
        tokens = Images(tensors["pixel_values"], metadata["positions"])
    else:
        raise ReplaceMeError(f"{path}: not a token file; make it with `replaceme tokens`")
    if tokens.digest() != metadata.get("sha256"):
        raise ReplaceMeError(f"{path}: content does not match its hash; delete it and run again")
    return tokens, metadata


def calibration_for(folder: str | Path, config: CalibrationConfig) -> tuple[Samples, dict[str, Any]]:
    """Return the tokens or images of a calibration for the checkpoint in a folder, and the record of their origin."""
    samples, _, record = calibration_and_more(folder, config, 0)
    return samples, record


def calibration_and_more(
    folder: str | Path, config: CalibrationConfig, more: int
) -> tuple[Samples, Tokens | None, dict[str, Any]]:
    """Return what `calibration_for` does, and between the two at most `more` sequences of text that come after it."""
    from replaceme.models.loading import load_tokenizer

    if config.images is not None:
        images, record = calibrate_images(config, folder)
        return images, None, record
    if config.pictures is not None:
        tokens, further, record = calibrate_pictured(config, folder, more)
    else:
        tokens, further, record = calibrate_and_more(config, load_tokenizer(folder), more)
    for found in filter(None, (tokens, further)):
        check_vocabulary(found, read_config(folder), str(folder))
    return tokens, further, record


def check_vocabulary(samples: Samples, config: dict[str, Any], where: str) -> None:
    """Raise ReplaceMeError for token ids that exceed the embedding of a model with this config.json."""
    rows, largest = config.get("vocab_size"), int(samples.input_ids.max()) if isinstance(samples, Tokens) else -1
    if rows is not None and largest >= rows:
        raise ReplaceMeError(
            f"{where}: token id {largest}, but the model's vocabulary has {rows} (vocab_size in config.json); take the "
            "tokenizer of this model"
        )


def calibrate(config: CalibrationConfig, tokenizer: Any) -> tuple[Tokens, dict[str, Any]]:
    """Return the tokens of a calibration and the record of their origin; raises ReplaceMeError when there is no
    text.
    """
    tokens, _, record = calibrate_and_more(config, tokenizer, 0)
    return tokens, record


def calibrate_and_more(
    config: CalibrationConfig, tokenizer: Any, more: int
) -> tuple[Tokens, Tokens | None, dict[str, Any]]:
    """Return what `calibrate` does, and between the two at most `more` sequences that come after those in the source.

    None where it has no more.
    """
    samples, source, passed = number_of(config), describe(config), PassedOver(config.dataset)
    documents = read_documents(config, tokenizer, passed)
    # a chat template has already written the special tokens
    encoded = encode(documents, tokenizer, special_tokens=config.conversations is None)
    pack = packs(config)
    begin: list[int] = []
    if pack:
        rows, begin = packed(encoded, config, tokenizer)
    else:
        rows = (ids[: config.tokens] for ids in encoded if ids)
    chosen = list(progress(itertools.islice(rows, samples), "tokens", samples, "sequence"))
    further = list(itertools.islice(rows, more))
    passed.report(len(chosen))
    tokens = stack(chosen, tokenizer, config.dataset)
    if len(tokens.input_ids) < samples:
        log.warning("%s: %d sequences found, %d asked for", config.dataset, len(tokens.input_ids), samples)
    record = config.model_dump(include=set(TOKEN_FIELDS) - {"images", "pictures"})
    beyond = stack(further, tokenizer, config.dataset) if further else None
    begins = {"begins": tokenizer.convert_ids_to_tokens(begin)} if begin else {}
    return tokens, beyond, {**record, "column": config.source_column, "pack": pack, **begins, **source}


TOKEN_FIELDS = (
    "dataset", "images", "name", "revision", "split", "column", "conversations", "template", "pictures", "samples",
    "tokens", "pack", "seed",
)  # fmt: skip
# of a calibration whose texts are prompts for the model
PROMPT_FIELDS = (*(name for name in TOKEN_FIELDS if name not in ("images", "pictures", "pack")), "batch_size", "dtype")


def tokens_from_texts(texts: Iterable[str], tokenizer: Any, samples: int | None, length: int) -> Tokens:
    """Tokenise given texts, one sequence each, truncated to `length`."""
    rows = (ids[:length] for ids in encode(texts, tokenizer) if ids)
    return stack(itertools.islice(rows, samples), tokenizer)


def packs(config: CalibrationConfig) -> bool:
    """Return whether documents are joined: as configured, else for the generator and for plain text."""
    return config.pack if config.pack is not None else packed_alone(config.dataset)


def encode(documents: Iterable[str], tokenizer: Any, special_tokens: bool = True) -> Iterator[list[int]]:
    """Yield the token ids of each non-empty document, what the tokenizer puts before a text once, though the text may
    bring it too.
    """
    before = added_tokens(tokenizer)[0] if special_tokens else []
    for document in documents:
        if document.strip():
            ids = tokenizer(document, add_special_tokens=special_tokens, verbose=False)["input_ids"]
            yield ids[len(before) :] if before and ids[len(before) : 2 * len(before)] == before else ids


def stack(rows: Iterable[list[int]], tokenizer: Any, where: str = "calibration") -> Tokens:
    """Pad sequences on the right to the longest and mask the padding; raises ReplaceMeError when there are none."""
    import torch

    rows = list(rows)
    if not rows:
        raise ReplaceMeError(f"{where}: no text left after dropping empty documents; check dataset and column")
    width = max(map(len, rows))
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    input_ids = torch.full((len(rows), width), padding, dtype=torch.int64)
    mask = torch.zeros((len(rows), width), dtype=torch.bool)
    for k, ids in enumerate(rows):
        input_ids[k, : len(ids)] = torch.tensor(ids)
        mask[k, : len(ids)] = True
    return Tokens(input_ids, mask)
