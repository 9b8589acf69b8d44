"""What the kernels' argument checks share, and where their Hopper path is looked up."""

import logging
from functools import cache
from importlib import import_module
from types import ModuleType

import torch

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def describe(tensor: torch.Tensor) -> str:
    """Dtype and shape, for an error message."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


@cache
def hopper_path(name: str) -> ModuleType | None:
    """`replaceme.kernels.<name>_hopper`, or None and a warning where its experimental language, Gluon, has changed."""
    try:
        return import_module(f"replaceme.kernels.{name}_hopper")
    except (ImportError, AttributeError) as error:
        logging.getLogger(__name__).warning("%s: the portable kernel serves; Hopper's needs Gluon: %s", name, error)
        return None


@cache
def dependent_launch(device: torch.device) -> dict[str, bool]:
    """Launch arguments of a kernel that waits for the one before it by itself: programmatic dependent launch (sm_90).

    Its programs may start while the kernel before it still runs; it must wait (`gdc_wait`) before it touches anything
    that others write or read. Elsewhere the kernel gets `PDL=False` and is launched as usual.
    """
    pdl = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 9
    return {"PDL": True, "launch_pdl": True} if pdl else {"PDL": False}
