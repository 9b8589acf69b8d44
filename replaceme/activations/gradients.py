"""Gradients of a model's loss that are the same bits on every run, on a GPU too.

torch's attention on a GPU adds the gradients of keys and values in whatever order its threads end. Its flash and
memory-efficient kernels do it in one order only while `use_deterministic_algorithms` is strict (with `warn_only` they
warn and do not), cuDNN's kernel never does. Strict all along would refuse models whose forward pass has an operation
that torch calls non-deterministic; so only the backward pass is.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch.utils.checkpoint import checkpoint

from replaceme.activations.hooks import running_instead
from replaceme.core.errors import ReplaceMeError, in_one_line

if TYPE_CHECKING:
    from torch import nn


@contextmanager
def repeatable() -> Iterator[None]:
    """Route forward passes within the block through kernels whose backward pass can give the same bits each time."""
    cudnn = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        with _determinism(strict=False):
            yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(cudnn)


def backward(loss: torch.Tensor, gradient: torch.Tensor | None = None) -> None:
    """Add the gradients of a loss, of a forward pass within `repeatable`, to those of its parameters.

    In place of a loss it takes any tensor, with the `gradient` of the loss with respect to it. Raises ReplaceMeError
    where torch has no deterministic way.
    """
    try:
        with _determinism(strict=True):
            loss.backward(gradient)
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        raise ReplaceMeError(
            f"gradients: not the same on every run of this GPU: {in_one_line(error)}; compute on `device: cpu`"
        ) from error


@contextmanager
def recomputing(blocks: "Iterable[nn.Module]") -> Iterator[None]:
    """Let blocks compute their activations again in the backward pass, within this context, instead of keeping them."""
    with ExitStack() as undone:
        for block in blocks:
            again = partial(checkpoint, block.forward, use_reentrant=False)
            undone.callback(running_instead(block, again))
        yield


@contextmanager
def _determinism(strict: bool) -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=not strict)
    torch.utils.deterministic.fill_uninitialized_memory = False  # a launch more for each tensor; nothing reads it
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = filled
