"""A transformers model some of whose layers are not those of its architecture; config.json says which.

`model_type` is that of the original architecture behind `replaceme_`, and names are those of modules:
- `replacements`: a block -> the options of a linear layer (`bias`), its submodule `replacement`, that its output goes
  through, in place of blocks that were removed;
- `factors`: a linear layer -> the rank of the two linear layers, one after the other, that are in its place;
- `sliced`: the width of the residual stream, less than `hidden_size`. Norms have no gains and divide by the root of
  `sum of squares / hidden_size`; what a block adds its parts to goes through a linear layer each, `attention_shortcut`
  and `mlp_shortcut`;
- `resized`: a linear layer -> its outputs and inputs, of attentions with fewer heads and MLPs with fewer channels;
- `without_attention`: blocks that are a norm and an MLP beside the residual stream, nothing else;
- `absent`: a module that a block lacks -> what is in its place: `identity`, or `zero`, which adds nothing, or
  `attention`, the same for a module that puts out a pair.
Everything else is the original architecture of transformers, untouched.

This file is all code that such a checkpoint needs, hence no import but torch and transformers. ReplaceMe writes an
exact copy of it beside the weights, and loads no other.
"""

from functools import cache
from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_MAPPING, PretrainedConfig

PREFIX = "replaceme_"


