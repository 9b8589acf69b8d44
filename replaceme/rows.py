"""Rows of a cut on disk, for the fits that cannot do with sums: MLP output and target of each token, bfloat16.

A folder of safetensors parts and an index.json that is written last. Parts are memory-mapped and read in blocks, so no
[tokens, hidden] array is ever in memory. A row is rounded once to bfloat16: 2^-9 of each element.
"""

import logging
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaceme.capture import Activations, Wanted, capture
from replaceme.data import Tokens
from replaceme.errors import ReplaceMeError
from replaceme.files import read_json, replacing, write_json, write_safetensors
from replaceme.models import Family
from replaceme.progress import progress

if TYPE_CHECKING:
    import torch
    from torch import nn

LOGGER = logging.getLogger(__name__)
INDEX = "index.json"
BYTES = 2 * 2  # of one element of a row: MLP output and target, bfloat16 each


@dataclass(frozen=True)
class Rows:
    """Rows in a folder: `parts` are (file, rows) in order; `origin` says what they were made from."""

    folder: Path
    parts: tuple[tuple[str, int], ...]
    hidden_size: int
    origin: dict[str, Any]

    @property
    def count(self) -> int:
        """Rows of all parts."""
        return sum(rows for _, rows in self.parts)

    @staticmethod
    def open(folder: str | Path) -> "Rows":
        """Rows that `write_rows` wrote; raises ReplaceMeError when the folder is not such a one or lacks a part."""
        folder = Path(folder)
        index = read_json(folder / INDEX)
        if not isinstance(index, dict) or set(index) != {"parts", "hidden_size", "origin"}:
            raise ReplaceMeError(f"{folder / INDEX}: not the index of rows; make them with `replaceme rows`")
        missing = [name for name, _ in index["parts"] if not (folder / name).is_file()]
        if missing:
            raise ReplaceMeError(f"{folder / missing[0]}: no such file; delete {folder} and run again")
        parts = tuple((name, rows) for name, rows in index["parts"])
        return Rows(folder, parts, index["hidden_size"], index["origin"])

    def blocks(self, size: int) -> Iterator[tuple["torch.Tensor", "torch.Tensor"]]:
        """(mlp_output, target) bfloat16 [at most `size`, hidden] on the CPU, always cut at the same places."""
        from safetensors import SafetensorError, safe_open

        for name, rows in self.parts:
            try:
                with safe_open(self.folder / name, framework="pt") as file:
                    outputs, targets = file.get_slice("mlp_output"), file.get_slice("target")
                    for start in range(0, rows, size):
                        yield outputs[start : start + size], targets[start : start + size]
            except SafetensorError as error:
                raise ReplaceMeError(f"{self.folder / name}: corrupted ({error}); delete {self.folder}") from error


def write_rows(
    folder: str | Path,
    model: "nn.Module",
    family: Family,
    tokens: Tokens,
    cut: tuple[int, int],
    batch_size: int,
    fit_tokens: int | None = None,
    origin: dict[str, Any] | None = None,
) -> Rows:
    """Write the rows of a cut [start, end), all of them or `fit_tokens` drawn uniformly, and return them.

    Raises ReplaceMeError before the first forward pass when the disk has no room for them.
    """
    folder = Path(folder)
    start, end = cut
    hidden = model.get_input_embeddings().weight.shape[1]
    chosen = _chosen(tokens.count, fit_tokens)
    needed = check_room(folder, int(chosen.sum()), hidden)
    LOGGER.info("rows: %d tokens of %d channels, %.2f GB", int(chosen.sum()), hidden, needed / 1e9)
    parts: list[tuple[str, int]] = []
    with replacing(folder) as temporary:
        temporary.mkdir()
        batches = tokens.batches(batch_size)
        passes = capture(model, family, progress(batches, "rows", unit="batch"), Wanted.of_cut(start, end))
        for outputs, targets in _rows(passes, cut, chosen):
            name = f"rows-{len(parts):05}.safetensors"
            write_safetensors(temporary / name, {"mlp_output": outputs, "target": targets}, {})
            parts.append((name, len(outputs)))
        write_json(temporary / INDEX, {"parts": parts, "hidden_size": hidden, "origin": origin or {}})
    return Rows(folder, tuple(parts), hidden, origin or {})


def check_room(folder: Path, rows: int, hidden: int) -> int:
    """Bytes that the rows take; raises ReplaceMeError when the disk has less."""
    needed = rows * hidden * BYTES
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise ReplaceMeError(
            f"{folder}: {rows} rows need {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; lower `fit_tokens`"
        )
    return needed


def _chosen(count: int, wanted: int | None) -> "torch.Tensor":
    """Which of `count` tokens are taken: all, or `wanted` of them drawn uniformly, always the same."""
    import torch

    chosen = torch.zeros(count, dtype=torch.bool)
    drawn = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    chosen[drawn[: count if wanted is None else wanted]] = True
    return chosen


def _rows(
    passes: Iterable[Activations], cut: tuple[int, int], chosen: "torch.Tensor"
) -> Iterator[tuple["torch.Tensor", "torch.Tensor"]]:
    """(mlp_output, target) of the chosen tokens of each batch, as they come, in bfloat16 on the CPU."""
    import torch

    done = 0
    for activations in passes:
        here = int(activations.mask.sum())
        keep = chosen[done : done + here].to(activations.mask.device)
        done += here
        if keep.any():
            a, b, m = (tensor[activations.mask][keep] for tensor in activations.terms(*cut))
            wide = torch.promote_types(a.dtype, torch.float32)
            target = a.to(wide) - b.to(wide) + m.to(wide)
            yield m.to(torch.bfloat16).cpu(), target.to(torch.bfloat16).cpu()
