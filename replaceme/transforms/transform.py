"""A fitted linear map and how well it fits, both computed from statistics alone."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from replaceme.errors import ReplaceMeError
from replaceme.files import load_tensors, save_tensors
from replaceme.statistics import Statistics


@dataclass(frozen=True)
class Transform:
    """A map `matrix` float64 [hidden, hidden] in the row-vector convention, `M @ matrix ~ R`, and the fit's report.

    The report holds plain numbers and strings only (JSON without NaN).
    """

    matrix: torch.Tensor
    report: dict[str, Any] = field(default_factory=dict)

    def save(self, path: str | Path, metadata: dict[str, Any] | None = None) -> None:
        """Write a safetensors file (key "transform") atomically, with the report and JSON-able metadata."""
        save_tensors(path, {"transform": self.matrix}, {"report": self.report, "metadata": metadata or {}})

    @staticmethod
    def load(path: str | Path) -> tuple["Transform", dict[str, Any]]:
        """Read what `save` wrote, as (transform, metadata); raises ReplaceMeError on a wrong content."""
        tensors, stamp = load_tensors(path)
        if set(tensors) != {"transform"} or set(stamp) != {"report", "metadata"}:
            raise ReplaceMeError(f"{path}: holds {sorted(tensors)}, not a transform; delete it and run again")
        matrix = tensors["transform"]
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.dtype != torch.float64:
            raise ReplaceMeError(
                f"{path}: the transform is {matrix.dtype} {list(matrix.shape)}, expected a square torch.float64 matrix"
            )
        return Transform(matrix, stamp["report"]), stamp["metadata"]


def residual(statistics: Statistics, matrix: torch.Tensor) -> float:
    """Share of the target's energy that the map misses, `sum w |m T - r|^2 / sum w |r|^2`.

    Expanded, `(tr(T^T G T) - 2 tr(T^T C) + E) / E` with gram G, cross C and target_energy E, so no row is needed. The
    expansion cancels when the fit is near perfect or T is large: it is good to about 1e-16 of `|T|^2 |G| / E` (for
    least squares, 1e-8 of the residual up to condition numbers of 1e9 or so, 1e-6 at 1e12), and a negative result of
    that size is returned as 0. 1 for T = 0. Raises ReplaceMeError when E is not positive.
    """
    energy = float(statistics.target_energy)
    if not energy > 0:
        raise ReplaceMeError(f"the target has no energy ({energy:g} over {statistics.tokens} tokens): nothing to fit")
    matrix = matrix.to(statistics.gram)
    fitted = statistics.gram @ matrix - 2 * statistics.cross
    return max(0.0, 1.0 + float((matrix * fitted).sum()) / energy)


def r_squared(statistics: Statistics, matrix: torch.Tensor) -> float | None:
    """Coefficient of determination, `1 - sum w |m T - r|^2 / sum w |r - mean(r)|^2`; None for a constant target.

    The map has no intercept, so the value may be negative even for the best map.
    """
    energy = float(statistics.target_energy)
    spread = energy - float(statistics.sum_target.square().sum() / statistics.total_weight)
    if spread <= 1e-14 * energy:
        return None
    return 1.0 - residual(statistics, matrix) * energy / spread
