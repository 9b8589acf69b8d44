"""A quantised checkpoint, or a GGUF file, seen as the plain tensors that it stands for."""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaceme.models.checkpoints import Checkpoint
from replaceme.models.config_defaults import TYPES
from replaceme.models.weights import item_bits

if TYPE_CHECKING:
    import torch

STORED_AS = {name: kind for kind, name in TYPES.items()}  # safetensors' name of a type of torch
USUAL = "bfloat16"  # where config.json names no type


@dataclass(frozen=True)
class PlainView:
    """A packed source as plain tensors: `checkpoint` lists them, although its folder does not hold them.

    description: of the format. dtype: of unpacked weights. config: config.json to be written. files: of the source,
    relative to `folder`. read: one plain tensor. write_beside: writes tokenizer and other companions to a folder.
    """

    folder: Path
    checkpoint: Checkpoint
    description: str
    dtype: str
    config: dict[str, Any]
    files: list[str]
    read: "Callable[[str], torch.Tensor]"
    write_beside: Callable[[Path], None]

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each plain tensor, in the order in which the source stores them."""
        held = sorted((self.checkpoint.tensors | self.checkpoint.unloaded).items(), key=lambda one: (one[1][0], one[0]))
        return {name: prod(shape) * item_bits(kind) // 8 for name, (_, shape, kind) in held}
