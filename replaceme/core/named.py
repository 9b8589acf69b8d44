"""Import the functions that a registry names in full, when they are used."""

from importlib import import_module
from typing import Any


def import_named(name: str) -> Any:
    """Import the function of a full name, such as `replaceme.cuts.similarity.cka`.

    The code hash of what calls this counts all functions that are named in full in the registry that the caller names.
    """
    module, _, function = name.rpartition(".")
    return getattr(import_module(module), function)
