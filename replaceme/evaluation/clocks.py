"""Clocks that time what a model computes: by the wall, or by the kernels that a GPU runs meanwhile.

On a GPU most of the time of a token is that of starting kernels, of small models above all. It depends on the host, and
is gone in programs that start all at once (CUDA graphs, as servers use); what is left is the time of the kernels.
"""

import time
import warnings
from collections.abc import Callable
from functools import partial

from replaceme.config.evaluations import KERNELS
from replaceme.core.errors import ReplaceMeError

Clock = Callable[[Callable[[], None]], float]


def clock(name: str, device: str) -> Clock:
    """Return a function that measures the seconds of a call on a device.

    Raises ReplaceMeError for kernels without a GPU; so does the function where the driver reports none.
    """
    if name != KERNELS:
        return _by_wall(device)
    if not device.startswith("cuda"):
        raise ReplaceMeError(f"speed.clock: {KERNELS} are those of a GPU, not of {device}; take `wall`")
    return partial(_by_kernels, device)


def _by_wall(device: str) -> Clock:
    import torch

    wait = partial(torch.cuda.synchronize, device) if device.startswith("cuda") else (lambda: None)

    def seconds(call: Callable[[], None]) -> float:
        wait()
        start = time.perf_counter()
        call()
        wait()
        return time.perf_counter() - start

    return seconds


def _by_kernels(device: str, call: Callable[[], None]) -> float:
    """Add up the seconds of all kernels and copies of a call, as the driver reports them."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize(device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that the next call will not see these events
        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            call()
            torch.cuda.synchronize(device)
    seconds = sum(one.self_device_time_total for one in seen.key_averages()) / 1e6
    if not seconds:
        raise ReplaceMeError("speed.clock: the driver reports no kernels (does another profiler run?); take `wall`")
    return seconds
