"""The only place that knows architectures: where the blocks are, which module gives M, into which weights T folds.

A family is one entry of FAMILIES. Names are those of the checkpoint's tensors; the same paths, less the prefix of the
base model, find the modules of a loaded model. Block k is numbered 0 .. L-1.
"""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from replaceme.errors import ReplaceMeError

if TYPE_CHECKING:
    from torch import nn

# config entries with one value per block: shortened with the blocks
PER_BLOCK_LISTS = ("layer_types", "no_rope_layers", "mlp_layer_types")


@dataclass(frozen=True)
class Family:
    """How one architecture names its parts.

    `mlp_output` is the module of a block whose output is M, what the MLP adds to the residual stream. `fold` is the
    linear weight [hidden, intermediate] that T multiplies, or None where T cannot reach it, with the reason in
    `why_no_fold`. `derived_lists` says that transformers derives per-block lists from a pattern of block numbers when
    config.json does not spell them out.
    """

    blocks: str = "model.layers"
    mlp_output: str = "mlp"
    fold: str | None = "mlp.down_proj.weight"
    why_no_fold: str = ""
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

    def mlp_module(self, block: "nn.Module") -> "nn.Module":
        """The module of a block whose output is M."""
        return block.get_submodule(self.mlp_output)


SEQUENTIAL = Family()
QWEN = Family(derived_lists=True)
SANDWICH = Family(
    mlp_output="post_feedforward_layernorm",
    fold=None,
    why_no_fold="its blocks normalise the MLP's output (post_feedforward_layernorm), and T cannot pass a norm",
    derived_lists=True,
)
FAMILIES = {
    "llama": SEQUENTIAL,
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


def require_foldable(config: dict[str, Any], where: str) -> None:
    """Raise ReplaceMeError where a fitted T could not be folded into the weights."""
    family = family_of(config, where)
    if family.fold is None:
        raise ReplaceMeError(
            f"{where}: model_type {config['model_type']!r}: a fitted transform cannot be folded, because "
            f"{family.why_no_fold}; use `transform: identity` for this model"
        )


def check_length(config: dict[str, Any], tokens: int, where: str) -> None:
    """Raise ReplaceMeError where sequences of `tokens` tokens are longer than the model's positions reach."""
    longest = config.get("max_position_embeddings")
    if longest is not None and tokens > longest:
        raise ReplaceMeError(f"{where}: sequences of {tokens} tokens, but the model takes {longest}; use shorter ones")


def pruned_config(config: dict[str, Any], start: int, end: int) -> dict[str, Any]:
    """config.json after blocks start .. end-1 are gone: `num_hidden_layers` and every per-block list."""
    num_blocks = config["num_hidden_layers"]
    pruned = dict(config, num_hidden_layers=num_blocks - (end - start))
    for key in PER_BLOCK_LISTS:
        values = config.get(key)
        if values is None:
            continue
        if len(values) != num_blocks:
            raise ReplaceMeError(f"config.json: {key} has {len(values)} entries for {num_blocks} blocks")
        pruned[key] = values[:start] + values[end:]
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
    stored = config.get("dtype") or config.get("torch_dtype") or "float32"
    return stored if device == "cuda" else "float32"
