"""Keep the Hugging Face libraries off the network while everything they need is local."""

import contextlib
import os
from collections.abc import Iterator

ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1"}


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """Forbid huggingface_hub and datasets any connection attempt inside the block, and restore the settings after it.

    The environment variables are read when the libraries are imported, so they are set before that; where the
    libraries are imported already, the constants that they made of the variables are set too.
    """
    saved = {name: os.environ.get(name) for name in ENVIRONMENT}
    os.environ.update(ENVIRONMENT)
    import datasets.config
    import huggingface_hub.constants

    flags = [
        (module, name, getattr(module, name))
        for module in (datasets.config, huggingface_hub.constants)
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
        if hasattr(module, name)
    ]
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
