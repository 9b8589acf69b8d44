"""Find the functions that the config names for structures of T and for solvers over rows.

They are imported by name, so that an edit of one concerns the fits that use it alone (see `code_hash`).
"""

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from replaceme.config.transforms import STRUCTURES
from replaceme.core.errors import ReplaceMeError

if TYPE_CHECKING:
    from replaceme.activations.statistics import Statistics
    from replaceme.transforms.transform import Transform


def fit(statistics: "Statistics", transform: str = "full", **options: Any) -> "Transform":
    """Fit a T of a structure, one of STRUCTURES; options are those of its function.

    Raises ReplaceMeError for an unknown structure.
    """
    if transform not in STRUCTURES:
        raise ReplaceMeError(f"unknown transform {transform!r}; choose one of {', '.join(STRUCTURES)}")
    return function_of(STRUCTURES[transform].function)(statistics, **options)


def function_of(name: str) -> Callable[..., Any]:
    """Return the function of this room that is named `module.function`."""
    return getattr(import_module(module_of(name)), name.partition(".")[2])


def module_of(name: str) -> str:
    """Return the full name of the module of a function that is named so."""
    return f"{__package__}.{name.partition('.')[0]}"
