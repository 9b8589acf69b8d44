"""What is added to a linear map: an intercept, and the gain of a norm that follows it."""

from collections.abc import Iterable
from dataclasses import replace

import torch

from replaceme.errors import ReplaceMeError
from replaceme.kernels import row_cosine
from replaceme.statistics import Statistics
from replaceme.transforms.transform import Transform


def with_intercept(transform: Transform, statistics: Statistics) -> Transform:
    """The affine map `m T + b`, `b = (sum w r - (sum w m) T) / W` [hidden], of a T fitted on centred statistics.

    For least squares without a ridge that is the best affine map. `statistics` are those before centring; `residual` of
    the report is that of the affine map, `residual_centred` the share that is missed of the target's variance.
    """
    total = statistics.total_weight
    intercept = (statistics.sum_target - statistics.sum_mlp_output @ transform.matrix) / total
    centred = float(statistics.centred().target_energy)
    missed = transform.report["residual"] * centred / float(statistics.target_energy)
    report = {**transform.report, "residual": missed, "residual_centred": transform.report["residual"]}
    return replace(transform, intercept=intercept, report={**report, "intercept_norm": float(intercept.norm())})


def with_gain(transform: Transform, rows: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> Transform:
    """The transform with the gain s of the norm after it, in closed form: `argmin_s sum |r - s n|^2`, p = m T.

    With `n = p / rms(p)`, |n|^2 = hidden: `s = mean(r . p / |p|) / sqrt(hidden)`. `rows` are (m [tokens, width],
    r [tokens, hidden]) in blocks. `residual` of the report becomes that of `s n`, `residual_before_norm` that of m T.
    Raises ReplaceMeError when the map points away from the target (s not positive) or there are no rows.
    """
    dot_sum, energy, count = 0.0, 0.0, 0
    for m, r in rows:
        dot, norm_p, norm_r = row_cosine(m, transform.matrix.to(m.device, torch.float32), (r,))
        dot, norm_p, norm_r = dot.double(), norm_p.double(), norm_r.double()
        dot_sum += float((dot / norm_p).where(norm_p > 0, 0.0).sum())
        energy += float(norm_r.square().sum())
        count += int((norm_p > 0).sum())  # a zero row puts out zeros, whatever the gain
    if not count or not dot_sum > 0:
        raise ReplaceMeError(f"the transform does not point towards its target (over {count} tokens): no gain for it")
    hidden = transform.matrix.shape[1]
    gain = dot_sum / count / hidden**0.5
    residual = max(0.0, 1 - gain**2 * count * hidden / energy)
    report = {**transform.report, "gain": gain, "residual": residual}
    return replace(transform, gain=gain, report={**report, "residual_before_norm": transform.report["residual"]})
