"""Rows of a cut on disk, for the fits that cannot do with sums: m (see `regression`) and r of each token, bfloat16.

The exact cosine objective (eq. 7 of arXiv 2505.02819) also needs the residual stream Y = hidden_states[start-1] - M,
the `state`; R + Y is then hidden_states[end-1]. A folder of safetensors parts and an index.json that is written last.
Parts are memory-mapped and read in blocks, so no [tokens, hidden] array is ever in memory. A row is rounded once to
bfloat16: 2^-9 of each element.
"""

import contextlib
import logging
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaceme.capture import Activations, capture
from replaceme.data import Tokens
from replaceme.errors import ReplaceMeError
from replaceme.files import check_room, read_json, replacing, sync, write_json, write_safetensors
from replaceme.models import Family
from replaceme.progress import progress
from replaceme.regression import Regression, formed

if TYPE_CHECKING:
    import torch
    from torch import nn

    from replaceme.recycling import Recycled

LOGGER = logging.getLogger(__name__)
INDEX = "index.json"
NAMES = ("mlp_output", "target", "state")
MLP = Regression()
BYTES = 2  # of an element, bfloat16


@dataclass(frozen=True)
class Rows:
    """Rows in a folder: `parts` are (file, rows) in order; `origin` says what they were made from.

    `columns` are the widths of MLP output and target; `state`: each row has Y too, as wide as the target.
    """

    folder: Path
    parts: tuple[tuple[str, int], ...]
    columns: tuple[int, int]
    state: bool
    origin: dict[str, Any]

    @property
    def count(self) -> int:
        """Rows of all parts."""
        return sum(rows for _, rows in self.parts)

    def bytes(self, state: bool) -> int:
        """Bytes of all rows, with their state or without."""
        return self.count * row_bytes(self.columns, state)

    @staticmethod
    def open(folder: str | Path) -> "Rows":
        """Rows that `store` wrote; raises ReplaceMeError when the folder is not such a one or lacks a part."""
        folder = Path(folder)
        index = read_json(folder / INDEX)
        if not isinstance(index, dict) or set(index) != {"parts", "columns", "state", "origin"}:
            raise ReplaceMeError(f"{folder / INDEX}: not the index of rows; make them with `replaceme rows`")
        missing = [name for name, _ in index["parts"] if not (folder / name).is_file()]
        if missing:
            raise ReplaceMeError(f"{folder / missing[0]}: no such file; delete {folder} and run again")
        parts = tuple((name, rows) for name, rows in index["parts"])
        return Rows(folder, parts, tuple(index["columns"]), index["state"], index["origin"])

    def require_state(self) -> None:
        """Raise ReplaceMeError for rows without their state."""
        if not self.state:
            raise ReplaceMeError(f"{self.folder}: rows without the residual stream; make them with `rows --state`")

    def blocks(self, size: int, state: bool = False) -> Iterator[tuple["torch.Tensor", ...]]:
        """(mlp_output, target), with `state` (mlp_output, target, state): bfloat16 [at most `size`, columns], CPU.

        Always cut at the same places. Raises ReplaceMeError for a corrupted part, and where there is no state.
        """
        if state:
            self.require_state()
        names = NAMES if state else NAMES[:2]
        for name, rows in self.parts:
            with opened(self.folder / name) as file:
                slices = [file.get_slice(tensor) for tensor in names]
                for start in range(0, rows, size):
                    yield tuple(one[start : start + size] for one in slices)


