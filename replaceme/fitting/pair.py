"""A model and the same one shortened by maps: the divergence of their predictions, and its gradient.

The blocks before the first carrier are the same in both, so both begin with what they put out (`carrier_inputs`),
unless the logits of a batch show that something else goes past them.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from replaceme.activations.capture import trimmed
from replaceme.activations.divergence import Predictions, descend, divergences
from replaceme.activations.gradients import recomputing
from replaceme.activations.head import Head
from replaceme.activations.hooks import skipped
from replaceme.activations.streaming import given
from replaceme.calibration.tokens import Tokens
from replaceme.fitting.carrier_inputs import CarrierInputs
from replaceme.surgery.shortened_model import shortened

if TYPE_CHECKING:
    from replaceme.fitting.fit_cut import Passes
    from replaceme.transforms.transform import Transform

log = logging.getLogger(__name__)
SAME = 1e-3  # of the largest logit, by which two ways to run a model may differ


class Pair:
    """The two models over a text, with the maps of the groups as `parameters` [width, hidden], float32.

    `recompute`: whether blocks of the shortened one compute their activations again in the backward pass.
    """

    def __init__(
        self,
        passes: "Passes",
        groups: Sequence[tuple[int, int]],
        transforms: "Sequence[Transform]",
        recompute: bool = False,
    ) -> None:
        self.passes, self.groups, self.transforms, self.recompute = passes, groups, transforms, recompute
        self.head = Head(passes.headed)
        self.blocks = passes.family.block_modules(passes.model)
        self.first = min(start for start, _ in groups) - 1  # carrier
        self.inputs = CarrierInputs(passes, self.first) if self.first else None
        self.parameters = [
            one.matrix.to(next(self.blocks[start - 1].parameters()).device, torch.float32).clone().requires_grad_()
            for one, (start, _) in zip(transforms, groups, strict=True)
        ]

    @property
    def kept(self) -> bool:
        """True if the first carrier's inputs are in memory."""
        return self.inputs is not None and self.inputs.kept

    def share(self, numbers: Sequence[int], batch_size: int) -> None:
        """Run the blocks before the first carrier over the sequences of these numbers, once for both models."""
        if self.inputs is None:
            return
        if not self._can_share(numbers[:batch_size]):
            log.info("kl: more than its input reaches the first carrier, so both models run from the start")
            self.inputs = None
            return
        self.inputs.keep(numbers)

    def divergence(self, numbers: Sequence[int]) -> torch.Tensor:
        """Return the KL divergence of each unmasked token of some sequences, [tokens] float32."""
        with torch.no_grad(), self._both(numbers) as (whole, short):
            return divergences(whole, short)

    def descend(self, numbers: Sequence[int]) -> torch.Tensor:
        """Return the same, and add the gradient of the mean to that of the parameters."""
        with self._both(numbers) as (whole, short):
            return descend(whole, short, 1 / len(short.states))

    @contextmanager
    def _both(self, numbers: Sequence[int]) -> Iterator[tuple[Predictions, Predictions]]:
        """Run both models; within the context gradients can be computed."""
        batch = self._batch(numbers)
        state = None if self.inputs is None else self.inputs.of(numbers, batch)
        maps = [replace(one, matrix=p) for one, p in zip(self.transforms, self.parameters, strict=True)]
        with self._beginning_with(state):
            with torch.no_grad():
                whole = Predictions.of(self.head, batch)
            with (
                recomputing(self.blocks[self.first :] if self.recompute else ()),
                shortened(self.passes.model, self.passes.family, self.groups, maps),
            ):
                yield whole, Predictions.of(self.head, batch)

    def _batch(self, numbers: Sequence[int]) -> Tokens:
        return trimmed(self.passes.tokens[torch.tensor(numbers)])

    def _can_share(self, numbers: Sequence[int]) -> bool:
        """Return whether the whole model has the same logits if it begins with the first carrier."""
        batch, largest, differ = self._batch(numbers), 0.0, 0.0
        with torch.no_grad():
            plain = self.head.states(batch)
            with self._beginning_with(self.inputs.of(numbers, batch)):
                short = self.head.states(batch)
            for one, other in zip(plain.split(self.head.rows), short.split(self.head.rows), strict=True):
                expected = self.head.logits(one).float()
                largest = max(largest, float(expected.abs().max()))
                differ = max(differ, float((expected - self.head.logits(other).float()).abs().max()))
        return differ <= SAME * largest

    @contextmanager
    def _beginning_with(self, state: torch.Tensor | None) -> Iterator[None]:
        """Run the first carrier on a state, without the blocks before it; None: as the model is."""
        carrier = self.blocks[self.first]
        with ExitStack() as stack:
            if state is not None:
                for block in self.blocks[: self.first]:
                    stack.callback(skipped(block, self.passes.family))
                stack.enter_context(given(carrier, state, str(next(carrier.parameters()).device)))
            yield
