"""Add an intercept to a linear map, and the gain of a norm that follows it."""

from dataclasses import replace

import torch

from replaceme.activations.statistics import Statistics
from replaceme.core.errors import ReplaceMeError
from replaceme.kernels.row_cosine import row_cosine
from replaceme.transforms.transform import Transform


def with_intercept(transform: Transform, statistics: Statistics) -> Transform:
    """Return the affine map `m T + b`, `b = (sum w r - (sum w m) T) / W` [hidden], of a T fitted on centred statistics.

    For least squares without a ridge that is the best affine map. `statistics` are those before centring; `residual` of
    the report is that of the affine map, `residual_centred` the share that is missed of the target's variance.
    """
    total = statistics.total_weight
    intercept = (statistics.sum_target - statistics.sum_mlp_output @ transform.matrix) / total
    centred = float(statistics.centred().target_energy)
    missed = transform.report["residual"] * centred / float(statistics.target_energy)
    report = {**transform.report, "residual": missed, "residual_centred": transform.report["residual"]}
    return replace(transform, intercept=intercept, report={**report, "intercept_norm": float(intercept.norm())})


class Gain:
    """The gain s of the norm after a transform, in closed form, from rows given in blocks: `argmin_s sum |r - s n|^2`.

    p = m T, `n = p / rms(p)`, |n|^2 = hidden, so `s = mean(r . p / |p|) / sqrt(hidden)`.
    """

    def __init__(self, transform: Transform) -> None:
        self._given = transform
        self._dot_sum, self._energy, self._count = 0.0, 0.0, 0

    def add(self, m: torch.Tensor, r: torch.Tensor) -> None:
        """Add rows m [tokens, width] and targets r [tokens, hidden]."""
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
