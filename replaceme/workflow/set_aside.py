"""Rename damaged results to `*.damaged`, so that the next run of a workflow rebuilds them.

A workflow names its results folder in the environment of its jobs, which they inherit; by hand nothing is moved.
"""

import os
import shutil
from pathlib import Path

from replaceme.core.errors import DamagedError, ReplaceMeError
from replaceme.core.files import RESULTS_VARIABLE

DAMAGED = ".damaged"


def told(error: ReplaceMeError) -> str:
    """Return the message of an error, after renaming a damaged result of the workflow to `<name>.damaged`."""
    results = os.environ.get(RESULTS_VARIABLE)
    if not isinstance(error, DamagedError) or not results or not _lies_in(error.path, Path(results)):
        return str(error)
    aside = error.path.with_name(error.path.name + DAMAGED)
    try:
        if aside.is_dir():
            shutil.rmtree(aside)
        error.path.replace(aside)
    except FileNotFoundError:  # another job has seen it too
        pass
    except OSError:
        return str(error)
    return f"{error.found}; it is {aside} now: run again, and it is made anew"


def _lies_in(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())
