"""Open a model for forward passes: whole, or streamed where it does not fit."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from replaceme.activations.streaming import load_streamed, needed
from replaceme.core.errors import ReplaceMeError
from replaceme.core.memory import unless_full
from replaceme.models.checkpoints import Checkpoint, open_checkpoint
from replaceme.models.loading import WHOLE, Held, load_base_model, load_causal_model

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


def load_model(
    folder: str | Path, dtype: str, device: str, head: bool | None, held: Held = WHOLE
) -> "PreTrainedModel | nn.Module":
    """Load the model of a checkpoint folder with its head or without; errors as in `load_base_model`.

    Without its head it may be a streamed one, whose blocks get their weights in turn. `head` None: with its head, but
    where it is streamed.
    """
    load = partial(load_base_model if head is False else load_causal_model, folder, dtype, device, held)
    if held.streaming == "never":
        return load()
    checkpoint = open_checkpoint(folder)
    stream = partial(_streamed, checkpoint, dtype, device, head)
    if needed(checkpoint, dtype, held, device):
        return stream()
    return load() if device == "cpu" else unless_full(load, stream, str(folder), "streamed")


def _streamed(checkpoint: Checkpoint, dtype: str, device: str, head: bool | None) -> "nn.Module":
    """Return a streamed model; raises ReplaceMeError for one that cannot be, or that needs its head."""
    folder, family = checkpoint.folder, checkpoint.family
    if not family.predicts:
        raise ReplaceMeError(f"{folder}: encoders are not streamed; use `streaming: never`")
    if any((family.section, family.modules, family.closing_norm, family.spread, family.handed)):
        raise ReplaceMeError(f"{folder}: models of this type are not streamed; use `streaming: never`")
    if head:
        raise ReplaceMeError(
            f"{folder}: the loss of a model needs all of it, which cannot be streamed; use "
            "another metric or method, or `streaming: never`"
        )
    return load_streamed(checkpoint, dtype, device)
