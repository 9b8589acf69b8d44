"""Statistics of one or several cuts, accumulated over captured batches.

A Gram job gathers one cut over its shard of the batches; the choice of the cut gathers all candidates at once.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from replaceme.capture import Activations, Wanted, capture
from replaceme.data import Tokens
from replaceme.errors import ReplaceMeError
from replaceme.models import Family
from replaceme.progress import progress
from replaceme.statistics import Statistics

if TYPE_CHECKING:
    from torch import nn


def gather(passes: Iterable[Activations], cuts: Sequence[tuple[int, int]]) -> list[Statistics]:
    """Statistics of every cut [start, end) over all batches; each batch must hold what `Wanted.of_cut` names."""
    statistics: list[Statistics] = []
    for activations in passes:
        if not statistics:
            some = next(iter(activations.hidden_states.values()))
            statistics = [Statistics.zeros(some.shape[-1], some.device) for _ in cuts]
        for one, (start, end) in zip(statistics, cuts, strict=True):
            one.add_batch(activations.mlp_output[start - 1], activations.terms(start, end), activations.mask)
    return statistics


def gather_cut(
    model: "nn.Module", family: Family, tokens: Tokens, cut: tuple[int, int], batch_size: int, shard=0, shards=1
) -> Statistics:
    """Statistics of one cut over one shard of the batches, on the CPU, where they are added up and solved."""
    batches = tokens.batches(batch_size, shard, shards)
    if not batches:
        have = len(tokens.batches(batch_size))
        raise ReplaceMeError(f"gram: {shards} shards for {have} batches leave shard {shard} empty; lower `shards`")
    passes = capture(model, family, progress(batches, "gram", unit="batch"), Wanted.of_cut(*cut))
    return gather(passes, [cut])[0].to("cpu")
