"""Spread values that tiles of a matrix share, such as their scales, over the matrix."""

from typing import TYPE_CHECKING

from replaceme.dequantising.packing import Parts

if TYPE_CHECKING:
    import torch


def spread(parts: Parts, grid: "torch.Tensor", shape: tuple[int, int], tile: list[int] | None = None) -> "torch.Tensor":
    """Return the value of its tile for each number of a matrix [rows, columns]; one value is of all of them.

    `grid` [rows of tiles, columns of tiles]; tiles at the lower and right edge may be smaller than `tile`. Without it
    they have the size at which the grid covers the matrix. Raises ReplaceMeError for a grid that does not cover it.
    """
    if grid.numel() == 1:
        return grid.reshape(1, 1).expand(shape)
    if grid.ndim != 2:
        raise parts.mismatch("scales of another number of dimensions")
    for axis, size in enumerate(shape):
        count = grid.shape[axis]
        length = -(-size // max(1, count)) if tile is None else tile[axis]
        if not length or -(-size // length) != count:
            raise parts.mismatch("scales that are no grid of tiles")
        grid = grid.repeat_interleave(length, axis).narrow(axis, 0, size)
    return grid
