"""The structures of T and the function that fits each: a new one is a file beside this and a line in `FITS`.

Imported by name, so that an edit of one concerns the fits that use it alone (see `code_hash`).
"""

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from replaceme.core.errors import ReplaceMeError

if TYPE_CHECKING:
    from replaceme.activations.statistics import Statistics
    from replaceme.transforms.transform import Transform

FITS = {
    "full": "closed_form.fit_least_squares",
    "identity": "closed_form.fit_identity",
    "sparse": "sparse.fit_elastic_net",
    "diagonal": "structured.fit_diagonal",
    "orthogonal": "structured.fit_orthogonal",
    "low_rank": "structured.fit_low_rank",
    "lower_triangular": "structured.fit_lower_triangular",
    "scalar": "scaling.fit_scalar",
    "hadamard": "scaling.fit_hadamard",
    "magnitude": "magnitude.fit_magnitude",
    "hadamard_magnitude": "magnitude.fit_hadamard_magnitude",
}


def fit(statistics: "Statistics", transform: str = "full", **options: Any) -> "Transform":
    """Fit a T of a structure, one of `FITS`; options are those of its function.

    Raises ReplaceMeError for an unknown structure.
    """
    if transform not in FITS:
        raise ReplaceMeError(f"unknown transform {transform!r}; choose one of {', '.join(FITS)}")
    function: Callable[..., Transform] = getattr(import_module(module_of(transform)), FITS[transform].partition(".")[2])
    return function(statistics, **options)


def module_of(transform: str) -> str:
    """Return the full name of the module that fits a structure."""
    return f"{__package__}.{FITS[transform].partition('.')[0]}"
