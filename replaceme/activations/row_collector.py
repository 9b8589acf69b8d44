"""Take the rows of a cut from a forward pass, and write them to folders (see `rows`)."""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from replaceme.activations.capture import Activations, collect
from replaceme.activations.rows import UNKNOWN, HeldParts, Rows, row_bytes, storing
from replaceme.activations.targets import formed, rows_of, wanted_by, width_of
from replaceme.calibration.tokens import Tokens
from replaceme.config.placement import MLP, Regression
from replaceme.core.disk import reserving
from replaceme.core.origin import Origin
from replaceme.core.progress import progress
from replaceme.models.family import Family
from replaceme.models.model_config import several_streams

if TYPE_CHECKING:
    import torch
    from torch import nn

    from replaceme.activations.recycled_neurons import Recycled

LOGGER = logging.getLogger(__name__)


class RowCollector:
    """The rows of a cut [start, end), batch by batch, all of them or `fit_tokens` drawn uniformly.

    `regression`: of a placement of the MLP, with the neurons `recycled` if it has any.
    """

    def __init__(
        self,
        cut: tuple[int, int],
        count: int,
        fit_tokens: int | None = None,
        with_state: bool = False,
        regression: Regression = MLP,
        recycled: "Recycled | None" = None,
    ) -> None:
        self.cut, self.with_state, self.regression, self.recycled = cut, with_state, regression, recycled
        self.chosen = _chosen(count, fit_tokens)
        self.wanted = wanted_by(regression, [cut])
        self.parts: HeldParts | None = None
        self.needed = 0  # bytes, once they are asked for
        self._done = 0

    def bytes(self, model: "nn.Module", family: Family) -> int:
        """Return the bytes that the rows will take, and log them; raises ReplaceMeError for several residual
        streams.
        """
        if family.spread:
            raise several_streams("a fit over rows", "objective l2 or kl", "rows")
        width = width_of(self.regression, model, family, self.cut[0])
        count = int(self.chosen.sum())
        self.needed = count * row_bytes((width, model.config.get_text_config().hidden_size), self.with_state)
        LOGGER.info("rows: %d tokens of %d channels, %.2f GB", count, width, self.needed / 1e9)
        return self.needed

    def add(self, activations: Activations) -> None:
        """Add (m, target[, state]) of the chosen tokens of a batch, in bfloat16."""
        import torch

        here = int(activations.mask.sum())
        keep = self.chosen[self._done : self._done + here].to(activations.mask.device)
        self._done += here
        if keep.any():
            m, terms = rows_of(self.regression, activations, *self.cut, self.recycled)
            m, goal, state, added = (tensor[activations.mask][keep] for tensor in (m, *terms))
            target = formed((goal, state, added))
            before = (state.to(target.dtype) - added.to(target.dtype),) if self.with_state else ()
            self.parts.add(tuple(tensor.to(torch.bfloat16) for tensor in (m, target, *before)))


@dataclass(frozen=True)
class RowOptions:
    """The choice of rows to write and their origin: `fit_tokens` and the rest as in `RowCollector`, for groups.

    `recycled` has the neurons of each group.
    """

    fit_tokens: int | None = None
    with_state: bool = False
    regression: Regression = MLP
    recycled: "Sequence[Recycled | None] | None" = None
    origin: Origin = UNKNOWN


EVERY_ROW = RowOptions()


@contextlib.contextmanager
def writing_rows(
    folder: str | Path,
    model: "nn.Module",
    family: Family,
    count: int,
    groups: Sequence[tuple[int, int]],
    options: RowOptions = EVERY_ROW,
) -> Iterator[list[RowCollector]]:
    """Yield collectors of the rows of each group of a cut, of `count` tokens, and have the rows in folders afterwards.

    The rows of group k go to the subfolder k of `folder`. Raises ReplaceMeError when the disk has no room for them.
    """
    shape = (count, options.fit_tokens, options.with_state, options.regression)
    pairs = zip(groups, options.recycled or [None] * len(groups), strict=True)
    collectors = [RowCollector(group, *shape, one) for group, one in pairs]
    needed = sum(one.bytes(model, family) for one in collectors)
    with reserving(Path(folder), needed, "rows", "lower `fit_tokens`"), contextlib.ExitStack() as stack:
        for number, one in enumerate(collectors):
            one.parts = stack.enter_context(storing(Path(folder) / str(number), options.origin))
        yield collectors


def write_rows(
    folder: str | Path,
    model: "nn.Module",
    family: Family,
    tokens: Tokens,
    groups: Sequence[tuple[int, int]],
    batch_size: int,
    options: RowOptions = EVERY_ROW,
) -> list[Rows]:
    """Write the rows of each group of a cut by one forward pass, and return them; see `writing_rows`."""
    with writing_rows(folder, model, family, tokens.count, groups, options) as collectors:
        collect(model, family, progress(tokens.batches(batch_size), "rows", unit="batch"), collectors)
    return [one.parts.rows for one in collectors]


def _chosen(count: int, wanted: int | None) -> "torch.Tensor":
    """Return which of `count` tokens are taken: all, or `wanted` of them drawn uniformly, always the same."""
    import torch

    chosen = torch.zeros(count, dtype=torch.bool)
    drawn = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    chosen[drawn[: count if wanted is None else wanted]] = True
    return chosen
