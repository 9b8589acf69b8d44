"""Gains of transforms after which a norm follows, from captured batches."""

from collections.abc import Sequence

from replaceme.activations.capture import Activations
from replaceme.activations.targets import unmasked_rows_of, wanted_by
from replaceme.config.placement import MLP, Regression
from replaceme.transforms.affine import Gain
from replaceme.transforms.transform import Transform


class Gains:
    """The gains of transforms of runs [start, end) after which a norm follows (see `Gain`), batch by batch."""

    def __init__(
        self, groups: Sequence[tuple[int, int]], transforms: Sequence[Transform], regression: Regression = MLP
    ) -> None:
        self.groups, self.given, self.regression = groups, transforms, regression
        self.wanted = wanted_by(regression, groups)
        self._gains = [Gain(one) for one in transforms]

    def add(self, activations: Activations) -> None:
        """Add the rows of a batch."""
        for gain, group, one in zip(self._gains, self.groups, self.given, strict=True):
            gain.add(*unmasked_rows_of(self.regression, activations, *group, one.recycled))

    def transforms(self) -> list[Transform]:
        """Return the transforms with their gains; raises ReplaceMeError where there is none."""
        return [gain.transform() for gain in self._gains]
