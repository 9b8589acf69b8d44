"""ReplaceMe: shorten transformer models without training (arXiv 2505.02819).

Importing the package loads no model library: `replaceme.prune` and the steps import what they need when called.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("replaceme")
except PackageNotFoundError:  # a source tree used in place, without installation
    __version__ = "0+unknown"

__all__ = ["prune"]


def __getattr__(name: str):
    if name == "prune":
        from replaceme.api import prune

        return prune
    raise AttributeError(f"module 'replaceme' has no attribute {name!r}")
