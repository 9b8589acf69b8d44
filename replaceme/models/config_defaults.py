"""Complete a config.json with the defaults of transformers.

A config.json may omit entries that equal its class's defaults, and may spell a size otherwise than its class
(`num_hidden_layers` for the `n_layer` of GPT-2). transformers is imported only where it does either.
"""

from collections import Counter
from math import prod
from pathlib import Path
from typing import Any

from replaceme.core.errors import ReplaceMeError, in_one_line
from replaceme.core.quiet import quiet_transformers
from replaceme.models.config_json import check_types
from replaceme.models.families import FAMILIES
from replaceme.models.family import Family
from replaceme.models.probed import SECTION, names_of, section_class
from replaceme.models.weights import headers

# names of one size, each of them that of a class of transformers or one that such a class takes for it
SPELLINGS = (
    ("num_hidden_layers", "n_layer"),
    ("hidden_size", "n_embd", "n_embed"),
    ("max_position_embeddings", "n_positions"),
)
# entries that belong to a number of blocks
OF_BLOCKS = ("layer_types", "no_rope_layers", "mlp_layer_types", "stage_names", "out_features", "out_indices")
TYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}  # by safetensors' names


def with_defaults(config: dict[str, Any], where: str) -> dict[str, Any]:
    """Return config.json with every entry that its family needs, under the name in its class, and no other name.

    Raises ReplaceMeError where transformers would not read the entries.
    """
    family = FAMILIES.get(config["model_type"]) or names_of(config)
    if family is None:
        return config
    if family.section is None:
        return _filled(config, config["model_type"], family, where)
    if family.section == SECTION:
        inside = config.get(SECTION) or {}
        return {**config, SECTION: _filled(inside, section_class(config).model_type, family, where)}
    config = _with_overriding(config, family.section, where)
    tower = f"{config['model_type']}_vision_model"  # a section has a class of its own
    return {**config, family.section: _filled(config.get(family.section) or {}, tower, FAMILIES[tower], where)}


def _filled(given: dict[str, Any], model_type: str, family: Family, where: str) -> dict[str, Any]:
    double = _other_names(given, family.needed)
    if not double and all(key in given for key in family.needed):
        return given
    known = {key: value for key, value in given.items() if key == family.depth == "num_hidden_layers"}
    # without a number of blocks that is known: classes make lists of that length, however large it is
    rest = {key: value for key, value in given.items() if key not in {*known, *OF_BLOCKS}}
    read = accepted({**rest, "model_type": model_type}, where)
    values = {key: getattr(read, key) for key in family.needed if hasattr(read, key)} | known
    check_types(values, where)  # transformers does not look at values under other names
    return {key: value for key, value in given.items() if key not in double} | values


def _other_names(given: dict[str, Any], needed: tuple[str, ...]) -> set[str]:
    """Return the given entries that are other names of needed ones."""
    names = {name for names in SPELLINGS if set(names) & set(needed) for name in names}
    return names & given.keys() - set(needed)


def _with_overriding(config: dict[str, Any], section: str, where: str) -> dict[str, Any]:
    """Return config.json without `vision_config_dict`, an old entry that overrides `vision_config`."""
    overriding = f"{section}_dict"
    if config.get(overriding) is None:
        return config
    entries = {key: config[key] for key in ("model_type", section, overriding) if config.get(key) is not None}
    whole = {**config, section: getattr(accepted(entries, where), section).to_dict()}
    check_types(whole, where)
    return {key: value for key, value in whole.items() if key != overriding}


def with_dtype(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return config.json with a dtype; if it has none, that of most of the weights beside it."""
    if config.get("dtype") or config.get("torch_dtype"):
        return config
    counts: Counter[str] = Counter()
    try:
        for _, (_, shape, kind) in headers(folder):
            counts[kind] += prod(shape)
    except ReplaceMeError:
        return config  # config.json alone, or broken weights, as whoever opens them says
    stored = [TYPES[kind] for kind, _ in counts.most_common(1) if kind in TYPES]
    return {**config, "dtype": stored[0]} if stored else config


def value_of(config: dict[str, Any], key: str, where: str) -> Any:
    """Return the value of an entry of a config.json, transformers' default where missing; None where its class has
    none.
    """
    value = config.get(key)
    return getattr(accepted(config, where), key, None) if value is None else value


def accepted(config: dict[str, Any], where: str) -> Any:
    """Return the config object that transformers makes of a config.json, or of a part of it.

    Raises ReplaceMeError, with the entry's name, where transformers refuses one.
    """
    from transformers import AutoConfig

    try:
        with quiet_transformers():
            return AutoConfig.for_model(**_decoded(config))
    except Exception as error:  # of several libraries, for whatever stands in the file
        raise ReplaceMeError(
            f"{where}: transformers does not read it ({in_one_line(error)}); correct the entry, or remove it where "
            "transformers' default is right"
        ) from error


def _decoded(value: Any) -> Any:
    """Return a config.json with numbers for transformers' spelling of infinity."""
    if isinstance(value, dict):
        return (
            float(value["__float__"]) if value.keys() == {"__float__"} else {k: _decoded(v) for k, v in value.items()}
        )
    return [_decoded(one) for one in value] if isinstance(value, list) else value
