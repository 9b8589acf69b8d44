"""Link the shards that another model of the same cut has already, so that they lie on the disk once.

In a workflow the models of one cut differ in the weights that their fits have changed, which have a shard of their own;
all else is the same bytes, gigabytes of them. A shard is linked only where every byte was compared with what would be
written, and can then only be read: to write into one model's file would change the other's. Elsewhere, and where a
filesystem has no links, it is copied.
"""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from replaceme.core.errors import ReplaceMeError
from replaceme.core.files import RECORD, RESULTS_VARIABLE, noting_apart
from replaceme.models.removed_weights import weights_of
from replaceme.surgery.shard_layout import Layout

AT_ONCE = 4_000_000  # bytes that are compared


def twins_of(out: str | Path) -> list[Path]:
    """Return the models of the same cut as that which a workflow writes to `out`; none outside of a workflow."""
    out, results = Path(out), os.environ.get(RESULTS_VARIABLE)
    if not results or not out.absolute().is_relative_to(Path(results).absolute()):
        return []
    found = (path.parent for path in sorted(out.parent.parent.glob(f"*/{out.name}/{RECORD}")))
    return [folder for folder in found if folder != out]


def link_shard(layout: Layout, twins: Iterable[Path], target: Path) -> str | None:
    """Link `target` to the file of its name in one of some models, and return its SHA-256 in that one's record; None
    where none has these bytes.
    """
    for folder in twins:
        with suppress(OSError, ReplaceMeError), noting_apart():  # gone by now, or of another filesystem or owner
            digest = weights_of(folder).get(target.name)
            if digest is not None and _has(folder / target.name, layout):
                (folder / target.name).chmod(0o444)
                os.link(folder / target.name, target)
                return digest
    return None


def _has(path: Path, layout: Layout) -> bool:
    """Return whether a file has the bytes of a layout."""
    with path.open("rb") as file, layout.source.open("rb") as source:
        if path.stat().st_size != len(layout.head) + layout.size or file.read(len(layout.head)) != layout.head:
            return False
        for begin, end in layout.runs:
            source.seek(begin)
            for place in range(begin, end, AT_ONCE):
                count = min(AT_ONCE, end - place)
                if source.read(count) != file.read(count):
                    return False
    return True