@contextlib.contextmanager
def opened(part: Path) -> Iterator[Any]:
    """An open part; raises ReplaceMeError when it is corrupted."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(part, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise ReplaceMeError(f"{part}: corrupted ({error}); delete {part.parent}") from error


def row_bytes(columns: tuple[int, int], state: bool) -> int:
    """Bytes of one row whose MLP output and target have these widths."""
    return BYTES * (columns[0] + columns[1] * (1 + state))


def store(folder: str | Path, rows: Iterable[tuple["torch.Tensor", ...]], origin: dict[str, Any] | None = None) -> Rows:
    """Write rows, given part by part as (mlp_output, target) or (mlp_output, target, state), and return them."""
    folder = Path(folder)
    parts: list[tuple[str, int]] = []
    columns, width = (0, 0), 2
    with replacing(folder) as temporary:
        temporary.mkdir()

        def write(name: str, tensors: tuple["torch.Tensor", ...]) -> None:
            write_safetensors(temporary / name, dict(zip(NAMES, tensors, strict=False)), {})
            sync(temporary / name)

        with ThreadPoolExecutor(1) as writer:  # one part is written while the next is made
            pending = None
            for tensors in rows:
                name = f"rows-{len(parts):05}.safetensors"
                if pending is not None:
                    pending.result()
                pending = writer.submit(write, name, tensors)
                parts.append((name, len(tensors[0])))
                columns, width = (tensors[0].shape[1], tensors[1].shape[1]), len(tensors)
            if pending is not None:
                pending.result()
        index = {"parts": parts, "columns": columns, "state": width == len(NAMES), "origin": origin or {}}
        write_json(temporary / INDEX, index)
    return Rows(folder, tuple(parts), columns, width == len(NAMES), origin or {})


def write_rows(
    folder: str | Path,
    model: "nn.Module",
    family: Family,
    tokens: Tokens,
    cut: tuple[int, int],
    batch_size: int,
    fit_tokens: int | None = None,
    origin: dict[str, Any] | None = None,
    with_state: bool = False,
    regression: Regression = MLP,
    recycled: "Recycled | None" = None,
) -> Rows:
    """Write the rows of a cut [start, end), all of them or `fit_tokens` drawn uniformly, and return them.

    `regression`: of placement mlp or down_proj, with the neurons `recycled` if it has such.

    Raises ReplaceMeError before the first forward pass when the disk has no room for them.
    """
    folder = Path(folder)
    hidden = width = model.config.hidden_size
    if regression.placement == "down_proj":
        width = family.intermediate_size(family.block_modules(model)[cut[0] - 1])
    chosen = _chosen(tokens.count, fit_tokens)
    needed = int(chosen.sum()) * row_bytes((width, hidden), with_state)
    check_room(folder, needed, f"{int(chosen.sum())} rows", "lower `fit_tokens`")
    LOGGER.info("rows: %d tokens of %d channels, %.2f GB", int(chosen.sum()), width, needed / 1e9)
    batches = tokens.batches(batch_size)
    passes = capture(model, family, progress(batches, "rows", unit="batch"), regression.wanted([cut]))
    return store(folder, _rows(passes, regression, recycled, cut, chosen, with_state), origin)


def _chosen(count: int, wanted: int | None) -> "torch.Tensor":
    """Which of `count` tokens are taken: all, or `wanted` of them drawn uniformly, always the same."""
    import torch

    chosen = torch.zeros(count, dtype=torch.bool)
    drawn = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    chosen[drawn[: count if wanted is None else wanted]] = True
    return chosen


def _rows(
    passes: Iterable[Activations],
    regression: Regression,
    recycled: "Recycled | None",
    cut: tuple[int, int],
    chosen: "torch.Tensor",
    with_state: bool,
) -> Iterator[tuple["torch.Tensor", ...]]:
    """(m, target[, state]) of the chosen tokens of each batch, as they come, in bfloat16 on the CPU."""
    import torch

    done = 0
    for activations in passes:
        here = int(activations.mask.sum())
        keep = chosen[done : done + here].to(activations.mask.device)
        done += here
        if keep.any():
            m, terms = regression.rows(activations, *cut, recycled)
            m, goal, state, added = (tensor[activations.mask][keep] for tensor in (m, *terms))
            target = formed((goal, state, added))
            kept = (m, target, state.to(target.dtype) - added.to(target.dtype)) if with_state else (m, target)
            yield tuple(tensor.to(torch.bfloat16).cpu() for tensor in kept)
