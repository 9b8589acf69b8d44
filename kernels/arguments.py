"""Argument checks that all kernels share, and the look-up of their Hopper path."""

import logging
from collections.abc import Callable
from functools import cache
from types import ModuleType

import torch

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def describe(tensor: torch.Tensor) -> str:
    """Describe dtype and shape, for an error message."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


@cache
def hopper_path(load: Callable[[], ModuleType]) -> ModuleType | None:
    """Return the module that `load` imports, or None and a warning where its experimental language, Gluon, has
    changed.
    """
    try:
        return load()
    except (ImportError, AttributeError) as error:
        text = "%s: the portable kernel serves; Hopper's needs Gluon: %s"
        logging.getLogger(__name__).warning(text, load.__module__, error)
        return None


@cache
def dependent_launch(device: torch.device) -> dict[str, bool]:
    """Return the launch arguments of a kernel that waits for its predecessor by itself (programmatic dependent launch,
    sm_90).

    Its programs may start while the kernel before it still runs; it must wait (`gdc_wait`) before it touches anything
    that others write or read. Elsewhere the kernel gets `PDL=False` and is launched as usual.
    """
    pdl = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 9
    return {"PDL": True, "launch_pdl": True} if pdl else {"PDL": False}
