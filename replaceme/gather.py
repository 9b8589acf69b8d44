"""Statistics of one or several runs of blocks, accumulated over captured batches.

A Gram job gathers the groups of its cut over its shard of the batches; the choice of the cut gathers all candidates.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from replaceme.capture import Activations, capture
from replaceme.data import Tokens
from replaceme.errors import ReplaceMeError
from replaceme.models import Family
from replaceme.progress import progress
from replaceme.regression import Regression
from replaceme.statistics import Statistics

if TYPE_CHECKING:
    from torch import nn

    from replaceme.recycling import Recycled

MLP = Regression()


def gather(
    passes: Iterable[Activations],
    groups: Sequence[tuple[int, int]],
    regression: Regression = MLP,
    recycled: "Sequence[Recycled] | None" = None,
) -> list[Statistics]:
    """Statistics of every [start, end) over all batches; each batch must hold what `Regression.wanted` names.

    `recycled`: the neurons of each group that are, where the regression has such.
    """
    statistics: list[Statistics] = []
    changed = recycled or [None] * len(groups)
    for activations in passes:
        rows = [regression.rows(activations, *group, one) for group, one in zip(groups, changed, strict=True)]
        if not statistics:
            statistics = [Statistics.zeros(terms[0].shape[-1], m.device, m.shape[-1]) for m, terms in rows]
        for one, (m, terms) in zip(statistics, rows, strict=True):
            one.add_batch(m, terms, activations.mask, regression.weights(terms))
    return statistics


def gather_groups(
    model: "nn.Module",
    family: Family,
    batches: Sequence[Tokens],
    groups: Sequence[tuple[int, int]],
    regression: Regression = MLP,
    recycled: "Sequence[Recycled] | None" = None,
) -> list[Statistics]:
    """Statistics of the groups [start, end) of a cut over batches, on the CPU, where they are added up and solved."""
    passes = capture(model, family, progress(batches, "gram", unit="batch"), regression.wanted(groups))
    return [one.to("cpu") for one in gather(passes, groups, regression, recycled)]


def shard_batches(tokens: Tokens, batch_size: int, shard: int, shards: int) -> list[Tokens]:
    """The batches of one shard; raises ReplaceMeError when there are none."""
    batches = tokens.batches(batch_size, shard, shards)
    if not batches:
        have = len(tokens.batches(batch_size))
        raise ReplaceMeError(f"gram: {shards} shards for {have} batches leave shard {shard} empty; lower `shards`")
    return batches
