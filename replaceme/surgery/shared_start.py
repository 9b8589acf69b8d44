"""Models that differ from some block on run what they have in common once a batch.

The shared one runs whole, and the state before every block is kept. Each of the others begins at its first block that
differs, with the state there: the blocks before it pass their input on. That gives the same bits as long as nothing but
the residual stream goes from one block to another, which `begins_anywhere` tries on a few tokens.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch

from replaceme.activations.beginning import beginning_at
from replaceme.activations.capture import trimmed
from replaceme.activations.divergence import Predictions, log_probabilities
from replaceme.calibration.tokens import Tokens
from replaceme.core.places import Span
from replaceme.models.family import Family
from replaceme.surgery.shortened_model import shortened

if TYPE_CHECKING:
    from torch import nn

    from replaceme.activations.comparison import Predict
    from replaceme.transforms.transform import Transform

log = logging.getLogger(__name__)
TRIAL = 16  # tokens


class SharedStart:
    """A model with its head, without what the groups in `gone` remove, and others that are the same up to a block.

    It keeps the states of one batch at a time.
    """

    def __init__(self, model: "nn.Module", family: Family, gone: Sequence[Span] = ()) -> None:
        self.model, self.family, self.gone = model, family, gone
        self.blocks = family.block_modules(model.base_model)
        self.batch: Tokens | None = None
        self.states: list[torch.Tensor | None] = []  # before each block

    def run(self, batch: Tokens) -> Predictions:
        """Run what is shared on a trimmed batch."""
        self.batch, self.states = batch, []
        with ExitStack() as hooks:
            hooks.enter_context(shortened(self.model.base_model, self.family, self.gone, [None] * len(self.gone)))
            for block in self.blocks:
                hooks.callback(block.register_forward_pre_hook(self._keep).remove)
            return Predictions.of(self.model, batch)

    def log_probabilities(self, batch: Tokens) -> torch.Tensor:
        """Return those of the shared model for what follows each unmasked token, [tokens, vocabulary] float32."""
        return self.run(batch).log_probabilities()

    def predicting(self, groups: Sequence[Span], transforms: "Sequence[Transform | None]", first: int) -> "Predict":
        """Return what `shortened_model.predicting` does for a model that differs from block `first` on, `gone` being
        among its groups; from block 0 on nothing is shared.
        """

        def predict(batch: Tokens) -> torch.Tensor:
            with self.shortened(groups, transforms, first, batch):
                return log_probabilities(self.model, batch)

        return predict

    @contextmanager
    def shortened(
        self, groups: Sequence[Span], transforms: "Sequence[Transform | None]", first: int, batch: Tokens
    ) -> Iterator[None]:
        """Run within it as `shortened_model.shortened`, for a trimmed batch alone; arguments as for `predicting`."""
        if first and batch is not self.batch:
            self.run(batch)
        with (
            self.beginning_at(first) if first else nullcontext(),
            shortened(self.model.base_model, self.family, groups, transforms),
        ):
            yield

    @contextmanager
    def beginning_at(self, first: int) -> Iterator[None]:
        """Within it the model begins with block `first` on the state of the batch."""
        with beginning_at(self.blocks, self.family, first, self.states[first].clone()):  # a block may change it
            yield

    def _keep(self, block: "nn.Module", inputs: tuple[Any, ...]) -> None:
        self.states.append(inputs[0].clone() if inputs else None)


def begins_anywhere(model: "nn.Module", family: Family, tokens: Tokens, firsts: Iterable[int]) -> bool:
    """Return whether a model computes the same bits for the begin of a text where it begins at any of these blocks."""
    if family.handed:  # beside the residual stream
        return False
    shared = SharedStart(model, family)
    batch = trimmed(tokens[:1]).begun(TRIAL)
    with torch.inference_mode():
        expected = shared.run(batch).states
        for first in sorted(set(firsts)):
            if shared.states[first] is None or not _same(shared, first, batch, expected):
                log.info("more than its input reaches block %d, so every candidate runs from the first block", first)
                return False
    return True


def _same(shared: SharedStart, first: int, batch: Tokens, expected: torch.Tensor) -> bool:
    with shared.beginning_at(first):
        return torch.equal(Predictions.of(shared.model, batch).states, expected)
