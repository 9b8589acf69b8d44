"""The layout of a shard that consists of parts of another file.

A safetensors file is the length of its header (8 bytes, little endian), the header (JSON: for each tensor its type,
shape and place) and the tensors' bytes without gaps. So a shard without some tensors and with other names is another
header before runs of the same bytes.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ALIGNED = 8
METADATA = "__metadata__"


@dataclass(frozen=True)
class Layout:
    """A shard: `head`, then `runs` of the bytes of `source`, (begin, end); `tensor_bytes` are those of tensors."""

    source: Path
    head: bytes
    runs: list[tuple[int, int]]
    tensor_bytes: int

    @property
    def size(self) -> int:
        """Bytes after the head."""
        return sum(end - begin for begin, end in self.runs)


def layout_of(source: Path, names: Mapping[str, str]) -> Layout:
    """Return the layout of a shard with the tensors `names` of a file (as they are called there: as they are to be).

    All of them under their own names: the file as it is. `source` must be a valid file (`checkpoints.open_checkpoint`
    has read its header).
    """
    with source.open("rb") as given:
        start = ALIGNED + (length := int.from_bytes(given.read(ALIGNED), "little"))
        header = json.loads(given.read(length))
    if all(names.get(name) == name for name in header if name != METADATA):
        end = source.stat().st_size
        return Layout(source, b"", [(0, end)], end - start)
    new: dict[str, object] = {METADATA: {"format": "pt"}}
    runs: list[tuple[int, int]] = []
    size = 0
    for name in sorted(names, key=lambda name: header[name]["data_offsets"]):
        begin, end = header[name]["data_offsets"]
        new[names[name]] = {**header[name], "data_offsets": [size, size + end - begin]}
        size += end - begin
        if runs and runs[-1][1] == start + begin:
            runs[-1] = runs[-1][0], start + end
        else:
            runs.append((start + begin, start + end))
    text = json.dumps(new, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNED)
    return Layout(source, len(text).to_bytes(ALIGNED, "little") + text, runs, size)
