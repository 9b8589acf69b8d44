"""Free memory: of GPUs, and of the host, of which a batch system or a container may leave a process a part."""

import gc
import logging
import os
from collections.abc import Callable
from math import inf
from pathlib import Path
from typing import TypeVar

from replaceme.core.errors import in_one_line

T = TypeVar("T")
log = logging.getLogger(__name__)

# of control groups, version 2 and 1: the controller in /proc, folder, limit, what is used, prefix of what that is
GROUPS = (
    ("", "", "memory.max", "memory.current", ""),
    ("memory", "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
)


def use_large_pages() -> None:
    """Have torch put large tensors of the host on pages of 2 MB where Linux offers them: such memory is filled twice as
    fast. What the user has set stays. To be called before torch makes a tensor, of any size.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def free_memory(device: str, gpus: int = 1) -> int:
    """Return the free bytes of a device, of the first `gpus` ones, or of the host within the limit of a job."""
    if device != "cpu":
        import torch

        return sum(torch.cuda.mem_get_info(k)[0] for k in range(min(gpus, torch.cuda.device_count())))
    import psutil

    return min(psutil.virtual_memory().available, group_memory())


def release(device: str) -> None:
    """Free what models that are gone still hold: blocks refer to themselves, and torch keeps a GPU's memory."""
    gc.collect()
    if device != "cpu":
        import torch

        torch.cuda.empty_cache()


def is_full(error: Exception | str) -> bool:
    """Return whether an error, or its text, says that a GPU's memory is full: torch's, CUDA's and cuBLAS's say so."""
    return any(words in str(error) for words in ("out of memory", "ALLOC_FAILED"))


def unless_full(on_gpu: Callable[[], T], otherwise: Callable[[], T], what: str, instead: str) -> T:
    """Return what `on_gpu` makes where there was room; where something else has taken it since, what `otherwise` makes.

    A line of the log says so: `what` it is about, and what is done `instead`.
    """
    try:
        return on_gpu()
    except RuntimeError as error:
        if not is_full(error):
            raise
        reason = in_one_line(error)
    release("cuda")  # here, as the error refers to what was made
    log.warning("%s: the GPU had room, which something else has taken since (%s); %s", what, reason, instead)
    return otherwise()


def group_memory(own: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> float:
    """Return the bytes that the control groups of a job or a container leave this process; infinite without a limit."""
    rooms = [inf]
    for line in own.read_text().splitlines() if own.is_file() else []:
        _, controllers, path = line.split(":", 2)
        for controller, folder, *files in GROUPS:
            if controller in controllers.split(","):
                place = root / folder / path.lstrip("/")
                # a limit may be that of any group above; in a container the path may be one of outside
                rooms += [_room(one, *files) for one in (place, *place.parents) if one.is_relative_to(root / folder)]
    return min(rooms)


def _room(group: Path, limit: str, used: str, prefix: str) -> float:
    try:
        most, now = (int((group / name).read_text()) for name in (limit, used))
        parts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no such group here, or no limit: `max`
        return inf
    # pages of files that were read count as used, but make way
    return most - now + sum(int(parts[f"{prefix}{kind}_file"]) for kind in ("active", "inactive"))
