"""Repairs of the size of the residual stream by ratios of magnitudes, as published; nothing is minimised.

Their least-squares relatives are in `scaling`.
"""

import torch

from replaceme.activations.statistics import Statistics
from replaceme.core.errors import ReplaceMeError
from replaceme.transforms.scaling import hadamard
from replaceme.transforms.solve import check, reported
from replaceme.transforms.transform import Transform


def fit_magnitude(statistics: Statistics, ratios: torch.Tensor | None = None) -> Transform:
    """Fit Prune&Comp (arXiv 2507.18212): `T = alpha I`, alpha the mean over channels of the ratios of magnitudes.

    `ratios` [hidden]: `magnitudes.magnitude_ratios`. The statistics, of placement block, only say how good it is. The
    report holds `scale` (alpha); raises ReplaceMeError for ratios that are missing, negative or not finite.
    """
    check(statistics)
    alpha = float(_checked(ratios).mean())
    eye = torch.eye(statistics.hidden_size, dtype=torch.float64, device=statistics.gram.device)
    return reported(statistics, alpha * eye, {"solver": "magnitude", "scale": alpha})


def fit_hadamard_magnitude(statistics: Statistics, ratios: torch.Tensor | None = None) -> Transform:
    """Fit LinearPatch (arXiv 2505.24680): `T = H diag(s) H^T`, H of `scaling.hadamard`, s the ratios in that basis.

    The report holds `smallest` and `largest`, the range of s; else as `fit_magnitude`.
    """
    check(statistics)
    ratios = _checked(ratios).to(statistics.gram.device)
    basis = hadamard(statistics.hidden_size).to(statistics.gram.device)
    report = {"solver": "hadamard_magnitude", "smallest": float(ratios.min()), "largest": float(ratios.max())}
    return reported(statistics, (basis * ratios) @ basis.T, report)


def _checked(ratios: torch.Tensor | None) -> torch.Tensor:
    if ratios is None or not bool((ratios.isfinite() & (ratios >= 0)).all()):
        raise ReplaceMeError("this fit needs the ratios of magnitudes, finite numbers of at least 0, from the text")
    return ratios
