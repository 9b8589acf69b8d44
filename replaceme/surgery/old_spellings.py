"""Spell the rotary positions of a config.json in the old way beside the new one, for programs that read only that.

transformers 5 writes `rope_parameters`. What reads `rope_theta` and `rope_scaling` (transformers 4, much of MLX) takes
its own default for the base without a word, and the model computes something else. transformers 5 reads both alike.
"""

from typing import Any

NEW = "rope_parameters"
FULL, SLIDING = "full_attention", "sliding_attention"
# entries of `rope_parameters` that stood beside `rope_scaling` and not in it
BESIDE = ("rope_theta", "partial_rotary_factor")
# kinds that the old entries can say, of all blocks
KINDS = {"default", "linear", "dynamic", "yarn", "longrope", "llama3"}
# the same under the names of single architectures
NAMES = {"gpt_neox": {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}}


def with_old_spellings(config: dict[str, Any]) -> dict[str, Any]:
    """Return config.json with the old entries beside `rope_parameters`, also in its sections; none is replaced."""
    sections = {key: with_old_spellings(value) for key, value in config.items() if isinstance(value, dict)}
    config = {key: sections.get(key, value) for key, value in config.items()}
    rope = config.get(NEW)
    return config if not isinstance(rope, dict) else _old(rope, config.get("model_type")) | config


def _old(rope: dict[str, Any], model_type: Any) -> dict[str, Any]:
    """Return the old entries: of one dict for all blocks, or of one for each of two kinds of attention."""
    nested = {key: value for key, value in rope.items() if isinstance(value, dict)}
    if not nested:
        names = NAMES.get(model_type, {})
        found = {names.get(key, key): rope[key] for key in BESIDE if rope.get(key) is not None}
        return found | _scaling(rope)
    kinds = {one.get("rope_type", "default") for one in nested.values()}
    if nested.keys() != {FULL, SLIDING} or "rope_theta" not in rope[FULL] or not kinds <= KINDS:
        return {}
    found = {"rope_theta": rope[FULL]["rope_theta"]} | _scaling(rope[FULL])
    local = rope[SLIDING].get("rope_theta")
    return found | ({} if local in (None, found["rope_theta"]) else {"rope_local_base_freq": local})


def _scaling(rope: dict[str, Any]) -> dict[str, Any]:
    """Return `rope_scaling`, where positions are scaled."""
    if rope.get("rope_type", "default") == "default":
        return {}
    return {"rope_scaling": {key: value for key, value in rope.items() if key not in BESIDE}}
