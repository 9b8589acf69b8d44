"""The description of a model's architecture: listed, or else found and proved by a probe of its config.json.

The probe runs the model, made tiny, in every way in which a shortened model is used. So it lies in a room below, and is
called by its name.
"""

from importlib import import_module
from typing import Any

from replaceme.models.families import FAMILIES
from replaceme.models.family import SECTION, Family
from replaceme.models.text_encoder import auto_class, is_text_encoder, masked_types

PROBE = "replaceme.proving.probe"
# entries of the number of blocks of a decoder, beside which `num_hidden_layers` is another number, or the same
DEPTHS = ("decoder_layers", "num_blocks")
# while a probe is at work: the family that it is about to prove, by model type
PROPOSED: dict[str, Family] = {}


def described(config: dict[str, Any], where: str) -> Family:
    """Return the family of a config.json, as listed or as proved; raises ReplaceMeError with what the probe found."""
    model_type = config["model_type"]
    known = FAMILIES.get(model_type) or PROPOSED.get(model_type)
    return import_module(PROBE).proved(config, where) if known is None else known


def proof_of(config: dict[str, Any], where: str) -> dict[str, Any] | None:
    """Return what a probe found and proved about a config.json, in plain JSON; None where its family is listed."""
    model_type = config["model_type"]
    if model_type in FAMILIES or model_type in PROPOSED:
        return None
    return import_module(PROBE).probe(config, where).record


def names_of(config: dict[str, Any]) -> Family | None:
    """Return how the class of a config.json that is not listed names its sizes, those of its language model where it
    holds a larger model; None for neither a language model nor an encoder of text.
    """
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    )

    model_type = config["model_type"]
    known = {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, *masked_types()}
    if model_type not in known or model_type not in CONFIG_MAPPING:
        return None
    config_class, section = CONFIG_MAPPING[model_type], None
    if SECTION in getattr(config_class, "sub_configs", {}):
        config_class, section = section_class(config), SECTION
    mapped = getattr(config_class, "attribute_map", {})
    known = {name for one in config_class.__mro__ for name in (*vars(one), *getattr(one, "__annotations__", {}))}
    depth, width, positions = (
        mapped.get(name, name) for name in ("num_hidden_layers", "hidden_size", "max_position_embeddings")
    )
    depth = next((name for name in DEPTHS if name in known), depth)
    return Family(depth=depth, width=width, positions=positions if positions in known else None, section=section)


def section_class(config: dict[str, Any]) -> Any:
    """Return the config class of the language model in a larger model, as config.json names it, else the usual one."""
    from transformers import CONFIG_MAPPING

    named = (config.get(SECTION) or {}).get("model_type")
    usual = CONFIG_MAPPING[config["model_type"]].sub_configs[SECTION]
    usual = usual if hasattr(usual, "attribute_map") and usual.model_type else CONFIG_MAPPING["llama"]
    return CONFIG_MAPPING.get(named, usual)


def takes_pictures(config: dict[str, Any]) -> bool:
    """Return whether the model of a config.json takes pictures in its prompt."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    model_type = config["model_type"]
    return model_type not in FAMILIES and model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES and SECTION in config


def class_with_head(config: dict[str, Any]) -> Any:
    """Return the auto class that loads all of the model of a config.json with its head.

    It is the class for pictures too, where the one for text takes only a part of the config, and of an encoder of text
    that with the head that it has.
    """
    import transformers
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    )

    if is_text_encoder(config):
        return getattr(transformers, auto_class(config))
    model_type = config["model_type"]
    of_text, of_both = (
        names.get(model_type)
        for names in (MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
    )
    whole = model_type not in FAMILIES and of_both is not None and of_both != of_text
    return transformers.AutoModelForImageTextToText if whole else transformers.AutoModelForCausalLM
