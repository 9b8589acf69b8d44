"""The description of an architecture: where its blocks are, which module gives M, into which weights T folds.

Names are those of the checkpoint's tensors; the same paths, less the prefix of the base model, find the modules of a
loaded model. Block k is numbered 0 .. L-1.
"""

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from replaceme.core.places import HALF, Place, in_middle
from replaceme.models.attention import Attention
from replaceme.placements.placement import bias_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch
    from torch import nn


SECTION = "text_config"  # the entry of the language model in the config of a larger one
# config entries with one value per block: shortened with the blocks
PER_BLOCK_LISTS = ("layer_types", "no_rope_layers", "mlp_layer_types")


@dataclass(frozen=True)
class Family:
    """The names of one architecture's parts.

    `mlp_output` is the module of a block whose output is M, what the MLP adds to the residual stream; where M is a sum,
    or blocks are of several kinds, `further` are more such modules: the outputs of those that a block has add up. Of a
    block that is a mixer without an MLP, M is what the mixer adds. `fold` are the linear weights [hidden, intermediate]
    that T multiplies (with `*` for a number; those that a block has: one, or in a mixture that of every expert,
    separate or stacked), `transposed` where they are [intermediate, hidden], `turned` those of `fold` that alone are.
    `gate` and `up` are those of a gated MLP, the same name where they are one weight, above one another; `up` alone is
    that of an MLP without gates. `mlp_norm` is the weight of the norm that the MLP reads the residual stream through,
    `post_norm` that of an RMS norm between MLP and M; norms scale by `gain_offset + weight`. `attention_output` is the
    weight that writes the attention's output to the residual stream (a projection, or the norm after it), named where
    blocks read the stream through norms alone. `attention` are the parts of an attention that comes before the MLP, by
    which a cut can begin in the middle of a block.

    `scaled_by` is the config entry of a factor on M, `multiplier` its value, divided by the root of L where `rooted`,
    so that the entry changes with L; `scalar` the tensor of a block [1] by which it multiplies all that it puts out.
    `spread`: blocks keep several residual streams (hyper-connections), and M is added to each of them times a weight of
    token and stream, which is the output of this number of this module; a block's state and M then have an axis of
    streams. `in_place`: the block adds to the tensor that holds M. `tuples`: of how many values the tuple is that
    blocks put out, 0 where it is none. `handed`: the argument by which a block gets another of these values from the
    block before, and its number (indices that blocks of sparse attention share). `derived_lists`: transformers derives
    per-block lists from a pattern of block numbers when config.json does not spell them out; `lists` are their names.
    `kinds`: blocks are of several kinds, and every cut is tried on a small model. `depth`, `width`, `positions` name
    the config entries of L, of the hidden size and of the longest sequence. `refused`: (config entry, value, why not)
    of variants that no T can be folded into. `own_layers`: whether a checkpoint may have linear layers of its own
    (placement block), which makes its code a custom one, whose tensors outside the blocks transformers does not rename.
    `numbered` is the config entry of a switch that divides the attention scores of block k by k + 1, `query` the weight
    that makes queries, the first `width` of its outputs.

    `head` are the names that the language model's head has in checkpoints; `tied`: it has the embedding's weights where
    config.json does not say. `dense_first` is the config entry of how many blocks come before the first with experts.
    `rotatable`: RMS norms before attention and MLP, one after the other, and heads and channels as Llama has them, so
    that other methods may rotate the residual stream or take heads and channels out.

    `predicts`: it predicts the next token; encoders put out states. `closing_norm` is the module of a norm of the whole
    residual stream that a block ends with (BERT): there M is part of what goes into it; `closing_stored` is its name in
    checkpoints, where that is another. `padded_positions`: positions are numbered from behind the padding token's id
    (RoBERTa), so that sequences are so much shorter.

    Of encoders of images: `modality` is image; `section` the config entry under which the sizes lie, where a checkpoint
    holds a text model too; `spellings` other names of `blocks` in checkpoints, `modules` that of a loaded model, and
    `fold` has the module's name first. `scale` is the layer scale between MLP and M, `prefix` how many positions come
    before those of the patches.
    """

    blocks: str = "model.layers"
    mlp_output: str = "mlp"
    further: tuple[str, ...] = ()
    fold: tuple[str, ...] = ("mlp.down_proj.weight",)
    transposed: bool = False
    turned: tuple[str, ...] = ()
    gate: str | None = "mlp.gate_proj.weight"
    up: str | None = "mlp.up_proj.weight"
    mlp_norm: str | None = None
    post_norm: str | None = None
    gain_offset: float = 0.0
    attention_output: str | None = None
    attention: Attention | None = None
    scaled_by: str | None = None
    rooted: bool = False
    multiplier: float = 1.0
    scalar: str | None = None
    spread: tuple[str, int] | tuple[()] = ()
    in_place: bool = False
    tuples: int = 0
    handed: tuple[str, int] | tuple[()] = ()
    derived_lists: bool = False
    lists: tuple[str, ...] = PER_BLOCK_LISTS
    kinds: bool = False
    depth: str = "num_hidden_layers"
    width: str = "hidden_size"
    positions: str | None = "max_position_embeddings"
    refused: tuple[tuple[str, Any, str], ...] = ()
    own_layers: bool = True
    numbered: str | None = None
    query: str | None = None
    head: tuple[str, ...] = ("lm_head",)
    tied: bool = False
    dense_first: str | None = None
    rotatable: bool = False
    predicts: bool = True
    closing_norm: str | None = None
    closing_stored: str | None = None
    padded_positions: bool = False
    modality: str = "text"
    section: str | None = None
    spellings: tuple[str, ...] = ()
    modules: str | None = None
    scale: str | None = None
    prefix: int = 0
    any_size: bool = False

    @property
    def needed(self) -> tuple[str, ...]:
        """Config entries whose values must be known, explicit or as transformers' defaults."""
        if self.modality == "image":
            return (self.depth, self.width, "image_size", "patch_size")
        return tuple(
            filter(
                None,
                (
                    self.depth,
                    self.width,
                    "vocab_size",
                    self.positions,
                    self.dense_first,
                    self.rooted and self.scaled_by,
                ),
            )
        )

    def sizes(self, config: dict[str, Any]) -> dict[str, Any]:
        """Return the part of a config.json that describes the blocks."""
        return config.get(self.section) or {} if self.section else config

    def of(self, config: dict[str, Any]) -> "Family":
        """Return the family adjusted to a config.json."""
        depth = config.get(self.depth)
        root = depth**0.5 if self.rooted and isinstance(depth, int) and depth > 0 else 1.0
        attention = self.attention
        if attention is not None and attention.beside is not None and config.get(attention.beside):
            attention = None
        return replace(self, multiplier=float(config.get(self.scaled_by, 1.0)) / root, attention=attention)

    def carrying(self, start: Place) -> "Family":
        """Return the family for a map at a place: in the middle of a block its attention has the part of the MLP."""
        if not in_middle(start):
            return self
        one = self.attention
        own = {"mlp_output": one.output, "fold": (one.fold,), "post_norm": one.post_norm}
        return replace(self, **own, further=(), turned=(), gate=None, up=None, scale=None, scalar=None)

    def ties_head(self, config: dict[str, Any]) -> bool:
        """Return whether the head shares the embedding's weights, by config.json or else by the default of its
        class.
        """
        return bool(config.get("tie_word_embeddings", self.tied))

    def named_like(self, tensors: "Iterable[str]") -> "Family":
        """Return the family with the names of a checkpoint, since some were saved without the base model's prefix."""
        names = list(tensors)
        for blocks in (self.blocks, self.blocks.partition(".")[2], *self.spellings):
            if any(name.startswith(f"{blocks}.") for name in names):
                return replace(self, blocks=blocks)
        return self

    def block_of(self, tensor_name: str) -> int | None:
        """Return the number of the block to which a tensor belongs, or None."""
        match = re.match(rf"{re.escape(self.blocks)}\.(\d+)\.", tensor_name)
        return int(match.group(1)) if match else None

    def place_of(self, tensor_name: str) -> Place | None:
        """Return the place before the half of a block to which a tensor belongs, that of the block if it has no halves;
        None outside the blocks.
        """
        block = self.block_of(tensor_name)
        if block is None or self.attention is None:
            return block
        inside = tensor_name.removeprefix(f"{self.blocks}.{block}.")
        return block if self.attention.holds(inside) else block + HALF

    def renamed(self, tensor_name: str, block: int) -> str:
        """Return the name of a block's tensor after the block has been given the number `block`."""
        rest = tensor_name.removeprefix(f"{self.blocks}.").split(".", 1)[1]
        return f"{self.blocks}.{block}.{rest}"

    def changeable(self, tensors: "Iterable[str]", block: int) -> list[str]:
        """Return the tensors of a block that a transform may change, of a checkpoint's tensors."""
        beside = (self.gate, self.up, self.post_norm, self.scale)
        tensors = list(tensors)
        weights = [*self.folded(tensors, block), *(f"{self.blocks}.{block}.{name}" for name in beside if name)]
        names = [*weights, *map(bias_of, weights), *self.closing(tensors, block)]
        return [name for name in dict.fromkeys(names) if name in set(tensors)]

    def closing(self, tensors: "Iterable[str]", block: int) -> list[str]:
        """Return the tensors of the norm that ends a block, of a checkpoint's tensors; none where there is none."""
        if self.closing_norm is None:
            return []
        prefix = f"{self.blocks}.{block}.{self.closing_stored or self.closing_norm}."
        return sorted(name for name in tensors if name.startswith(prefix))

    def folded(self, tensors: "Iterable[str]", block: int) -> list[str]:
        """Return the weights of a block that T multiplies, of a checkpoint's tensors."""
        prefix = f"{self.blocks}.{block}."
        inside = (name for name in tensors if name.startswith(prefix))
        return sorted(name for name in inside if _matches(name.removeprefix(prefix), self.fold))

    def is_transposed(self, tensor_name: str) -> bool:
        """Return whether a weight that T multiplies is [..., intermediate, hidden]."""
        if not self.turned:
            return self.transposed
        return _matches(tensor_name.removeprefix(f"{self.blocks}.").partition(".")[2], self.turned)

    @property
    def mixture(self) -> bool:
        """True if MLPs may be mixtures of experts, where no single weight has M as its output."""
        return bool(self.further) or any("*" in name or ".experts." in name for name in self.fold)

    def block_modules(self, base_model: "nn.Module") -> "nn.ModuleList":
        """Return the list of blocks of a loaded base model (AutoModel, without head)."""
        return base_model.get_submodule(self.modules or self.blocks.removeprefix(f"{base_model.base_model_prefix}."))

    def down_projection(self, block: "nn.Module") -> "nn.Module":
        """Return the linear layer of a block whose output, a norm aside, is M; not for mixtures."""
        modules = dict(block.named_modules())
        return next(modules[name] for name in (one.rpartition(".")[0] for one in self.fold) if name in modules)

    def intermediate_size(self, block: "nn.Module") -> int:
        """Return the width of the input of a block's down projection."""
        layer = self.down_projection(block)
        # weights in 4 bits have another shape; GPT-2's layers do not say their width
        return getattr(layer, "in_features", None) or layer.weight.shape[0 if self.transposed else 1]

    def gate_projection(self, block: "nn.Module") -> "nn.Module":
        """Return a linear layer of a block whose input is the MLP's input."""
        return block.get_submodule((self.gate or self.up).rpartition(".")[0])

    def mlp_modules(self, block: "nn.Module") -> "list[nn.Module]":
        """Return the modules of a block whose outputs add up to M, when each is taken times `factor`."""
        if not self.further:
            return [block.get_submodule(self.mlp_output)]
        modules = dict(block.named_modules())
        return [modules[name] for name in (self.mlp_output, *self.further) if name in modules]

    def factor(self, block: "nn.Module") -> float:
        """Return the factor between what `mlp_modules` put out and M."""
        if self.scalar is None:
            return self.multiplier
        return self.multiplier * float({**dict(block.named_buffers()), **dict(block.named_parameters())}[self.scalar])

    def added(self, output: "torch.Tensor", factor: float) -> "torch.Tensor":
        """Return the part of M that an output of `mlp_modules` is."""
        if factor != 1.0:
            return output * factor
        return output.clone() if self.in_place else output


def _matches(name: str, patterns: "Iterable[str]") -> bool:
    """Return whether a name is one of the patterns, `*` for a number."""
    return any(re.fullmatch(re.escape(pattern).replace(r"\*", r"\d+"), name) for pattern in patterns)
