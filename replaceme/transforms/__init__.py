"""Fits of the linear map that replaces a run of blocks; a new structure of T is a function and a line in `FITS`."""

from collections.abc import Callable
from typing import Any

from replaceme.errors import ReplaceMeError
from replaceme.statistics import Statistics
from replaceme.transforms.adam import AdamOptions
from replaceme.transforms.affine import Gain, with_intercept
from replaceme.transforms.closed_form import fit_identity, fit_least_squares
from replaceme.transforms.cosine import fit_cosine
from replaceme.transforms.gradient import fit_gradient
from replaceme.transforms.magnitude import fit_hadamard_magnitude, fit_magnitude
from replaceme.transforms.objectives import Objective
from replaceme.transforms.resume import State
from replaceme.transforms.ridge import Shards, fit_auto_ridge
from replaceme.transforms.scaling import fit_hadamard, fit_scalar
from replaceme.transforms.sparse import fit_elastic_net
from replaceme.transforms.structured import fit_diagonal, fit_low_rank, fit_lower_triangular, fit_orthogonal
from replaceme.transforms.transform import Transform, joint_report, r_squared, residual

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


__all__ = [
    "FITS",
    "AdamOptions",
    "Gain",
    "Objective",
    "Shards",
    "State",
    "Transform",
    "fit",
    "fit_auto_ridge",
    "fit_cosine",
    "fit_diagonal",
    "fit_elastic_net",
    "fit_gradient",
    "fit_hadamard",
    "fit_hadamard_magnitude",
    "fit_identity",
    "fit_least_squares",
    "fit_low_rank",
    "fit_lower_triangular",
    "fit_magnitude",
    "fit_orthogonal",
    "fit_scalar",
    "joint_report",
    "r_squared",
    "residual",
    "with_intercept",
]
