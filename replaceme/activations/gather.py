"""Statistics of one or several runs of blocks, and gains of their fits, accumulated over captured batches.

A Gram job gathers the groups of its cut over its shard of the batches; the choice of the cut gathers all candidates.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from replaceme.activations.capture import Activations, collect
from replaceme.activations.statistics import Statistics
from replaceme.activations.targets import rows_of, wanted_by, weights_of, width_of
from replaceme.calibration.tokens import Tokens
from replaceme.config.placement import MLP, Regression
from replaceme.core.errors import ReplaceMeError
from replaceme.core.progress import progress
from replaceme.models.family import Family

if TYPE_CHECKING:
    from torch import nn

    from replaceme.activations.recycled_neurons import Recycled

FLOAT64 = 8  # bytes


class Gathered:
    """Statistics of the groups [start, end) of a cut, batch by batch.

    `recycled`: the recycled neurons of each group, if the regression has any.
    """

    def __init__(
        self,
        groups: Sequence[tuple[int, int]],
        regression: Regression = MLP,
        recycled: "Sequence[Recycled] | None" = None,
    ) -> None:
        self.groups, self.regression, self.recycled = groups, regression, recycled or [None] * len(groups)
        self.wanted = wanted_by(regression, groups)
        self._sums: list[Statistics] = []

    def add(self, activations: Activations) -> None:
        """Add the rows of a batch."""
        pairs = zip(self.groups, self.recycled, strict=True)
        rows = [rows_of(self.regression, activations, *group, changed) for group, changed in pairs]
        if not self._sums:
            self._sums = [Statistics.zeros(terms[0].shape[-1], m.device, m.shape[-1]) for m, terms in rows]
        for one, (m, terms) in zip(self._sums, rows, strict=True):
            one.add_batch(m, terms, activations.mask, weights_of(self.regression, terms))

    def bytes(self, model: "nn.Module", family: Family) -> int:
        """Return the bytes that the sums will take on the model's device."""
        hidden = model.config.get_text_config().hidden_size
        widths = [width_of(self.regression, model, family, start) for start, _ in self.groups]
        return sum(FLOAT64 * width * (width + hidden) for width in widths)

    def statistics(self) -> list[Statistics]:
        """Return the statistics of each group, on the CPU, where they are added up and solved."""
        return [one.to("cpu") for one in self._sums]


def gather_groups(
    model: "nn.Module",
    family: Family,
    batches: Sequence[Tokens],
    groups: Sequence[tuple[int, int]],
    regression: Regression = MLP,
    recycled: "Sequence[Recycled] | None" = None,
) -> list[Statistics]:
    """Gather the statistics of the groups [start, end) of a cut over batches, by one forward pass; see `Gathered`."""
    gathered = Gathered(groups, regression, recycled)
    collect(model, family, progress(batches, "gram", unit="batch"), [gathered])
    return gathered.statistics()


def shard_batches(tokens: Tokens, batch_size: int, shard: int, shards: int) -> list[Tokens]:
    """Return the batches of one shard; raises ReplaceMeError when there are none."""
    batches = tokens.batches(batch_size, shard, shards)
    if not batches:
        have = len(tokens.batches(batch_size))
        raise ReplaceMeError(f"gram: {shards} shards for {have} batches leave shard {shard} empty; lower `shards`")
    return batches
