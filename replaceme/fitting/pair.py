"""A model and the same one shortened by maps: the divergence of their predictions, and its gradient.

The whole model's predictions do not change while maps are trained, nor what the blocks before the first carrier put
out, with which the shortened one begins, unless the logits of a batch show that something else goes past them
(`unchanged`).
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from replaceme.activations.beginning import beginning_at
from replaceme.activations.divergence import Predictions, descend, divergences
from replaceme.activations.gradients import recomputing
from replaceme.activations.head import Head
from replaceme.core.places import Span, carrier_of
from replaceme.fitting.unchanged import Unchanged
from replaceme.surgery.shortened_model import shortened

if TYPE_CHECKING:
    from replaceme.fitting.passes import Passes
    from replaceme.transforms.transform import Transform

log = logging.getLogger(__name__)
Changed = Callable[[], AbstractContextManager[None]]
SAME = 1e-3  # of the largest logit, by which two ways to run a model may differ


class Pair:
    """The two models over a text, with the maps of the groups as `parameters` [width, hidden], float32.

    `recompute`: whether blocks of the shortened one compute their activations again in the backward pass. `changed`:
    a context in which the shortened one has other changes than its maps.
    """

    def __init__(
        self,
        passes: "Passes",
        groups: Sequence[Span],
        transforms: "Sequence[Transform]",
        recompute: bool = False,
        changed: Changed = nullcontext,
    ) -> None:
        self.passes, self.groups, self.transforms, self.recompute = passes, groups, transforms, recompute
        self.changed = changed
        self.head = Head(passes.headed)
        self.blocks = passes.family.block_modules(passes.model)
        self.first = carrier_of(min(start for start, _ in groups))
        shared = self.first and not passes.family.handed  # else the carrier needs more than its input
        self.unchanged = Unchanged(passes, self.head, self.blocks[self.first - 1] if shared else None)
        self.parameters = [
            one.matrix.to(next(self.blocks[carrier_of(start)].parameters()).device, torch.float32)
            .clone()
            .requires_grad_()
            for one, (start, _) in zip(transforms, groups, strict=True)
        ]

    @property
    def kept(self) -> bool:
        """True if what does not change is in memory."""
        return self.unchanged.kept

    def share(self, numbers: Sequence[int], batch_size: int) -> None:
        """Compute what does not change for the sequences of these numbers, once for all steps."""
        if self.unchanged.before is not None and not self._can_share(numbers[:batch_size]):
            log.info("kl: more than its input reaches the first carrier, so the shortened model runs from the start")
            self.unchanged.before = None
        self.unchanged.keep(numbers)

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
        batch = self.unchanged.batch(numbers)
        states, inputs = self.unchanged.of(numbers, batch)
        maps = [replace(one, matrix=p) for one, p in zip(self.transforms, self.parameters, strict=True)]
        with (
            self._beginning_with(inputs),
            recomputing(self.blocks[self.first :] if self.recompute else ()),
            self.changed(),
            shortened(self.passes.model, self.passes.family, self.groups, maps),
        ):
            yield Predictions(self.head, states), Predictions.of(self.head, batch)

    def _can_share(self, numbers: Sequence[int]) -> bool:
        """Return whether the whole model has the same logits if it begins with the first carrier."""
        batch, largest, differ = self.unchanged.batch(numbers), 0.0, 0.0
        plain, inputs = self.unchanged.of(numbers, batch)
        with torch.no_grad():
            with self._beginning_with(inputs):
                short = self.head.states(batch)
            for one, other in zip(plain.split(self.head.rows), short.split(self.head.rows), strict=True):
                expected = self.head.logits(one).float()
                largest = max(largest, float(expected.abs().max()))
                differ = max(differ, float((expected - self.head.logits(other).float()).abs().max()))
        return differ <= SAME * largest

    @contextmanager
    def _beginning_with(self, state: torch.Tensor | None) -> Iterator[None]:
        """Run the first carrier on a state, without the blocks before it; None: the model runs as it is."""
        with nullcontext() if state is None else beginning_at(self.blocks, self.passes.family, self.first, state):
            yield
