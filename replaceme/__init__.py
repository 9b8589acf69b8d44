"""ReplaceMe: shorten transformer models without training (arXiv 2505.02819).

Importing the package loads no model library: `replaceme.prune`, `replaceme.heal` and the steps import what they need
when called.
"""

import os

from replaceme.core.errors import ReplaceMeError

# cuBLAS gives the same bits on every run then; it reads this when a process first uses it
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

__all__ = ["ReplaceMeError", "heal", "prune"]


def __getattr__(name: str):
    if name in __all__:
        from replaceme import api

        return getattr(api, name)
    if name == "__version__":  # here, as to import what finds it takes longer than the rest of `replaceme --help`
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("replaceme")
        except PackageNotFoundError:  # a source tree used in place, without installation
            return "0+unknown"
    raise AttributeError(f"module 'replaceme' has no attribute {name!r}")
