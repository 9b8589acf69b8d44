"""Write the plain weights of a quantised source as an ordinary checkpoint, tensor by tensor.

No more than a shard (SHARD bytes, or one larger tensor) is in memory at a time. The folder appears as a whole or not at
all, and the same source gives the same bytes.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from replaceme.core.disk import check_room
from replaceme.core.errors import ReplaceMeError
from replaceme.core.files import (
    RECORD,
    json_text,
    remove,
    replacing,
    sha256_of_all,
    temporary_beside,
    write_safetensors,
)
from replaceme.core.progress import progress
from replaceme.core.redaction import published
from replaceme.models.checkpoints import local_folder, locate, names_folder, resolve
from replaceme.models.model_record import DEQUANTISED, ModelRecord
from replaceme.models.packed_source import open_packed
from replaceme.models.plain_view import PlainView
from replaceme.models.weights import INDEX, SINGLE
from replaceme.surgery.write_checkpoint import check_out, files_of

log = logging.getLogger(__name__)
SHARD = 4_000_000_000  # bytes


def dequantise(source: str, revision: str | None, out: str | Path) -> None:
    """Write the plain weights of a quantised folder, GGUF file or model of the Hub to folder `out`.

    Raises ReplaceMeError for formats that are not read, and where the disk has no room, before any work.
    """
    if revision is None and names_folder(source) and not local_folder(source).exists():
        raise ReplaceMeError(f"{source}: no such folder or file; give a quantised checkpoint, or a GGUF file")
    place, commit = locate(source, revision)
    out = Path(out)
    check_out(place, out)
    view = open_packed(place)
    check_room(out, sum(view.sizes.values()), "its plain weights", "free some, or give a folder on another disk")
    log.info("%s: %s, written as %s to %s", source, view.description, view.dtype, out)
    made_from = {
        "format": view.description,
        "source": published(source),
        "revision": commit,
        "files": sha256_of_all(view.folder, view.files),
    }
    with replacing(out) as folder:
        folder.mkdir()
        _write_shards(view, folder)
        (folder / "config.json").write_text(json.dumps(view.config, indent=2) + "\n", encoding="utf-8")
        view.write_beside(folder)
        files = sha256_of_all(folder, files_of(folder))
        record = {DEQUANTISED: made_from, "dtype": view.dtype, "files": files}
        (folder / RECORD).write_text(json_text(record), encoding="utf-8")


@contextmanager
def plain_weights(source: str, revision: str | None, out: str | Path) -> Iterator[ModelRecord]:
    """Yield the record of a quantised source, whose folder holds its plain weights until the block ends, beside `out`.

    Errors as in `dequantise`.
    """
    check_out(locate(source, revision)[0], out)
    folder = temporary_beside(Path(out).absolute())
    try:
        dequantise(source, revision, folder)
        record = resolve(str(folder))
        yield replace(record, source=source, revision=record.dequantised["revision"])
    finally:
        remove(folder)


def _write_shards(view: PlainView, folder: Path) -> None:
    """Write all tensors, and the index where there are several shards."""
    sizes = view.sizes
    shards = list(shards_of(sizes, SHARD))
    weight_map = {}
    for number, names in enumerate(progress(shards, "dequantising", len(shards), "shard"), 1):
        file = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_safetensors(folder / file, {name: view.read(name) for name in names}, {"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    if len(shards) > 1:
        total = {"total_size": sum(sizes.values())}
        index = {"metadata": total, "weight_map": dict(sorted(weight_map.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def shards_of(sizes: Mapping[str, int], most: int) -> Iterator[list[str]]:
    """Yield names in their order, as many as take `most` bytes at a time, at least one."""
    held: list[str] = []
    total = 0
    for name, size in sizes.items():
        if held and total + size > most:
            yield held
            held, total = [], 0
        held.append(name)
        total += size
    yield held
