"""Run the calibration text through a model and gather the evidence that fits are made from: sums, rows, neurons."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from replaceme.config.fits import FitConfig
from replaceme.placements.placement import REMOVED

if TYPE_CHECKING:
    import torch
    from torch import nn

    from replaceme.activations.capture import Collector
    from replaceme.activations.recycled_neurons import Recycled
    from replaceme.activations.rows import Rows
    from replaceme.activations.statistics import Statistics
    from replaceme.calibration.tokens import Tokens
    from replaceme.models.family import Family
    from replaceme.transforms.resume import State
    from replaceme.transforms.ridge import Shards
    from replaceme.transforms.transform import Transform

FOLDS = 4  # parts of the calibration text, one left out at a time, by which `ridge: auto` is chosen


@dataclass(frozen=True)
class Evidence:
    """The data that a group is fitted from: its statistics, and for the fits that need them shards, rows and neurons.

    `state` is the state of an unfinished fit over the rows, `ratios` are ratios of magnitudes, `old_weight` is what the
    map comes in place of.
    """

    statistics: "Statistics | None" = None
    shards: "Shards | None" = None
    rows: "Rows | None" = None
    device: str = "cpu"
    recycled: "Recycled | None" = None
    state: "State | None" = None
    ratios: "torch.Tensor | None" = None
    old_weight: "torch.Tensor | None" = None


@dataclass(frozen=True)
class Passes:
    """Forward passes over the calibration text: a base model on its device, its family, tokens, sequences a batch.

    `stored` is the type of the checkpoint's weights, which that of the forward pass may differ from; `shards` the least
    number of parts by which `ridge: auto` is chosen; `state` that of an unfinished fit of a method that trains;
    `headed` the same model with its head, for a method that needs the loss. `folder` is the checkpoint's, for neurons
    of removed blocks.
    """

    model: "nn.Module"
    family: "Family"
    tokens: "Tokens"
    batch_size: int
    stored: str
    shards: int = 1
    state: "State | None" = None
    headed: "nn.Module | None" = None
    folder: str | Path | None = None

    @property
    def device(self) -> str:
        """Device of the model."""
        return str(next(self.model.parameters()).device)

    def evidence(
        self,
        config: FitConfig,
        groups: Sequence[tuple[int, int]],
        folder: Path,
        more: "Sequence[Collector]" = (),
    ) -> list[Evidence]:
        """Gather the evidence for the fits of the groups, from the model as it runs now, by one pass shared with
        `more`.

        Recycled neurons take a pass before it, or three. Rows, if any, stay in memory or go to a folder.
        """
        from replaceme.activations.gather import Gathered
        from replaceme.activations.row_collector import RowCollector
        from replaceme.activations.rows import keeping

        if config.unfitted:
            self.collect("distances", more)
            return [Evidence()] * len(groups)
        recycled = self._recycled(config, groups)
        if config.automatic:
            return [self._by_parts(config, group, one) for group, one in zip(groups, recycled, strict=True)]
        gathered = Gathered(groups, config.regression, recycled)
        shape = (self.tokens.count, config.fit_tokens, config.needs_state, config.regression)
        rows = [
            RowCollector(group, *shape, one) for group, one in zip(groups, recycled, strict=True) if config.needs_rows
        ]
        with ExitStack() as stack:
            for number, one in enumerate(rows):
                needed = one.bytes(self.model, self.family)
                one.parts = stack.enter_context(keeping(folder / str(number), needed))
            self.collect("gram", [*more, gathered, *rows])
        stored = [one.parts.rows for one in rows] or [None] * len(groups)
        found = zip(gathered.statistics(), stored, recycled, strict=True)
        return [Evidence(sums, None, kept, self.device, changed) for sums, kept, changed in found]

    def collect(self, name: str, collectors: "Sequence[Collector]") -> None:
        """Run the text through the model once, for some collectors, `name` being what a bar of progress says."""
        from replaceme.activations.capture import collect
        from replaceme.core.progress import progress

        if collectors:
            batches = progress(self.tokens.batches(self.batch_size), name, unit="batch")
            collect(self.model, self.family, batches, collectors)

    def _by_parts(self, config: FitConfig, group: tuple[int, int], recycled: "Recycled | None") -> Evidence:
        """Return statistics by parts of the text, for choosing a ridge."""
        from replaceme.activations.gather import gather_groups, shard_batches
        from replaceme.activations.statistics import Statistics
        from replaceme.transforms.ridge import Shards

        count = min(max(self.shards, FOLDS), len(self.tokens.batches(self.batch_size)))
        parts = []
        for shard in range(count):
            batches = shard_batches(self.tokens, self.batch_size, shard, count)
            parts += gather_groups(self.model, self.family, batches, [group], config.regression, [recycled])
        return Evidence(Statistics.sum(parts), Shards.of(parts), None, self.device, recycled)

    def _recycled(self, config: FitConfig, groups: Sequence[tuple[int, int]]) -> "list[Recycled | None]":
        import torch

        from replaceme.activations.gather import Gathered
        from replaceme.activations.recycled_neurons import activation_of, choose_neurons
        from replaceme.fitting.removed_blocks import choose_removed

        if config.recycle is None:
            return [None] * len(groups)
        gathered = Gathered(groups, config.regression.before)
        self.collect("neurons", [gathered])
        if config.recycle_from == REMOVED:
            return choose_removed(config.regression, groups, gathered.statistics(), self)
        activation = activation_of(self.model.config.to_dict())
        stored = getattr(torch, self.stored)
        sums = (one.to(self.device) for one in gathered.statistics())
        return [choose_neurons(one, config.recycle, activation, stored) for one in sums]

    def gains(
        self, config: FitConfig, groups: Sequence[tuple[int, int]], transforms: "Sequence[Transform]"
    ) -> "list[Transform]":
        """Return the transforms of the groups with the gains of the norms after them."""
        from replaceme.transforms.gains import Gains

        gains = Gains(groups, transforms, config.regression)
        self.collect("gain", [gains])
        return gains.transforms()

    def ratios(self, config: FitConfig, groups: Sequence[tuple[int, int]]) -> "list[torch.Tensor]":
        """Return the ratios of magnitudes of the stream after each group to before it, in the basis of the fit."""
        from replaceme.activations.magnitudes import Magnitudes
        from replaceme.transforms.registry import function_of

        named = config.structure.basis
        basis = None if named is None else function_of(named)(self.model.config.get_text_config().hidden_size)
        found = [Magnitudes(group, basis) for group in groups]
        self.collect("magnitudes", found)
        return [one.ratios() for one in found]
