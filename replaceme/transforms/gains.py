"""Gains of transforms after which a norm follows, from captured batches."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from replaceme.activations.capture import Activations
from replaceme.activations.targets import unmasked_rows_of, wanted_by
from replaceme.config.placement import MLP, Regression
from replaceme.core.errors import ReplaceMeError
from replaceme.kernels.row_cosine import row_cosine
from replaceme.transforms.transform import Transform


class Gain:
    """The gain s of the norm after a transform, in closed form, from rows given in blocks: `argmin_s sum |r - s n|^2`.

    p = m T, `n = p / rms(p)`, |n|^2 = hidden, so `s = mean(r . p / |p|) / sqrt(hidden)`.
    """

    def __init__(self, transform: Transform) -> None:
        self._given = transform
        self._dot_sum, self._energy, self._count = 0.0, 0.0, 0

    def add(self, m: torch.Tensor, r: torch.Tensor) -> None:
        """Take in rows m [tokens, width] and targets r [tokens, hidden]."""
        dot, norm_p, norm_r = row_cosine(m, self._given.matrix.to(m.device, torch.float32), (r,))
        dot, norm_p, norm_r = dot.double(), norm_p.double(), norm_r.double()
        self._dot_sum += float((dot / norm_p).where(norm_p > 0, 0.0).sum())
        self._energy += float(norm_r.square().sum())
        self._count += int((norm_p > 0).sum())  # a zero row puts out zeros, whatever the gain

    def transform(self) -> Transform:
        """Return the transform with its gain; `residual` of the report is that of `s n`, `residual_before_norm` of m T.

        Raises ReplaceMeError when the map points away from the target (s not positive) or there were no rows.
        """
        if not self._count or not self._dot_sum > 0:
            raise ReplaceMeError(
                f"the transform does not point towards its target (over {self._count} tokens): no gain for it"
            )
        hidden = self._given.matrix.shape[1]
        gain = self._dot_sum / self._count / hidden**0.5
        residual = max(0.0, 1 - gain**2 * self._count * hidden / self._energy)
        report = self._given.report
        joined = {**report, "gain": gain, "residual": residual, "residual_before_norm": report["residual"]}
        return replace(self._given, gain=gain, report=joined)


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
