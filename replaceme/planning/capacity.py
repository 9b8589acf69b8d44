"""Estimate, before anything runs, whether memory and disk suffice for a config, from the outlines of its models."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from replaceme.config.cuts import CutConfig
from replaceme.config.result_paths import RESULTS, row_folder
from replaceme.config.schema import Config
from replaceme.config.tables import Row
from replaceme.core.disk import existing, free_space
from replaceme.core.errors import ReplaceMeError
from replaceme.core.files import RECORD
from replaceme.cuts.choose import possible_spans, resolve_blocks
from replaceme.models.model_config import is_encoder, pick_dtype
from replaceme.models.sizes import FOUR_BITS, MARGIN
from replaceme.planning.outline import Outline

Outlines = Mapping[str, Outline]


def memory_problems(config: Config, outlines: Outlines, memory: int, device: str) -> list[str]:
    """Return a line for each use of more than the `memory` bytes of a device (by model), with the remedy.

    `outlines` are by the names of models; missing ones are skipped.
    """
    lines = []
    for name, outline in outlines.items():
        room = _Room(memory, device, config.models[name].gpus)
        tables = [table for table in config.tables.values() if name in table.named("models")]
        rows = [row for table in tables for row in table.pruned if row.model == name]
        for one in config.observed(tables, name):
            lines += [f"calibrations.{one} on models.{name}: {line}" for line in _passes(config, one, outline, room)]
        for one in sorted({row.cut for row in rows}):
            lines += [f"cuts.{one} on models.{name}: {line}" for line in _choice(config, one, rows, outline, room)]
        for one in sorted({row.fit for row in rows}):
            lines += [f"fits.{one} on models.{name}: {line}" for line in _method(config, one, rows, outline, room)]
        for one in sorted({table.evaluation for table in tables if table.evaluation}):
            if is_encoder(outline.config) and not config.evaluations[one].zeroshot:
                continue  # an error of its own
            dtype = pick_dtype(config.evaluations[one].dtype, device, outline.config)
            copies = 1 if config.evaluations[one].divergence is None else 2
            lines += [
                f"evaluations.{one} on models.{name}: {line}" for line in room.lacking(outline, dtype, copies=copies)
            ]
    return lines


class _Room:
    """The memory of the devices over which a model is spread."""

    def __init__(self, memory: int, device: str, gpus: int) -> None:
        self.devices = count = 1 if device == "cpu" else gpus
        self.memory, self.device = memory * count, device
        self.words = "this machine has" if device == "cpu" else "the GPU has" if count == 1 else f"{count} GPUs have"

    def lacking(self, outline: Outline, dtype: str, remedy: str = "", copies: int = 1) -> list[str]:
        """Return a line where a whole model of this type, or several of its size at once, are too large."""
        needed = copies * MARGIN * outline.bytes_in(dtype)
        if needed <= self.memory:
            return []
        smaller = dtype in ("float32", "float64") and copies * MARGIN * outline.bytes_in("bfloat16") <= self.memory
        larger = "it takes a machine with more" if self.device == "cpu" else "raise `gpus`"
        remedy = remedy or ("use `dtype: bfloat16`" if smaller else larger)
        what = "the whole model" if copies == 1 else "the divergence, which holds the shortened model beside the whole,"
        return [
            f"{outline.source}: {what} in {dtype} takes about {needed / 1e9:.1f} GB, {self.words} "
            f"{self.memory / 1e9:.1f}; {remedy}"
        ]


def _passes(config: Config, name: str, outline: Outline, room: _Room) -> list[str]:
    section = config.calibrations[name]
    dtype = _dtype(config, name, outline, room)
    if section.prompts is not None:
        return room.lacking(outline, dtype, "a model that answers is not streamed; take another calibration")
    if section.streaming == "never":
        return room.lacking(outline, dtype, "use `streaming: auto`")
    return []


def _dtype(config: Config, calibration: str, outline: Outline, room: _Room) -> str:
    section = config.calibrations[calibration]
    return FOUR_BITS if section.load_in_4bit else pick_dtype(section.dtype, room.device, outline.config)


def _choice(config: Config, name: str, rows: Sequence[Row], outline: Outline, room: _Room) -> Iterator[str]:
    """Yield the lines for the choice of a cut: the whole model for its loss, float64 matrices for every candidate."""
    cut = config.cuts[name]
    if cut.needs_loss:
        used = {row.calibration for row in rows if row.cut == name}
        for dtype in sorted({_dtype(config, one, outline, room) for one in used}):
            yield from room.lacking(outline, dtype, f"metric {cut.metric} is not streamed; use another metric")
    matrices = candidate_matrices(cut, outline)
    needed = 8 * outline.hidden_size**2 * matrices
    if needed > room.memory:
        yield (
            f"{outline.source}: metric {cut.metric} holds {matrices} matrices, {needed / 1e9:.1f} GB, {room.words} "
            f"{room.memory / 1e9:.1f}; use a distance (cosine, angular), or fewer groups"
        )


def candidate_matrices(cut: CutConfig, outline: Outline) -> int:
    """Return how many float64 matrices [d, d] the choice of a cut holds: one for each start and two for each
    candidate.
    """
    if not cut.fits_candidates:
        return 0
    try:
        spans = possible_spans(cut, outline)
    except ReplaceMeError:
        return 0  # an error of its own
    return len({start for start, _ in spans}) + 2 * len(spans)


def _method(config: Config, name: str, rows: Sequence[Row], outline: Outline, room: _Room) -> Iterator[str]:
    """Yield the lines for a method other than replaceme: the whole model, on one device."""
    fit = config.fits[name]
    if not fit.is_other:
        return
    if room.devices > 1:
        yield f"{outline.source}: method {fit.method} needs the model on one device; use `gpus: 1`"
        return
    used = {row.calibration for row in rows if row.fit == name}
    for dtype in sorted({_dtype(config, one, outline, room) for one in used}):
        yield from room.lacking(outline, dtype, f"method {fit.method} is not streamed; use another")


def disk_problems(
    config: Config, outlines: Outlines, downloads: Mapping[str, int], results: Path, cache: Path, at_once: int
) -> list[str]:
    """Return a line for each disk too small for the merged models still to be made and the models to be downloaded.

    `downloads` are bytes by source; of models that are not kept, `at_once` lie there. Nothing else of a run comes near
    these but the rows of some fits, whose step looks for itself before it writes.
    """
    merged = list(_merged(config, outlines, results, at_once))
    needed: dict[int, list[tuple[str, int, Path]]] = {}
    for what, size, folder in (
        (f"{len(merged)} merged models", sum(merged), results),
        (f"{len(downloads)} models to download", sum(downloads.values()), cache),
    ):
        if size:
            there = existing(folder)
            needed.setdefault(there.stat().st_dev, []).append((what, size, there))
    lines = []
    for entries in needed.values():
        total, free = sum(size for _, size, _ in entries), free_space(entries[0][2])
        if total > free:
            listed = ", ".join(f"{what} {size / 1e9:.1f} GB" for what, size, _ in entries)
            lines.append(
                f"disk of {entries[0][2]}: {listed}, {free / 1e9:.1f} GB are free; free some, set "
                "`keep_models: false`, or make a table at a time"
            )
    return lines


def _merged(config: Config, outlines: Outlines, results: Path, at_once: int) -> Iterator[int]:
    """Yield the bytes of each merged or healed model of the tables that does not exist yet, and of plain weights.

    Of those that are not kept, the largest that lie there at once.
    """
    for name, outline in outlines.items():
        if config.models[name].dequantise and not (results / name / "dequantised" / RECORD).exists():
            yield outline.file_bytes
    rows = {row for table in config.tables.values() for row in table.pruned}
    not_kept, passing = [], config.passing
    for row in sorted(rows, key=str):
        folder = results / Path(row_folder(row)).relative_to(RESULTS) / "model"
        if row.model not in outlines or (folder / RECORD).exists():
            continue
        try:
            outline = outlines[row.model]
            size = outline.shortened_bytes(resolve_blocks(config.cuts[row.cut], outline))
        except ReplaceMeError:
            continue  # an error of its own
        if row in passing:
            not_kept.append(size)
        else:
            yield size
    yield from sorted(not_kept, reverse=True)[:at_once]
