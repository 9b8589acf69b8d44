"""Append the end token to the documents that a model is trained on: without it, a model unlearns to stop.

The sequences of a calibration are documents as they stand, or cut off at its length; where they are joined (`pack`) the
token for the end stands between them already.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from replaceme.calibration.tokens import Tokens, stack
from replaceme.core.files import read_json
from replaceme.models.loading import load_tokenizer

KEY = "eos_token_id"


def with_endings(tokens: Tokens, text: dict[str, Any], folder: str | Path) -> Tokens:
    """Return the sequences with the end token after each document that is whole and has none.

    `text`, the record of the sequences, gives the length at which they were cut off; sequences of unknown length stay
    unchanged. `folder`: the checkpoint, whose tokenizer and generation_config.json name the end tokens.
    """
    lengths = lengths_of(text)
    if not lengths:
        return tokens
    tokenizer = load_tokenizer(folder)
    ends = _ends(tokenizer, Path(folder))
    if not ends:
        return tokens
    rows = [ids[mask].tolist() for ids, mask in zip(tokens.input_ids, tokens.mask, strict=True)]
    whole = [len(row) not in lengths and not _has_ended(row, ends, tokenizer) for row in rows]
    if not any(whole):
        return tokens
    return stack([row + ends[:1] if one else row for row, one in zip(rows, whole, strict=True)], tokenizer)


def lengths_of(text: dict[str, Any]) -> set[int]:
    """Return the lengths at which the sequences of a record, or of the parts of a mix, were cut off."""
    if "mix" in text:
        return set().union(*(lengths_of(part) for part in text["mix"]))
    return {text["tokens"]} if "tokens" in text else set()


def _ends(tokenizer: Any, folder: Path) -> list[int]:
    """Return the tokens that end a text: first the tokenizer's, else the model's, then those that end an answer."""
    found = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    for name in ("config.json", "generation_config.json"):
        given = read_json(folder / name).get(KEY) if (folder / name).is_file() else None
        found += given if isinstance(given, list) else [] if given is None else [given]
    return list(dict.fromkeys(found))


def _has_ended(row: Sequence[int], ends: Sequence[int], tokenizer: Any) -> bool:
    """Return whether an end token comes last, apart from white space, which chat templates put after it."""
    last = next((token for token in reversed(row) if token in ends or tokenizer.decode([token]).strip()), None)
    return last in ends