class ReplaceMeConfig(PretrainedConfig):
    """Makes the config of the original architecture, of a class that saves itself under the name with the prefix."""

    @classmethod
    def from_pretrained(cls, source: Any, **kwargs: Any) -> Any:
        config_dict, kwargs = cls.get_config_dict(source, **kwargs)
        return cls.from_dict(config_dict, **kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        original = config_dict["model_type"].removeprefix(PREFIX)
        return _config_class(original).from_dict({**config_dict, "model_type": original}, **kwargs)


@cache
def _config_class(original: str) -> type:
    def __init__(self: Any, **kwargs: Any) -> None:
        CONFIG_MAPPING[original].__init__(self, **kwargs)
        self.model_type = original  # tokenizers and lm-eval go by it

    entries = {"__init__": __init__, "__module__": __name__, "model_type": PREFIX + original}
    return type("ReplaceMeConfig", (CONFIG_MAPPING[original],), entries)


def _add_replacements(model: Any, replacements: dict[str, dict[str, Any]]) -> None:
    size = model.config.hidden_size
    for name, options in replacements.items():
        block = _module(model, name)
        block.replacement = nn.Linear(size, size, **options)
        block.register_forward_hook(_replace)


def _replace(block: nn.Module, inputs: Any, output: Any) -> Any:
    """Forward hook of a carrier: its output [samples, tokens, hidden] goes through the linear layer."""
    if isinstance(output, tuple):
        return block.replacement(output[0]), *output[1:]
    return block.replacement(output)


def _factorise(model: Any, factors: dict[str, int]) -> None:
    for name, rank in factors.items():
        parent, _, last = name.rpartition(".")
        layer = _module(model, name)
        first = nn.Linear(layer.in_features, rank, bias=False)
        second = nn.Linear(rank, layer.out_features, bias=layer.bias is not None)
        setattr(_module(model, parent), last, nn.Sequential(first, second))


class SlicedNorm(nn.Module):
    """`x / sqrt(sum of squares / size + eps)`, x [samples, tokens, width], in float32, in the type of x."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.size, self.eps = size, eps

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        exact = rows.float()
        return (exact * torch.rsqrt(exact.square().sum(-1, keepdim=True) / self.size + self.eps)).to(rows.dtype)


def _slice(model: Any, width: int) -> None:
    config, base = model.config, model.base_model
    norm = SlicedNorm(config.hidden_size, config.rms_norm_eps)
    base.set_input_embeddings(nn.Embedding(config.vocab_size, width))
    base.norm = norm
    for block in base.layers:
        for name in ("q_proj", "k_proj", "v_proj"):
            _resize(block.self_attn, name, inputs=width)
        for name in ("gate_proj", "up_proj"):
            _resize(block.mlp, name, inputs=width)
        _resize(block.self_attn, "o_proj", outputs=width)
        _resize(block.mlp, "down_proj", outputs=width)
        block.input_layernorm = block.post_attention_layernorm = norm
        block.attention_shortcut = nn.Linear(width, width, bias=False)
        block.mlp_shortcut = nn.Linear(width, width, bias=False)
        block.__class__ = _sliced_block(type(block))
    if model.get_output_embeddings() is not None:
        model.set_output_embeddings(nn.Linear(width, config.vocab_size, bias=False))


def _resize(module: nn.Module, name: str, inputs: int | None = None, outputs: int | None = None) -> None:
    layer = getattr(module, name)
    sizes = inputs or layer.in_features, outputs or layer.out_features
    setattr(module, name, nn.Linear(*sizes, bias=layer.bias is not None))


@cache
def _sliced_block(block: type) -> type:
    def forward(self: Any, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        attention, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)
        hidden_states = self.attention_shortcut(hidden_states) + attention
        return self.mlp_shortcut(hidden_states) + self.mlp(self.post_attention_layernorm(hidden_states))

    return type(block.__name__, (block,), {"forward": forward, "__module__": __name__})


def _resize_all(model: Any, sizes: dict[str, list[int]]) -> None:
    for name, (outputs, inputs) in sizes.items():
        parent, _, last = name.rpartition(".")
        _resize(_module(model, parent), last, inputs, outputs)


def _without_attention(model: Any, blocks: list[str]) -> None:
    for name in blocks:
        remove_attention(_module(model, name))


def remove_attention(block: nn.Module) -> None:
    """Let a block be `x + mlp(norm(x))`, with the norm that was before its MLP."""
    del block.self_attn, block.input_layernorm
    block.__class__ = _bare_block(type(block))


@cache
def _bare_block(block: type) -> type:
    def forward(self: Any, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))

    return type(block.__name__, (block,), {"forward": forward, "__module__": __name__})


class Nothing(nn.Module):
    """Puts out zeros like its input; an `attention` a pair of them and None."""

    def __init__(self, attention: bool) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        zeros = torch.zeros_like(hidden_states)
        return (zeros, None) if self.attention else zeros


def _leave_out(model: Any, absent: dict[str, str]) -> None:
    for name, kind in absent.items():
        parent, _, last = name.rpartition(".")
        setattr(_module(model, parent), last, nn.Identity() if kind == "identity" else Nothing(kind == "attention"))


CHANGES = {
    "replacements": _add_replacements,
    "factors": _factorise,
    "sliced": _slice,
    "resized": _resize_all,
    "without_attention": _without_attention,
    "absent": _leave_out,
}


def _module(model: Any, name: str) -> nn.Module:
    return model.base_model.get_submodule(name.removeprefix(f"{model.base_model_prefix}."))


@cache
def _changed(architecture: type, name: str, auto_class: str) -> type:
    """The architecture with the layers of the config, under a name by which transformers saves it as custom code."""

    def __init__(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        architecture.__init__(self, config, *args, **kwargs)
        for entry, change in CHANGES.items():
            if getattr(config, entry, None):
                change(self, getattr(config, entry))

    entries = {"__init__": __init__, "__module__": __name__, "_auto_class": auto_class}
    return type(name, (architecture,), entries)


class ReplaceMeModel:
    """What the auto classes need of a model class: makes the original architecture with the layers of the config."""

    auto_class, mapping = "AutoModel", MODEL_MAPPING

    @classmethod
    def _of(cls, config: Any) -> type:
        return _changed(cls.mapping[type(config).__base__], cls.__name__, cls.auto_class)

    @classmethod
    def from_pretrained(cls, source: Any, *args: Any, config: Any = None, **kwargs: Any) -> Any:
        config = ReplaceMeConfig.from_pretrained(source) if config is None else config
        return cls._of(config).from_pretrained(source, *args, config=config, **kwargs)

    @classmethod
    def _from_config(cls, config: Any, **kwargs: Any) -> Any:
        return cls._of(config)._from_config(config, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = None) -> None:
        """Nothing to do: the classes made here know theirs."""


class ReplaceMeForCausalLM(ReplaceMeModel):
    """The same with a language-modelling head."""

    auto_class, mapping = "AutoModelForCausalLM", MODEL_FOR_CAUSAL_LM_MAPPING
