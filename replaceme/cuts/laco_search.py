"""Choose blocks as LaCo does (arXiv 2402.11187, algorithm 1): from the last down, merge where the output stays similar.

Blocks l .. l+K, K = `merge_blocks` - 1, are merged into block l (see `collapse`). Where the mean cosine similarity of
the merged model's last states to the original's is above `similarity`, the merge is kept and l goes down by `interval`
(at least so far that all K blocks lie above it), else by 1. Merged blocks may be merged again: a block is then a sum of
the original blocks in its place,

    W = sum_k c_k W_k,  (c_carrier, ..., c_last) with sum 1,

and merging blocks with coefficients c^0, c^1, ..., c^K gives `((1 - K) c^0, c^1, ..., c^K)`. The states of a sequence,
after the final norm, are one vector of all its unmasked tokens.

As in the paper: the order, the merge, the measure. Differs: it ends when the cut's number of blocks is gone, for which
the last merge may take fewer, and the similarity can be left to the search.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from replaceme.activations.capture import model_inputs, trimmed
from replaceme.calibration.tokens import Tokens
from replaceme.config.cuts import CutConfig
from replaceme.core.errors import ReplaceMeError
from replaceme.core.places import Span
from replaceme.cuts.choose import removed_by
from replaceme.models.family import Family
from replaceme.models.model_record import Sizes
from replaceme.surgery.shortened_model import shortened
from replaceme.transforms.collapse import fit_collapse

if TYPE_CHECKING:
    import torch
    from torch import nn

STEPS = 100  # similarities that are tried where none is given: 0.99, 0.98 ... 0


@dataclass(frozen=True)
class Merged:
    """A block of a merged model: the original block that it replaces, the coefficients of that and of those after."""

    carrier: int
    coefficients: tuple[int, ...] = (1,)

    @property
    def span(self) -> Span:
        """Blocks [start, end) that are gone."""
        return self.carrier + 1, self.carrier + len(self.coefficients)


State = tuple[Merged, ...]
Measure = Callable[[State], float]


def merge(state: State, at: int, count: int) -> State:
    """Return the blocks of a state with the `count` after block `at` merged into it."""
    first, *others = state[at : at + count + 1]
    coefficients = [(1 - count) * one for one in first.coefficients]
    for other in others:
        coefficients += other.coefficients
    return (*state[:at], Merged(first.carrier, tuple(coefficients)), *state[at + count + 1 :])


def search(cut: CutConfig, num_blocks: int, blocks: int, measure: Measure, similarity: float) -> list[dict[str, Any]]:
    """Return every tried merge, in order, and whether it was `kept`; `output` is 1 - the similarity after it."""
    state: State = tuple(Merged(block) for block in range(num_blocks))
    tried: list[dict[str, Any]] = []
    at = num_blocks - cut.keep_last - cut.merge_blocks
    while at >= cut.keep_first - 1 and len(state) > num_blocks - blocks:
        movable = len(state) - cut.keep_last - 1 - at  # blocks above that may go
        count = min(cut.merge_blocks - 1, movable, len(state) - (num_blocks - blocks))
        merged = merge(state, at, count)
        found = measure(merged)
        kept = found > similarity
        start, end = merged[at].span
        entry = {"start": start, "end": end, "output": 1 - found, "kept": kept}
        tried.append({**entry, "coefficients": list(merged[at].coefficients)})
        if kept:
            state = merged
            at = min(at - cut.interval, len(state) - cut.keep_last - cut.merge_blocks)
        else:
            at -= 1
    return tried


def merging_candidates(
    cut: CutConfig, record: Sizes, blocks: int, model: "nn.Module", family: Family, tokens: Tokens, batch: int
) -> list[dict[str, Any]]:
    """Return the merges that a cut section tries on a model, in batches of `batch` sequences; `kept` marks the accepted
    ones.

    Raises ReplaceMeError where fewer than `blocks` blocks go.
    """
    output = Output(model, family, tokens, batch)
    given = [cut.similarity] if cut.similarity is not None else [step / STEPS for step in range(STEPS - 1, -1, -1)]
    most = 0
    for similarity in given:
        tried = search(cut, record.num_blocks, blocks, output, similarity)
        if removed_by(tried) == blocks:
            return tried
        most = max(most, removed_by(tried))
    raise ReplaceMeError(
        f"cut: merging removes {most} of {blocks} blocks above similarity {given[-1]:g}; lower `similarity`, "
        "`merge_blocks`, `interval` or `blocks`"
    )


class Output:
    """The mean cosine similarity of a merged model's last states to the original's, measured once for each merge."""

    def __init__(self, model: "nn.Module", family: Family, tokens: Tokens, batch_size: int) -> None:
        self.model, self.family = model.base_model, family
        self.batches = [trimmed(batch) for batch in tokens.batches(batch_size)]
        self.known: dict[State, float] = {}

    def __call__(self, state: State) -> float:
        if state not in self.known:
            self.known[state] = self._measured(state)
        return self.known[state]

    @cached_property
    def _original(self) -> "list[torch.Tensor]":
        return self._states()

    def _measured(self, state: State) -> float:
        import torch

        original = self._original
        changed = [one for one in state if len(one.coefficients) > 1]
        size = self.model.config.get_text_config().hidden_size
        transforms = [fit_collapse(size, one.coefficients) for one in changed]
        with shortened(self.model, self.family, [one.span for one in changed], transforms):
            states = self._states()
        pairs = zip(original, states, strict=True)
        found = [torch.cosine_similarity(one.double(), other.double(), dim=0) for one, other in pairs]
        return float(torch.stack(found).mean())

    def _states(self) -> "list[torch.Tensor]":
        """Return the last states of each sequence, [unmasked tokens * hidden], on the CPU."""
        import torch

        found = []
        for batch in self.batches:
            with torch.inference_mode():
                states = self.model(**model_inputs(self.model, batch)).last_hidden_state
            for one, mask in zip(states.cpu(), batch.mask, strict=True):
                found.append(one[mask].flatten())
        if not all(bool(one.isfinite().all()) for one in found):
            raise ReplaceMeError("cut: NaN or infinity in the last states; set `dtype: float32`")
        return found
