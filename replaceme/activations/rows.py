"""Rows of a cut, for fits that need more than sums: m (see `targets`) and r of each token, bfloat16.

The exact cosine objective (eq. 7 of arXiv 2505.02819) also needs the residual stream Y = hidden_states[start-1] - M,
the `state`; R + Y is then hidden_states[end-1]. A folder of safetensors parts and an index.json that is written last.
Parts are memory-mapped and read in blocks, so no [tokens, hidden] array is ever in memory. Where one process makes and
uses them they stay in memory if there is plenty. A row is rounded once to bfloat16: 2^-9 of each element.

Nobody waits for the disk: rows are many gigabytes that are read within minutes and then deleted. The index has the
SHA-256 of every part, and who opens a folder compares them: rows that a loss of power took are made again.
"""

import contextlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaceme.core.disk import check_room
from replaceme.core.errors import DamagedError, ReplaceMeError
from replaceme.core.files import (
    check_files,
    read_json,
    replacing,
    sha256,
    write_json,
    write_safetensors,
)
from replaceme.core.memory import free_memory
from replaceme.core.origin import Origin

if TYPE_CHECKING:
    import torch


INDEX = "index.json"
NAMES = ("mlp_output", "target", "state")
BYTES = 2  # of an element, bfloat16
UNKNOWN = Origin()
MEMORY_SHARE = 0.25  # of the free memory, for rows that need no folder
DISK_SHARE = 0.5  # of the free bytes, for rows that are made before their fits are the next
WRITERS = 3  # parts that are written and hashed at once, while the next is made


@dataclass(frozen=True)
class Rows:
    """Rows in a folder: `parts` are (file, rows) in order; `origin` describes their source.

    `columns` are the widths of MLP output and target; `state`: each row has Y too, as wide as the target; `held`: the
    tensors of each part, of rows in memory, that no folder holds.
    """

    folder: Path
    parts: tuple[tuple[str, int], ...]
    columns: tuple[int, int]
    state: bool
    origin: Origin
    held: tuple[tuple["torch.Tensor", ...], ...] | None = field(default=None, compare=False, repr=False)

    @property
    def count(self) -> int:
        """Number of rows in all parts."""
        return sum(rows for _, rows in self.parts)

    def bytes(self, state: bool) -> int:
        """Return the bytes of all rows, with their state or without."""
        return self.count * row_bytes(self.columns, state)

    @staticmethod
    def open(folder: str | Path) -> "Rows":
        """Open a folder of `store`; raises ReplaceMeError for another folder, and where a part is missing or
        damaged.
        """
        folder = Path(folder)
        index = read_json(folder / INDEX)
        if not isinstance(index, dict) or set(index) != {"parts", "columns", "state", "origin", "files"}:
            raise ReplaceMeError(f"{folder / INDEX}: not the index of rows; make them with `replaceme rows`")
        check_files(folder, index["files"])
        parts = tuple((name, rows) for name, rows in index["parts"])
        return Rows(folder, parts, tuple(index["columns"]), index["state"], Origin.of(index["origin"]))

    def require_state(self) -> None:
        """Raise ReplaceMeError for rows without their state."""
        if not self.state:
            raise ReplaceMeError(f"{self.folder}: rows without the residual stream; make them with `rows --state`")

    def blocks(self, size: int, state: bool = False) -> Iterator[tuple["torch.Tensor", ...]]:
        """Yield (mlp_output, target), with `state` (mlp_output, target, state): bfloat16 [at most `size`, columns],
        CPU.

        Always cut at the same places. Raises ReplaceMeError for a corrupted part, and where there is no state.
        """
        for number, (_, rows) in enumerate(self.parts):
            with self._part(number, state) as tensors:
                for start in range(0, rows, size):
                    yield tuple(one[start : start + size] for one in tensors)

    def tensors(self, state: bool = False) -> list[list["torch.Tensor"]]:
        """Return the tensors of `blocks` of each part, whole, but mapped: nothing is read yet. Errors as there."""
        found = []
        for number in range(len(self.parts)):
            with self._part(number, state) as tensors:
                found.append([one[:] for one in tensors])
        return found

    @contextlib.contextmanager
    def _part(self, number: int, state: bool) -> Iterator[Sequence[Any]]:
        if state:
            self.require_state()
        names = NAMES if state else NAMES[:2]
        if self.held is not None:
            yield self.held[number][: len(names)]
            return
        with opened(self.folder / self.parts[number][0]) as file:
            yield [file.get_slice(name) for name in names]


