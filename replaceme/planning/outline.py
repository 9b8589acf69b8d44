"""Outline a model by its headers, or by the Hub's answers, before anything is loaded or downloaded."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from replaceme.models.checkpoints import Checkpoint, local_folder, open_checkpoint
from replaceme.models.model_config import family_of, stored_dtype
from replaceme.models.packed_source import open_packed
from replaceme.models.part_costs import PartCosts
from replaceme.models.probed import SECTION
from replaceme.models.sizes import ITEM_BYTES


@dataclass(frozen=True)
class Outline:
    """A model's config.json and numbers of parameters; `file_bytes` is the size of its weights on disk."""

    source: str
    config: dict[str, Any]
    num_blocks: int
    hidden_size: int
    parameters: int
    block_parameters: list[int]
    file_bytes: int

    @property
    def costs(self) -> PartCosts:
        """Costs in units that no header tells, as if all lay in equal blocks."""
        return PartCosts("", self.num_blocks, [1.0] * self.num_blocks)

    def bytes_in(self, dtype: str) -> int:
        """Return the bytes of its weights in a type of torch, or in FOUR_BITS."""
        return round(self.parameters * ITEM_BYTES.get(dtype, 4))

    def shortened_bytes(self, blocks: int) -> int:
        """Return the approximate bytes on disk that remain without `blocks` of its blocks."""
        share = blocks / self.num_blocks * sum(self.block_parameters) / self.parameters
        return round(self.file_bytes * (1 - share))


def outline_of(checkpoint: Checkpoint, source: str, file_bytes: int | None = None) -> Outline:
    """Return the outline of a local checkpoint, whose weights take `file_bytes` where they are not there yet."""
    return Outline(
        source,
        checkpoint.config,
        checkpoint.num_blocks,
        checkpoint.hidden_size,
        checkpoint.parameters,
        checkpoint.block_parameters(),
        checkpoint.file_bytes if file_bytes is None else file_bytes,
    )


def outline_at(source: str, dequantise: bool) -> Outline:
    """Return the outline of a local source; of a quantised one that of its plain weights, from headers.

    Errors as in `open_checkpoint` and `open_packed`.
    """
    folder = local_folder(source)
    if not dequantise:
        return outline_of(open_checkpoint(folder), source)
    view = open_packed(folder)
    return outline_of(view.checkpoint, source, sum(view.sizes.values()))


def estimated_outline(
    source: str, config: dict[str, Any], file_bytes: int | None = None, parameters: int | None = None
) -> Outline:
    """Return the outline of a model from config.json alone, and perhaps its number of parameters or its size.

    All parameters but those of the embeddings are taken to lie in equal blocks; where nothing tells how many they are,
    a block has the usual shape. Raises ReplaceMeError for a config that no family fits.
    """
    family = family_of(config, source)
    sizes = family.sizes(config)
    depth, width = sizes[family.depth], sizes[family.width]
    item_bytes = ITEM_BYTES.get(stored_dtype(config), 4)
    embeddings = (1 if family.ties_head(config) else 2) * vocabulary(config) * width
    if parameters is None:
        parameters = file_bytes // item_bytes if file_bytes else depth * _usual_block(sizes, width) + embeddings
    blocks = [max(0, parameters - embeddings) // depth] * depth
    stored = round(parameters * item_bytes) if file_bytes is None else file_bytes
    return Outline(source, config, depth, width, parameters, blocks, stored)


def _usual_block(sizes: Mapping[str, Any], width: int) -> int:
    """Return the parameters of four matrices of attention and three of the MLP, those of every expert."""
    experts = next((sizes[key] for key in ("num_local_experts", "num_experts") if sizes.get(key)), 1)
    inner = sizes.get("moe_intermediate_size") if experts > 1 else None
    return 4 * width**2 + 3 * width * experts * (inner or sizes.get("intermediate_size") or 4 * width)


def vocabulary(config: Mapping[str, Any]) -> int:
    """Return the number of tokens that a model knows; 0 for a model without."""
    return int(config.get("vocab_size") or (config.get(SECTION) or {}).get("vocab_size", 0))
