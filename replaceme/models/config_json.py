"""Check a config.json before it is used: every entry that is read must have the right type."""

from collections.abc import Callable
from typing import Any

from replaceme.core.errors import ReplaceMeError, printable

LARGEST = 2**31 - 1


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST


def _is_size(value: Any) -> bool:
    return _is_count(value) and value > 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable()


def _is_switch(value: Any) -> bool:
    return isinstance(value, bool)


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _is_counts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, int) and abs(one) <= LARGEST for one in value)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


Kind = tuple[Callable[[Any], bool], str]
TEXT: Kind = (_is_text, "a word")
COUNT: Kind = (_is_count, f"an integer from 0 to {LARGEST}")
SIZE: Kind = (_is_size, f"an integer from 1 to {LARGEST}")
NUMBER: Kind = (_is_number, "a number")
SWITCH: Kind = (_is_switch, "true or false")
LIST: Kind = (_is_list, "a list")
COUNTS: Kind = (_is_counts, "a list of integers")
TEXTS: Kind = (_is_texts, "a list of words")
# depth and width are checked by family
KINDS: dict[str, Kind] = {
    "architectures": TEXTS,
    "bias": SWITCH,
    "decoder_sparse_step": SIZE,
    "dtype": TEXT,
    "enable_bias": SWITCH,
    "first_k_dense_replace": COUNT,
    "image_size": SIZE,
    "intermediate_size": SIZE,
    "layer_types": LIST,
    "license": TEXT,
    "max_position_embeddings": SIZE,
    "mlp_bias": SWITCH,
    "mlp_layer_types": LIST,
    "mlp_only_layers": COUNTS,
    "model_type": TEXT,
    "moe_layer_freq": COUNT,
    "n_positions": SIZE,
    "no_rope_layers": LIST,
    "out_features": TEXTS,
    "out_indices": COUNTS,
    "patch_size": SIZE,
    "residual_multiplier": NUMBER,
    "tie_word_embeddings": SWITCH,
    "torch_dtype": TEXT,
    "vocab_size": SIZE,
}


# where null says the same as leaving the entry out, to transformers too
NULLABLE = {
    "architectures", "dtype", "intermediate_size", "layer_types", "license", "mlp_layer_types", "mlp_only_layers",
    "moe_layer_freq", "no_rope_layers", "out_features", "out_indices", "torch_dtype",
}  # fmt: skip
SECTIONS = ("vision_config",)
OF_IMAGES = ("clip", "siglip")  # which are nothing without that section


def check_types(config: dict[str, Any], where: str) -> None:
    """Raise ReplaceMeError for the first entry of a config.json that has a wrong type."""
    for key, value in config.items():
        if key in SECTIONS:
            if value is None and config.get("model_type") not in OF_IMAGES:
                continue
            if not isinstance(value, dict):
                raise _wrong(where, key, "a mapping", value)
            check_types(value, where)
        kind = KINDS.get(key)
        if kind is None or (value is None and key in NULLABLE):
            continue
        if not kind[0](value):
            raise _wrong(where, key, kind[1], value)


def _wrong(where: str, key: str, needed: str, value: Any) -> ReplaceMeError:
    # an integer of thousands of digits cannot be shown
    shown = "a huge number" if isinstance(value, int) and abs(value) > LARGEST else printable(repr(value)[:60])
    remedy = "take the config.json that belongs to the weights"
    if value is None:
        shown, remedy = "null", f"remove the entry where transformers' default is right, or {remedy}"
    return ReplaceMeError(f"{where}: `{key}` should be {needed}, found {shown}; {remedy}")
