"""A transformers model with linear layers after some of its blocks, in place of blocks that ReplaceMe removed.

config.json says which: `model_type` is that of the original architecture behind `replaceme_`, `replacements` maps the
name of a block to the options of the linear layer (`bias`) that its output goes through. That layer is the block's own
submodule `replacement`; everything else is the original architecture of transformers, untouched.

This file is all code that such a checkpoint needs, hence no import but torch and transformers. ReplaceMe writes an
exact copy of it beside the weights, and loads no other.
"""

from functools import cache
from typing import Any

from torch import nn
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_MAPPING, PreTrainedConfig

PREFIX = "replaceme_"


class ReplaceMeConfig(PreTrainedConfig):
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


def _replace(block: nn.Module, inputs: Any, output: Any) -> Any:
    """Forward hook of a carrier: its output [samples, tokens, hidden] goes through the linear layer."""
    if isinstance(output, tuple):
        return block.replacement(output[0]), *output[1:]
    return block.replacement(output)


@cache
def _with_replacements(architecture: type, name: str, auto_class: str) -> type:
    """The architecture with linear layers, under a name by which transformers saves it as custom code."""

    def __init__(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        architecture.__init__(self, config, *args, **kwargs)
        for path, options in config.replacements.items():
            block = self.base_model.get_submodule(path.removeprefix(f"{self.base_model_prefix}."))
            block.replacement = nn.Linear(config.hidden_size, config.hidden_size, **options)
            block.register_forward_hook(_replace)

    entries = {"__init__": __init__, "__module__": __name__, "_auto_class": auto_class}
    return type(name, (architecture,), entries)


class ReplaceMeModel:
    """What the auto classes need of a model class: makes the original architecture with its linear layers."""

    auto_class, mapping = "AutoModel", MODEL_MAPPING

    @classmethod
    def _of(cls, config: Any) -> type:
        return _with_replacements(cls.mapping[type(config).__base__], cls.__name__, cls.auto_class)

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
