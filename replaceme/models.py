"""The only place that knows architectures: where the blocks are, which module gives M, into which weights T folds.

A family is one entry of FAMILIES. Names are those of the checkpoint's tensors; the same paths, less the prefix of the
base model, find the modules of a loaded model. Block k is numbered 0 .. L-1.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from replaceme.errors import ReplaceMeError
from replaceme.separate import is_separate

if TYPE_CHECKING:
    from torch import nn

# config entries with one value per block: shortened with the blocks
PER_BLOCK_LISTS = ("layer_types", "no_rope_layers", "mlp_layer_types")


@dataclass(frozen=True)
class Family:
    """How one architecture names its parts.

    `mlp_output` is the module of a block whose output is M, what the MLP adds to the residual stream. `fold` is the
    linear weight [hidden, intermediate] that T multiplies, `gate` and `up` those of a gated MLP. `post_norm` is the
    weight of an RMS norm between the two, which scales by `gain_offset + weight`. `bias_switch` is the config entry
    that gives the MLP's linear layers biases, `biased` those layers. `derived_lists` says that transformers derives
    per-block lists from a pattern of block numbers when config.json does not spell them out.
    """

    blocks: str = "model.layers"
    mlp_output: str = "mlp"
    fold: str = "mlp.down_proj.weight"
    gate: str = "mlp.gate_proj.weight"
    up: str = "mlp.up_proj.weight"
    post_norm: str | None = None
    gain_offset: float = 0.0
    bias_switch: str | None = None
    biased: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    derived_lists: bool = False

    def block_of(self, tensor_name: str) -> int | None:
        """The number of the block to which a tensor belongs, or None."""
        match = re.match(rf"{re.escape(self.blocks)}\.(\d+)\.", tensor_name)
        return int(match.group(1)) if match else None

    def renamed(self, tensor_name: str, block: int) -> str:
        """The name of a block's tensor after the block has been given the number `block`."""
        rest = tensor_name.removeprefix(f"{self.blocks}.").split(".", 1)[1]
        return f"{self.blocks}.{block}.{rest}"

    def block_modules(self, base_model: "nn.Module") -> "nn.ModuleList":
        """The list of blocks of a loaded base model (AutoModel, without head)."""
        return base_model.get_submodule(self.blocks.removeprefix(f"{base_model.base_model_prefix}."))

    def down_projection(self, block: "nn.Module") -> "nn.Module":
        """The linear layer of a block whose output, a norm aside, is M."""
        return block.get_submodule(self.fold.rpartition(".")[0])

    def gate_projection(self, block: "nn.Module") -> "nn.Module":
        """A linear layer of a block that gets the MLP's input."""
        return block.get_submodule(self.gate.rpartition(".")[0])

    def mlp_module(self, block: "nn.Module") -> "nn.Module":
        """The module of a block whose output is M."""
        return block.get_submodule(self.mlp_output)


SEQUENTIAL = Family()
QWEN = Family(derived_lists=True)
SANDWICH = Family(
    mlp_output="post_feedforward_layernorm",
    post_norm="post_feedforward_layernorm.weight",
    gain_offset=1.0,
    derived_lists=True,
)
FAMILIES = {
    "llama": Family(bias_switch="mlp_bias"),
    "mistral": SEQUENTIAL,
    "qwen2": QWEN,
    "qwen3": QWEN,
    "gemma": SEQUENTIAL,
    "gemma2": SANDWICH,
    "gemma3_text": SANDWICH,
}


def family_of(config: dict[str, Any], where: str) -> Family:
    """The family of a config.json; raises ReplaceMeError for an unsupported `model_type`."""
    model_type = config["model_type"]
    if is_separate(config):
        raise ReplaceMeError(
            f"{where}: already shortened, with linear layers of their own (placement block); give the original model"
        )
    if model_type not in FAMILIES:
        raise ReplaceMeError(
            f"{where}: model_type {model_type!r} is not supported; supported: {', '.join(FAMILIES)}. "
            "A new family is an entry of FAMILIES in replaceme/models.py"
        )
    if "auto_map" in config:
        raise ReplaceMeError(f"{where}: the checkpoint wants to run its own code (auto_map); this is not allowed")
    if config.get("quantization_config"):
        raise ReplaceMeError(f"{where}: quantised weights cannot be folded; give the full-precision checkpoint")
    for key in ("num_hidden_layers", "hidden_size"):
        if not isinstance(config.get(key), int) or config[key] < 1:
            raise ReplaceMeError(f"{where}: config.json gives no usable `{key}` (found {config.get(key)!r})")
    return FAMILIES[model_type]


def check_fit(config: dict[str, Any], intercept: bool, placement: str, where: str) -> None:
    """Raise ReplaceMeError where a fit could not be written into a model's weights."""
    family = family_of(config, where)
    if not intercept or placement == "block":
        return
    if family.post_norm is not None:
        raise ReplaceMeError(f"{where}: its blocks normalise the MLP's output, which an intercept cannot pass; drop it")
    if family.bias_switch is None:
        switches = {model_type for model_type, one in FAMILIES.items() if one.bias_switch is not None}
        raise ReplaceMeError(
            f"{where}: model_type {config['model_type']!r} has no bias for an intercept to go into; drop it "
            f"(those that have: {', '.join(sorted(switches))})"
        )


def check_length(config: dict[str, Any], tokens: int, where: str) -> None:
    """Raise ReplaceMeError where sequences of `tokens` tokens are longer than the model's positions reach."""
    longest = config.get("max_position_embeddings")
    if longest is not None and tokens > longest:
        raise ReplaceMeError(f"{where}: sequences of {tokens} tokens, but the model takes {longest}; use shorter ones")


def pruned_config(config: dict[str, Any], groups: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """config.json after the blocks start .. end-1 of each group are gone: their number and every per-block list."""
    num_blocks = config["num_hidden_layers"]
    gone = {block for start, end in groups for block in range(start, end)}
    pruned = dict(config, num_hidden_layers=num_blocks - len(gone))
    for key in PER_BLOCK_LISTS:
        values = config.get(key)
        if values is None:
            continue
        if len(values) != num_blocks:
            raise ReplaceMeError(f"config.json: {key} has {len(values)} entries for {num_blocks} blocks")
        pruned[key] = [value for block, value in enumerate(values) if block not in gone]
    return pruned


def pick_device(device: str) -> str:
    """`cuda` or `cpu` for a configured device; auto takes the GPU when there is one."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise ReplaceMeError("device: cuda was asked for, but torch sees no GPU; use `device: auto`")
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def pick_dtype(dtype: str, device: str, config: dict[str, Any]) -> str:
    """The name of the torch type of a forward pass: the checkpoint's on a GPU, float32 on a CPU, unless configured."""
    if dtype != "auto":
        return dtype
    return stored_dtype(config) if device == "cuda" else "float32"


def stored_dtype(config: dict[str, Any]) -> str:
    """The name of the torch type of a checkpoint's weights."""
    return config.get("dtype") or config.get("torch_dtype") or "float32"
