"""Fits of the linear map that replaces a run of blocks; a new structure of T is a function and a line in `FITS`."""

from collections.abc import Callable
from typing import Any

from replaceme.errors import ReplaceMeError
from replaceme.statistics import Statistics
from replaceme.transforms.closed_form import fit_identity, fit_least_squares
from replaceme.transforms.magnitude import fit_hadamard_magnitude, fit_magnitude
from replaceme.transforms.scaling import fit_hadamard, fit_scalar
from replaceme.transforms.sparse import fit_elastic_net
from replaceme.transforms.structured import fit_diagonal, fit_low_rank, fit_lower_triangular, fit_orthogonal
from replaceme.transforms.transform import Transform

FITS: dict[str, Callable[..., Transform]] = {
    "full": fit_least_squares,
    "identity": fit_identity,
    "sparse": fit_elastic_net,
    "diagonal": fit_diagonal,
    "orthogonal": fit_orthogonal,
    "low_rank": fit_low_rank,
    "lower_triangular": fit_lower_triangular,
    "scalar": fit_scalar,
    "hadamard": fit_hadamard,
    "magnitude": fit_magnitude,
    "hadamard_magnitude": fit_hadamard_magnitude,
}


def fit(statistics: Statistics, transform: str = "full", **options: Any) -> Transform:
    """Fit a T of a structure, one of `FITS`; options are those of its function.

    Raises ReplaceMeError for an unknown structure.
    """
    if transform not in FITS:
        raise ReplaceMeError(f"unknown transform {transform!r}; choose one of {', '.join(FITS)}")
    return FITS[transform](statistics, **options)
