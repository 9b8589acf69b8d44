"""Say whether this process can load a model as one with plain transformers would: it has not used transformers yet.

That it is not even imported says so. A fork of a process that has imported it, and nothing that would use it, is as
good, and is marked as such (`workflow.step_server`).
"""

import os
import sys

VARIABLE = "REPLACEME_AS_IMPORTED"  # of the environment: the number of the process that is marked


def mark() -> None:
    """Mark this process as one in which transformers is as it was imported."""
    os.environ[VARIABLE] = str(os.getpid())


def is_as_imported() -> bool:
    """Return whether transformers was imported here, and was not used when this process was marked."""
    return os.environ.get(VARIABLE) == str(os.getpid())


def is_fresh() -> bool:
    """Return whether this process can still be the one that loads a folder with plain transformers."""
    return "transformers" not in sys.modules or is_as_imported()
