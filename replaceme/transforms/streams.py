"""Read stored rows for the fits: blocks for the passes over all of them, or single rows picked at random."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch

from replaceme.activations.rows import Rows
from replaceme.core.memory import unless_full

HELD_OUT = 8  # one block of rows in so many is held out
BLOCK_ROWS = 65536
T = TypeVar("T")
Parts = list[list[torch.Tensor]]  # of each file its tensors


@dataclass(frozen=True)
class Block:
    """Rows on the device of the fit: m [rows, in], r [rows, out], y [rows, out] or None, bfloat16."""

    m: torch.Tensor
    r: torch.Tensor
    y: torch.Tensor | None
    held_out: bool = False

    @property
    def terms(self) -> tuple[torch.Tensor, ...]:
        """Terms that p = m T (+ y) is compared with, for the kernels: r, or l = r + y as r - (-y) in float32."""
        return (self.r,) if self.y is None else (self.r, -self.y)


Blocks = Callable[[], Iterator[Block]]  # the same blocks, afresh for each pass


def row_blocks(rows: Rows, device: str | torch.device, state: bool = False, size: int = BLOCK_ROWS) -> Blocks:
    """Return the blocks of rows, each held out or not; kept on a GPU where they take less than half of what is free."""
    size = max(1, min(size, rows.count // (2 * HELD_OUT)))

    def read() -> Iterator[Block]:
        for number, tensors in enumerate(rows.blocks(size, state)):
            m, r, y = (*(tensor.to(device) for tensor in tensors), None)[:3]
            yield Block(m, r, y, number % HELD_OUT == HELD_OUT - 1)

    def keep() -> Blocks:
        kept = list(read())
        return lambda: iter(kept)

    return _on_gpu(keep, read) if _fits(rows, device, state) else read


class Table:
    """Rows by number, [0, count), as one array on a GPU that has the room, else memory-mapped and picked on the CPU."""

    def __init__(self, rows: Rows, device: str | torch.device, state: bool = False) -> None:
        """Open all parts; raises ReplaceMeError for a corrupted one, and where a required state is missing."""
        self.count, self.columns, self.device = rows.count, rows.columns, torch.device(device)
        parts = rows.tensors(state)
        self._parts = _on_gpu(lambda: _on_one(parts, device), parts) if _fits(rows, device, state) else parts
        self._ends = torch.tensor([len(part[0]) for part in self._parts]).cumsum(0)

    def take(self, numbers: torch.Tensor) -> Block:
        """Return the rows with these numbers, int64 on the CPU, on the device and in no particular order."""
        if len(self._parts) == 1:
            tensors = [tensor[numbers.to(tensor.device)] for tensor in self._parts[0]]
        else:
            numbers = numbers.sort().values
            edges = torch.searchsorted(numbers, self._ends).tolist()
            picked, start, offset = [], 0, 0
            for part, end, after in zip(self._parts, edges, self._ends.tolist(), strict=True):
                if end > start:
                    picked.append([tensor[numbers[start:end] - offset] for tensor in part])
                start, offset = end, after
            tensors = [torch.cat(pieces) for pieces in zip(*picked, strict=True)]
        m, r, y = (*(tensor.to(self.device) for tensor in tensors), None)[:3]
        return Block(m, r, y)


def _fits(rows: Rows, device: str | torch.device, state: bool) -> bool:
    """Return whether the rows take less than half of what is free on a GPU."""
    return torch.device(device).type == "cuda" and rows.bytes(state) < torch.cuda.mem_get_info(device)[0] / 2


def _on_gpu(make: Callable[[], T], otherwise: T) -> T:
    """Return what a function makes on a GPU, or if its memory is full by then, the other one."""
    return unless_full(make, lambda: otherwise, "rows of a fit", "they are read from their files")


def _on_one(parts: Parts, device: str | torch.device) -> Parts:
    """Return all parts as one on a device."""
    return [[_gathered(tensors, device) for tensors in zip(*parts, strict=True)]]


def _gathered(parts: tuple[torch.Tensor, ...], device: str | torch.device) -> torch.Tensor:
    """Concatenate parts on a device, without a copy of them all on the way."""
    out = torch.empty(sum(map(len, parts)), parts[0].shape[1], dtype=parts[0].dtype, device=device)
    start = 0
    for part in parts:
        out[start : start + len(part)] = part
        start += len(part)
    return out
