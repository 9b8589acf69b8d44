"""Trace a checkpoint that is made from a shortened one back to the original: which of its blocks are gone in all.

Blocks count by halves, each by the place before it (see `places`).
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from replaceme.config.methods import NARROWING
from replaceme.core.cut_record import Cut
from replaceme.core.errors import ReplaceMeError
from replaceme.core.files import RECORD, read_json
from replaceme.core.places import HALF, Place, Span, is_gone, plain
from replaceme.models.model_record import DEQUANTISED, ModelRecord


def lineage_of(record: ModelRecord, cut: Cut, fit: dict[str, Any]) -> dict[str, Any] | None:
    """Return the original behind a source that was shortened before, and all its blocks that `cut` leaves removed.

    `original` is its provenance, `num_blocks` its blocks, `groups` the runs [start, end) of those that are gone, by its
    numbering. None where the source has no record of a shortening, or one that is not of its number of blocks.
    """
    earlier = _earlier(Path(record.folder))
    if earlier is None:
        return None
    halves = [plain(HALF * number) for number in range(2 * earlier["num_blocks"])]
    kept = _kept(halves, earlier["groups"])
    if len(kept) != 2 * record.num_blocks:
        return None
    left = set(_kept(kept, _removed(cut, fit)))
    gone = (half for half in halves if half not in left)
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


def _kept(halves: Sequence[Place], groups: Sequence[Span]) -> list[Place]:
    """Return the halves of blocks at the places outside of the groups [start, end)."""
    return [half for number, half in enumerate(halves) if not is_gone(HALF * number, groups)]


def _runs(halves: Iterable[Place]) -> list[Span]:
    """Return ascending halves as runs [start, end)."""
    runs: list[Span] = []
    for half in halves:
        start = runs.pop()[0] if runs and runs[-1][1] == half else half
        runs.append((start, plain(half + HALF)))
    return runs