@contextlib.contextmanager
def opened(part: Path) -> Iterator[Any]:
    """Open a part; raises ReplaceMeError when it is corrupted."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(part, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise DamagedError(part.parent, f"corrupted ({error})", part) from error


def row_bytes(columns: tuple[int, int], state: bool) -> int:
    """Return the bytes of one row whose MLP output and target have these widths."""
    return BYTES * (columns[0] + columns[1] * (1 + state))


class HeldParts:
    """Rows that are being collected in memory; `rows` are those so far."""

    def __init__(self, folder: Path, origin: Origin) -> None:
        self.rows = Rows(folder, (), (0, 0), False, origin, ())

    def add(self, tensors: tuple["torch.Tensor", ...]) -> None:
        """Add a part, (mlp_output, target) or (mlp_output, target, state), of any device."""
        self._note(tensors, (*self.rows.held, tuple(one.cpu() for one in tensors)))

    def _note(self, tensors: tuple["torch.Tensor", ...], held: tuple | None) -> None:
        parts = (*self.rows.parts, (f"rows-{len(self.rows.parts):05}.safetensors", len(tensors[0])))
        columns = (tensors[0].shape[1], tensors[1].shape[1])
        self.rows = replace(self.rows, parts=parts, columns=columns, state=len(tensors) == len(NAMES), held=held)


class Parts(HeldParts):
    """Rows that are being written to a folder; `rows` describes the folder once it is complete."""

    def __init__(self, folder: Path, origin: Origin, temporary: Path, writers: ThreadPoolExecutor) -> None:
        super().__init__(folder, origin)
        self._temporary, self._writers = temporary, writers
        self._pending: deque[tuple[str, Future[str]]] = deque()
        self.digests: dict[str, str] = {}

    def add(self, tensors: tuple["torch.Tensor", ...]) -> None:
        """Fetch a part to the host and write it in the background, while the next is made."""
        self.settle(WRITERS - 1)
        self._note(tensors, None)
        name = self.rows.parts[-1][0]
        hosted, copied = _hosted(tensors)
        self._pending.append((name, self._writers.submit(_written, self._temporary / name, hosted, copied)))

    def settle(self, left: int = 0) -> None:
        """Wait until no more than `left` parts are being written."""
        while len(self._pending) > left:
            name, digest = self._pending.popleft()
            self.digests[name] = digest.result()


def _hosted(tensors: tuple["torch.Tensor", ...]) -> tuple[tuple["torch.Tensor", ...], list["torch.cuda.Event"]]:
    """Return copies in host memory, and the events to wait for before they are read.

    A GPU copies beside its next work, to pinned memory, which torch keeps for the next part: new pages for each take
    ten times as long as the copy.
    """
    import torch

    copies, copied = [], []
    for one in tensors:
        if one.is_cuda:
            copies.append(torch.empty(one.shape, dtype=one.dtype, pin_memory=True).copy_(one, non_blocking=True))
            copied.append(torch.cuda.current_stream(one.device).record_event())
        else:
            copies.append(one)
    return tuple(copies), copied


def _written(path: Path, tensors: tuple["torch.Tensor", ...], copied: list["torch.cuda.Event"]) -> str:
    """Write a part once the device has copied it, and return its SHA-256, read from memory, before the disk has it."""
    for event in copied:
        event.synchronize()
    write_safetensors(path, dict(zip(NAMES, tensors, strict=False)), {})
    return sha256(path)


@contextlib.contextmanager
def storing(folder: str | Path, origin: Origin = UNKNOWN) -> Iterator[Parts]:
    """Collect rows within the block and write them to a folder, which exists, complete, afterwards."""
    folder = Path(folder)
    with replacing(folder, synced=False) as temporary, ThreadPoolExecutor(WRITERS) as writers:
        temporary.mkdir()
        parts = Parts(folder, origin, temporary, writers)
        yield parts
        parts.settle()
        rows = parts.rows
        index = {"parts": rows.parts, "columns": rows.columns, "state": rows.state, "origin": rows.origin.content}
        write_json(temporary / INDEX, {**index, "files": parts.digests})


@contextlib.contextmanager
def keeping(folder: Path, needed: int) -> Iterator[HeldParts]:
    """Collect rows of `needed` bytes within the block: in memory where there is plenty, else in a folder."""
    if needed < MEMORY_SHARE * free_memory("cpu"):
        yield HeldParts(folder, UNKNOWN)
        return
    check_room(folder, needed, "rows", "lower `fit_tokens`")
    with storing(folder) as parts:
        yield parts


def store(folder: str | Path, rows: Iterable[tuple["torch.Tensor", ...]], origin: Origin = UNKNOWN) -> Rows:
    """Write rows, given part by part as `Parts.add` takes them, and return them."""
    with storing(folder, origin) as parts:
        for tensors in rows:
            parts.add(tensors)
    return parts.rows
