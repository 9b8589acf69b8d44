"""The description of a model's architecture: listed, or else found and proved by a probe of its config.json.

The probe runs the model, made tiny, in every way in which a shortened model is used. So it lies in a room below, and is
called by its name.
"""

from importlib import import_module
from typing import Any

from replaceme.core.errors import ReplaceMeError, in_one_line, printable
from replaceme.models.families import FAMILIES
from replaceme.models.family import Family

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


def names_of(model_type: str) -> Family | None:
    """Return how the class of a model type that is not listed names its sizes; None for no language model.

    Raises ReplaceMeError where transformers cannot make its config.
    """
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or model_type not in CONFIG_MAPPING:
        return None
    try:
        config_class = CONFIG_MAPPING[model_type]
    except Exception as error:
        raise ReplaceMeError(f"model_type {printable(model_type)}: {in_one_line(error)}") from error
    mapped = getattr(config_class, "attribute_map", {})
    known = {name for one in config_class.__mro__ for name in (*vars(one), *getattr(one, "__annotations__", {}))}
    depth, width, positions = (
        mapped.get(name, name) for name in ("num_hidden_layers", "hidden_size", "max_position_embeddings")
    )
    depth = next((name for name in DEPTHS if name in known), depth)
    return Family(depth=depth, width=width, positions=positions if positions in known else None)
