"""Keep the Hugging Face libraries off the network while everything they need is local."""

import contextlib
import os
import sys
from collections.abc import Iterator
from types import ModuleType

from replaceme.core.terminal import is_terminal

TRUE = ("1", "ON", "YES", "TRUE")
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1"}


def set_environment(online: bool) -> None:
    """Keep the hub libraries from reporting usage, and unless `online` from trying the network at all.

    What the user has set stays. Their progress bars are for terminals, as ours are.
    """
    given = {"HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error"}
    if not is_terminal(sys.stderr):
        given |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    if not online:
        given |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    for name, value in given.items():
        os.environ.setdefault(name, value)
    for module, name in _flags():  # of libraries that are imported already
        if name in os.environ:
            setattr(module, name, os.environ[name].upper() in TRUE)


def _flags() -> list[tuple[ModuleType, str]]:
    """Return the constants that imported libraries have made of the variables that keep them offline."""
    modules = [sys.modules[name] for name in ("datasets.config", "huggingface_hub.constants") if name in sys.modules]
    names = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
    return [(module, name) for module in modules for name in names if hasattr(module, name)]


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """Forbid huggingface_hub and datasets any connection attempt inside the block, and restore the settings after it.

    The environment variables are read when the libraries are imported, so they are set before that; where the
    libraries are imported already, the constants that they made of the variables are set too.
    """
    saved = {name: os.environ.get(name) for name in ENVIRONMENT}
    os.environ.update(ENVIRONMENT)
    import datasets.config  # noqa: F401
    import huggingface_hub.constants  # noqa: F401

    flags = [(module, name, getattr(module, name)) for module, name in _flags()]
    for module, name, _ in flags:
        setattr(module, name, True)
    try:
        yield
    finally:
        for module, name, value in flags:
            setattr(module, name, value)
        for name, value in saved.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
