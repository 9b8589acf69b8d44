"""Trace a checkpoint that is made from a shortened one back to the original: which of its blocks are gone in all."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from replaceme.config.methods import NARROWING
from replaceme.core.cut_record import Cut, Span
from replaceme.core.errors import ReplaceMeError
from replaceme.core.files import RECORD, read_json
from replaceme.models.model_record import DEQUANTISED, ModelRecord


def lineage_of(record: ModelRecord, cut: Cut, fit: dict[str, Any]) -> dict[str, Any] | None:
    """Return the original behind a source that was shortened before, and all its blocks that `cut` leaves removed.

    `original` is its provenance, `num_blocks` its blocks, `groups` the runs [start, end) of those that are gone, by its
    numbering. None where the source has no record of a shortening, or one that is not of its number of blocks.
    """
    earlier = _earlier(Path(record.folder))
    if earlier is None:
        return None
    kept = _kept(range(earlier["num_blocks"]), earlier["groups"])
    if len(kept) != record.num_blocks:
        return None
    left = set(_kept(kept, _removed(cut, fit)))
    gone = (block for block in range(earlier["num_blocks"]) if block not in left)
    return {**earlier, "groups": [list(run) for run in _runs(gone)]}


def _earlier(folder: Path) -> dict[str, Any] | None:
    """Return what `lineage_of` says of the source itself, None where it has no readable record."""
    if not (folder / RECORD).is_file():
        return None
    try:
        made = read_json(folder / RECORD)
        if made.get("lineage") is not None:
            return {name: made["lineage"][name] for name in ("original", "num_blocks", "groups")}
        cut, original = Cut.of(made["cut"]), made.get("original", made["source"])
        named = {name: original[name] for name in ("source", "revision", "files")}
        named |= {DEQUANTISED: original[DEQUANTISED]} if DEQUANTISED in original else {}
        groups = [list(group) for group in _removed(cut, made["fit"])]
        return {"original": named, "num_blocks": cut.num_blocks, "groups": groups}
    except (ReplaceMeError, AttributeError, KeyError, TypeError):  # of another program, or damaged, as `verify` says
        return None


def _removed(cut: Cut, fit: dict[str, Any]) -> list[Span]:
    """Return the runs of blocks that are gone; methods that make blocks narrower keep all."""
    return [] if fit.get("method") in NARROWING else cut.groups


def _kept(numbers: Sequence[int], groups: Iterable[Sequence[int]]) -> list[int]:
    """Return the numbers at the places outside of the runs [start, end)."""
    gone = {place for start, end in groups for place in range(start, end)}
    return [number for place, number in enumerate(numbers) if place not in gone]


def _runs(numbers: Iterable[int]) -> list[Span]:
    """Return ascending numbers as runs [start, end)."""
    runs: list[Span] = []
    for number in numbers:
        if runs and runs[-1][1] == number:
            runs[-1] = (runs[-1][0], number + 1)
        else:
            runs.append((number, number + 1))
    return runs
