"""Search single attentions and MLPs to remove, wherever they lie, one after another.

In each round every one that is left is measured by the KL divergence of next-token distributions, whole model against
the one without it and those that went before; nothing is fitted, so no text is needed for that. That of the least rise
for what it costs (its parameters, or in another unit of the cut) goes, until as much is gone as so many blocks cost on
the mean: what would take more than that by over a half of itself stays, and so does what costs nothing. So do SLEB
(arXiv 2402.09025) with blocks, by perplexity, and SubFit (arXiv 2606.02559) with attentions and MLPs.

The whole model's predictions are made once. In a round the blocks before a sublayer run once for all of them, and each
model without one begins at its block (`shared_start`): about half of the work.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from replaceme.activations.comparison import Kept, compare
from replaceme.calibration.tokens import Tokens
from replaceme.config.cuts import CutConfig
from replaceme.core.places import Span, in_middle
from replaceme.cuts.choose import costs_of, kept_entries, sublayers
from replaceme.cuts.groups import merged
from replaceme.models.family import Family
from replaceme.models.model_record import Sizes
from replaceme.surgery.shared_start import SharedStart, begins_anywhere

if TYPE_CHECKING:
    from torch import nn

METRIC = "kl_without"
# (sublayers that are gone, those to measure, a description) -> a value for each of the latter
Measure = Callable[[Sequence[Span], Sequence[Span], str], list[float]]


def sublayer_candidates(
    cut: CutConfig, record: Sizes, blocks: int, model: "nn.Module", family: Family, tokens: Tokens, batch_size: int
) -> list[dict[str, Any]]:
    """Return every attention and MLP that a cut section tries on a model with its head, round by round, with its
    `kl_without` and its cost in the unit `of`; `kept` marks those that go. Batches are as large as the logits allow.
    """
    modules, costs = family.block_modules(model.base_model), costs_of(cut, record)
    sizes = {
        span: costs.of_run(span) if cut.needs_costs else _parameters(modules, family, span)
        for span in sublayers(cut, record)
    }
    budget = blocks * costs.block
    measure = _measure(model, family, tokens, sizes)
    found: list[dict[str, Any]] = []
    before, number = 0.0, 0
    while left := _affordable(sizes, found, budget):
        gone = [(one["start"], one["end"]) for one in kept_entries(found)]
        values = measure(gone, left, f"without sublayers, round {number + 1}")
        entries = [
            {"start": start, "end": end, METRIC: value, cut.of: sizes[start, end], "round": number, "kept": False}
            for (start, end), value in zip(left, values, strict=True)
        ]
        least = min(entries, key=lambda one: (one[METRIC] - before) / one[cut.of])
        least["kept"], before, number = True, least[METRIC], number + 1
        found += entries
    return found


def _affordable(sizes: dict[Span, float], found: Sequence[dict[str, Any]], budget: float) -> list[Span]:
    """Return the sublayers that are left, cost something, and too little to take more than the budget by over a half of
    themselves.
    """
    gone = {(one["start"], one["end"]) for one in kept_entries(found)}
    room = budget - sum(sizes[span] for span in gone)
    return [span for span in sizes if span not in gone and 0 < sizes[span] <= 2 * room]


def _measure(model: "nn.Module", family: Family, tokens: Tokens, possible: Iterable[Span]) -> Measure:
    """Return a function that measures the divergence without each of the sublayers that are left, of the `possible`
    ones, and without those that are gone; the blocks before a sublayer run once a round.
    """
    whole = Kept(model)
    shares = begins_anywhere(model, family, tokens, {int(start) for start, _ in possible})

    def measure(gone: Sequence[Span], left: Sequence[Span], what: str) -> list[float]:
        shared = SharedStart(model, family, merged(gone))
        without = [merged([*gone, span]) for span in left]
        others = [
            shared.predicting(groups, [None] * len(groups), int(start) if shares else 0)
            for (start, _), groups in zip(left, without, strict=True)
        ]
        return [one.mean_divergence for one in compare(model, others, tokens, what, whole)[1:]]

    return measure


def _parameters(modules: "nn.ModuleList", family: Family, span: Span) -> int:
    """Return how many parameters an attention or MLP has, with its norms."""
    block = modules[int(span[0])]
    own = (one for name, one in block.named_parameters() if family.attention.holds(name) != in_middle(span[0]))
    return sum(one.numel() for one in own)
