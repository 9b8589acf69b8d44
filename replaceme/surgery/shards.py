"""The shards of a new checkpoint: most are copied byte by byte, those with tensors that change are written anew.

The bytes that are copied never pass through this process (`shard_layout`): the kernel copies them, or on a filesystem
that can (XFS, Btrfs) shares them; and what another model of the same cut has is linked (`linked_shards`). In a
checkpoint of several shards or of more than SPLIT bytes, the tensors that a transform may change get a shard of their
own, so that all others can be copied, and hashed, before there is a transform.
"""

import errno
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from replaceme.core.files import sha256, sync, write_safetensors
from replaceme.core.places import Span, is_gone, number_of
from replaceme.core.progress import progress
from replaceme.models.checkpoints import Checkpoint
from replaceme.models.weights import INDEX, SINGLE
from replaceme.surgery.edits import Changes
from replaceme.surgery.linked_shards import link_shard
from replaceme.surgery.shard_layout import Layout, layout_of

if TYPE_CHECKING:
    from replaceme.models.family import Family

AT_ONCE = 8  # shards
IN_MEMORY = 3  # of those that are written anew
SPLIT = 500_000_000  # bytes of a checkpoint in one file that becomes two
OWN = ""  # the shard of its own of what may change
NOT_HERE = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF}


def copy_shard(layout: Layout, target: Path) -> None:
    """Write a shard; nothing is synced."""
    with layout.source.open("rb") as given, target.open("xb") as out:
        out.write(layout.head)
        out.flush()
        position = len(layout.head)
        for begin, end in layout.runs:
            _copy_range(given.fileno(), out.fileno(), begin, position, end - begin)
            position += end - begin


def _copy_range(source: int, target: int, begin: int, position: int, count: int) -> None:
    """Copy `count` bytes from one file's place to another's, inside the kernel."""
    shared = True
    os.lseek(target, position, os.SEEK_SET)
    while count:
        done = 0
        if shared:
            try:
                done = os.copy_file_range(source, target, count, offset_src=begin, offset_dst=position)
            except OSError as error:
                if error.errno not in NOT_HERE:
                    raise
            shared = done > 0
        if not shared:
            os.lseek(target, position, os.SEEK_SET)
            done = os.sendfile(target, source, begin, count)
            if done == 0:
                raise OSError(errno.EIO, "the file became shorter while it was copied")
        begin, position, count = begin + done, position + done, count - done


def renamed(family: "Family", groups: Sequence[Span], name: str) -> str | None:
    """Return a tensor's name in a checkpoint without the groups of a cut, or None when its half of a block goes."""
    place = family.place_of(name)
    if place is None:
        return name
    if is_gone(place, groups):
        return None
    return family.renamed(name, number_of(place, tuple(groups)))


@dataclass(frozen=True)
class Written:
    """A shard that is there: its tensors, their bytes, and the SHA-256 of the file."""

    names: list[str]
    size: int
    digest: str


class Shards:
    """The shards of a checkpoint without the blocks of some groups, on their way to a folder.

    `copy` starts with the shards that no transform of the groups' carriers can change; `write` does the rest. `known`:
    the SHA-256 of the source's files, if known, which also hold for unchanged copies. `twins`: models of the same cut,
    whose files may be linked.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        groups: Sequence[Span],
        folder: Path,
        known: Mapping[str, str] | None = None,
        twins: Sequence[Path] = (),
    ) -> None:
        self.checkpoint, self.groups, self.folder, self._known = checkpoint, groups, folder, known or {}
        self._twins = twins
        self._names: dict[str, list[str]] = {}
        placed = {name: checkpoint.tensors[name][0] for name in checkpoint.tensors if self.renamed(name) is not None}
        if len(set(placed.values())) > 1 or checkpoint.file_bytes > SPLIT:
            placed |= {name: OWN for start, _ in groups for name in checkpoint.changeable(start)}
        for name, shard in sorted(placed.items(), key=lambda one: (one[1] == OWN, one[1])):
            self._names.setdefault(shard, []).append(name)
        self._copying, self._hashing = ThreadPoolExecutor(AT_ONCE), ThreadPoolExecutor(AT_ONCE)
        self._changing = ThreadPoolExecutor(IN_MEMORY)
        self._pending: dict[str, Future[Written]] = {}

    def renamed(self, name: str) -> str | None:
        """Return a tensor's name in the new checkpoint, or None when its block goes."""
        return renamed(self.checkpoint.family, self.groups, name)

    def copy(self) -> None:
        """Start to copy the shards in which nothing may change, in the background."""
        changeable = {name for start, _ in self.groups for name in self.checkpoint.changeable(start)}
        for shard, names in self._names.items():
            if shard not in self._pending and not changeable & set(names):
                self._pending[shard] = self._copying.submit(self._copy, shard)

    def write(self, changes: Changes) -> dict[str, str]:
        """Write all that is not there yet, and the index; returns the SHA-256 of every shard by its file name."""
        for shard, names in self._names.items():
            if shard in self._pending and changes.touch(names):
                self._pending.pop(shard).result()  # some transforms change more than their carriers
            if shard not in self._pending:
                if shard == OWN or changes.touch(names):
                    self._pending[shard] = self._changing.submit(self._change, shard, changes)
                else:
                    self._pending[shard] = self._copying.submit(self._copy, shard)
        shards = list(self._names)
        written = []
        for shard in progress(shards, "folding", len(shards), "shard"):  # a loop, as an error ends the bar of one
            written.append(self._pending[shard].result())
        files = {self._file(shard): one for shard, one in zip(shards, written, strict=True)}
        if len(files) > 1:
            total = sum(one.size for one in written)
            weight_map = {name: file for file, one in files.items() for name in one.names}
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
            (self.folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        return {file: one.digest for file, one in files.items()}

    def stop(self) -> None:
        """Give up what has not begun, and wait for the rest."""
        for threads in (self._copying, self._changing, self._hashing):
            threads.shutdown(cancel_futures=True)

    def _file(self, shard: str) -> str:
        number, count = list(self._names).index(shard) + 1, len(self._names)
        return SINGLE if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"

    def _copy(self, shard: str) -> Written:
        path = self.folder / self._file(shard)
        names = {name: self.renamed(name) for name in self._names[shard]}
        layout = layout_of(self.checkpoint.folder / shard, names)
        if digest := link_shard(layout, self._twins, path):
            return Written(list(names.values()), layout.tensor_bytes, digest)
        copy_shard(layout, path)
        return self._settled(
            path, list(names.values()), layout.tensor_bytes, None if layout.head else self._known.get(shard)
        )

    def _change(self, shard: str, changes: Changes) -> Written:
        path = self.folder / self._file(shard)
        tensors = changes.of(self.checkpoint.read(self._names[shard]))
        tensors = {self.renamed(name): tensor for name, tensor in tensors.items()}
        path.unlink(missing_ok=True)  # it may be a link to another model's, begun before the transforms were known
        write_safetensors(path, tensors, {"format": "pt"})
        return self._settled(path, list(tensors), sum(tensor.nbytes for tensor in tensors.values()))

    def _settled(self, path: Path, names: list[str], size: int, digest: str | None = None) -> Written:
        path.chmod(0o644)
        found = None if digest else self._hashing.submit(sha256, path)  # from memory, while the disk is at work
        sync(path)
        return Written(names, size, digest or found.result())
