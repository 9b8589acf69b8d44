"""Fits of the linear map that replaces a run of blocks; a new fit is a function and a line in `FITS`."""

from collections.abc import Callable
from typing import Any

from replaceme.errors import ReplaceMeError
from replaceme.statistics import Statistics
from replaceme.transforms.closed_form import fit_identity, fit_least_squares
from replaceme.transforms.transform import Transform, r_squared, residual

FITS: dict[str, Callable[..., Transform]] = {
    "identity": fit_identity,
    "l2": fit_least_squares,
}


def fit(statistics: Statistics, objective: str = "l2", **options: Any) -> Transform:
    """Fit a transform by the name of its objective, one of `FITS`; options are those of its function.

    Raises ReplaceMeError for an unknown objective.
    """
    if objective not in FITS:
        raise ReplaceMeError(f"unknown objective {objective!r}; choose one of {', '.join(FITS)}")
    return FITS[objective](statistics, **options)


__all__ = ["FITS", "Transform", "fit", "fit_identity", "fit_least_squares", "r_squared", "residual"]
