"""Measure the cost of removing blocks without a replacement: metrics of other papers, as baselines of the choice.

- perplexity: exp of the language-model loss of the model without the blocks (Shortened LLaMA, arXiv 2402.02834).
- taylor: see `taylor` (the same paper); a run of blocks counts the sum of their scores.

Every run is measured on the whole model, or (`search: iterative`; with perplexity SLEB, arXiv 2402.09025) every single
block on the model without those that went before it, of which the least goes, and so on.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from replaceme.activations.language_loss import losses_within
from replaceme.calibration.tokens import Tokens
from replaceme.config.cuts import CutConfig
from replaceme.config.metrics import WITHOUT_FIT
from replaceme.core.named import import_named
from replaceme.core.places import Span
from replaceme.cuts.choose import possible_spans, resolve_blocks, sizes_of, spans
from replaceme.cuts.groups import least
from replaceme.cuts.taylor import taylor_scores
from replaceme.models.family import Family
from replaceme.models.model_record import Sizes
from replaceme.surgery.shared_start import SharedStart, begins_anywhere
from replaceme.surgery.shortened_model import shortened

if TYPE_CHECKING:
    from torch import nn

# (runs that are gone, runs to measure) -> a value for each of the latter
Measure = Callable[[Sequence[Span], Sequence[Span]], list[float]]
LARGEST = 700.0  # loss in nats above which its exp would overflow


def unrepaired_candidates(
    cut: CutConfig, record: Sizes, model: "nn.Module", family: Family, tokens: Tokens, batch_size: int
) -> list[dict[str, Any]]:
    """Return every run of blocks that a cut section compares, with its perplexity or Taylor score on some text.

    The model must have its head. With `search: iterative` each entry has its `round`, from 0.
    """
    measure = import_named(WITHOUT_FIT[cut.metric].function)(model, family, tokens, batch_size)
    if cut.search == "iterative":
        return one_by_one(measure, possible_spans(cut, record), resolve_blocks(cut, record), cut.metric)
    measured = [span for size in sizes_of(cut, record) for span in spans(record.num_blocks, size, cut.halves)]
    return _entries(measured, measure([], measured), cut.metric)


def one_by_one(measure: Measure, possible: Sequence[Span], blocks: int, metric: str) -> list[dict[str, Any]]:
    """Return the entries of all rounds: each round measures every remaining run without the least ones of earlier
    rounds.
    """
    gone: list[Span] = []
    found: list[dict[str, Any]] = []
    for number in range(blocks):
        left = [span for span in possible if span not in gone]
        values = measure(gone, left)
        found += [{**entry, "round": number} for entry in _entries(left, values, metric)]
        gone.append(least(dict(zip(left, values, strict=True))))
    return found


def _entries(measured: Sequence[Span], values: Sequence[float], metric: str) -> list[dict[str, Any]]:
    return [{"start": start, "end": end, metric: value} for (start, end), value in zip(measured, values, strict=True)]


def perplexities(model: "nn.Module", family: Family, tokens: Tokens, batch_size: int) -> Measure:
    """Return the measure of runs by the perplexity of a model without them, each of which begins at its first block
    that is gone (`shared_start`); the loss has a batch size of its own.
    """
    shares = begins_anywhere(model, family, tokens, range(1, len(family.block_modules(model.base_model))))

    def measure(gone: Sequence[Span], measured: Sequence[Span]) -> list[float]:
        shared = SharedStart(model, family, gone)
        contexts = [
            partial(shared.shortened, [*gone, span], [None] * (len(gone) + 1), int(span[0]) if shares else 0)
            for span in measured
        ]
        losses = losses_within(model, tokens, contexts, f"perplexity of {len(measured)} cuts, {len(gone)} blocks gone")
        return [math.exp(min(float(sums.sum() / counts.sum()), LARGEST)) for sums, counts in losses]

    return measure


def taylor_sums(model: "nn.Module", family: Family, tokens: Tokens, batch_size: int) -> Measure:
    """Return the measure of runs by the sum of their blocks' Taylor scores, in batches of so many sequences."""

    def measure(gone: Sequence[Span], measured: Sequence[Span]) -> list[float]:
        blocks = sorted({block for start, end in measured for block in range(start, end)})
        with shortened(model.base_model, family, gone, [None] * len(gone)):
            scores = taylor_scores(model, family, tokens, batch_size, blocks)
        return [sum(scores[block] for block in range(start, end)) for start, end in measured]

    return measure
