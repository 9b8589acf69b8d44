"""Make a tiny config of a model's own: what decides the structure stays, widths, vocabulary and depth become small."""

import re
from typing import Any

from replaceme.models.family import Family
from replaceme.models.model_config import NUMBERS, with_blocks

HIDDEN, HEADS, HEAD, VOCABULARY, POSITIONS, FEWEST = 32, 4, 8, 99, 128, 6
SIZES: tuple[tuple[str, int], ...] = (
    (r"hidden_size|d_model|n_embd|dim|embedding_dim|emb_dim|word_embed_proj_dim|embedding_size|lru_width", HIDDEN),
    (r"input_embedding_size|output_embedding_size|ple_embed_dim", HIDDEN),
    (r"num_attention_heads|n_heads?|num_heads|(de|en)coder_attention_heads|attention_heads|linear_num_heads", HEADS),
    (r"swa_num_attention_heads|num_query_groups", HEADS),
    (r"head_dim|kv_channels|attention_head_size|swa_head_dim|dim_head|d_head|linear_head_dim|v_head_dim", HEAD),
    (r"linear_(key|value)_head_dim|mamba_d_head|mamba_head_dim|qk_nope_head_dim|index(er)?_head_dim", HEAD),
    (r"global_head_dim|swa_v_head_dim", HEAD),
    (r"rotary_dim", HEAD // 2),
    (r"qk_rope_head_dim", HEAD),
    (r"qk_head_dim", 2 * HEAD),
    (r"moe_intermediate_size|expert_ffn_hidden_size", 24),
    (r"\w*shared\w*intermediate_size", 40),
    (r"\w*intermediate_size\w*|ffn_dim|n_inner|d_ff|dim_ff|dff|d_inner|feed_forward_size|ffn_hidden_size", 48),
    (r"(de|en)coder_ffn_dim", 48),
    (r"num_experts|n_routed_experts|num_local_experts|moe_num_experts", 4),
    (r"n_group|topk_group|num_expert_group", 1),
    (r"\w*vocab_size\w*", VOCABULARY),
)  # fmt: skip
# at most so much
LIMITS: tuple[tuple[str, int], ...] = (
    (r"num_experts_per_tok(en)?|moe_topk|moe_top_k|moe_k|top_k_experts", 2),
    (r"n_groups|mamba_n_?groups|o_groups|index_n_heads|index_n_groups|zero_expert_num", 2),
    (r"kv_lora_rank|q_lora_rank|o_lora_rank|adapter_rank|gated_norm_rank|hc_lowrank|laurel_rank", 16),
    (r"max_position_embeddings|n_positions|n_ctx|max_seq_len|context_length|model_max_length", POSITIONS),
    (r"original_max_position_embeddings|max_target_positions|max_source_positions", POSITIONS),
    (r"sliding_window(_size)?|window_size|local_attention|attention_window_size|attention_chunk_size", 8),
    (r"index_topk", 64),
    (r"mamba_d_state|state_size|ssm_state_size", 8),
    (r"chunk_size|mamba_chunk_size|block_size", 8),
    (r"mamba_dt_rank|time_step_rank", 4),
    (r"router_hidden_size|hidden_size_per_layer_input", 12),
    (r"ngram_vocab_size_base", 64),
    (r"split_ngram_parts|make_ngram_vocab_size_divisible_by", 2),
    (r"first_k_dense_replace|num_dense_layers", 2),
)  # fmt: skip
KV_HEADS = re.compile(r"(swa_)?num_key_value_heads|num_kv_heads|kv_n_heads|num_global_key_value_heads")
IDS = re.compile(r"\w*(_token_ids?|_token_index)|\w+_index")
PERIOD = re.compile(r"\w*_(period|interval|step|every_n_layers)")
TOWERS, TOWER_DEPTHS = ("vision_config", "audio_config"), ("num_hidden_layers", "depth")
LABELS = ("id2label", "label2id", "num_labels")


def tiny(config: dict[str, Any], names: Family) -> dict[str, Any]:
    """Return a complete config (as a config class writes it) with small sizes and a few blocks of each kind.

    `names` says what the number of blocks is called, and where it lies.
    """
    sizes = names.sizes(config)
    num_blocks = sizes[names.depth]
    few = with_blocks(sizes, names.depth, representatives(sizes, num_blocks), lists_by_block(sizes, num_blocks))
    return small(few if names.section is None else {**config, names.section: few})


def lists_by_block(config: dict[str, Any], num_blocks: int) -> list[str]:
    """Return the entries that are lists of one value per block."""
    return [
        key
        for key, value in config.items()
        if isinstance(value, list) and len(value) == num_blocks and key not in NUMBERS and num_blocks > 0
        and not key.endswith(("_token_id", "_token_ids"))
    ]  # fmt: skip


def representatives(config: dict[str, Any], num_blocks: int) -> list[int]:
    """Return the numbers of the first blocks and of the first two of each further kind that the lists show."""
    names = lists_by_block(config, num_blocks)
    numbered = [(config[key], first) for key, first in NUMBERS.items() if isinstance(config.get(key), list)]
    kinds = [
        repr([config[key][block] for key in names] + [block + first in one for one, first in numbered])
        for block in range(num_blocks)
    ]
    kept = set(range(min(num_blocks, FEWEST if names else max(FEWEST, 2 * _period(config)))))
    for block, kind in enumerate(kinds):
        if sum(kinds[one] == kind for one in kept) < 2:
            kept.add(block)
    return sorted(kept)


def _tower(config: dict[str, Any]) -> dict[str, Any]:
    """Return a small config of an encoder of pictures or sounds with few blocks, where nothing else goes by them."""
    for key in TOWER_DEPTHS:
        if type(config.get(key)) is int and not lists_by_block(config, config[key]):
            config[key] = min(config[key], 2)
    return config


def _period(config: dict[str, Any]) -> int:
    """Return after how many blocks their kinds repeat, where entries of the config say so."""
    return max((value for key, value in config.items() if PERIOD.fullmatch(key) and type(value) is int), default=1)


def small(config: dict[str, Any]) -> dict[str, Any]:
    """Return a complete config with small sizes and all its blocks."""
    found = {key: _entry(key, value, config) for key, value in config.items() if key not in LABELS}
    found |= _mamba(config) | _latent(config)
    if "initializer_range" in found:
        found["initializer_range"] = 0.2
    return found


def _entry(key: Any, value: Any, config: dict[str, Any]) -> Any:
    if isinstance(value, dict):
        return _tower(small(value)) if key in TOWERS else small(value)
    if not isinstance(key, str):
        return value
    if IDS.fullmatch(key):
        return _token(key, value)
    if key == "mrope_section" and isinstance(value, list):
        return [2, 1, 1][: len(value)]
    if key in ("short_factor", "long_factor") and isinstance(value, list):
        return value[: max(1, HEAD * len(value) * 2 // max(2 * len(value), 1) // 2)]
    if isinstance(value, list) and value and all(type(one) is int for one in value) and key not in NUMBERS:
        return [_number(key, one, config) for one in value]
    return _number(key, value, config)


def _number(key: str, value: Any, config: dict[str, Any]) -> Any:
    if type(value) is not int or value == 0:
        return value
    if KV_HEADS.fullmatch(key):
        heads = next((config[one] for one in (key.replace("key_value", "attention"), "num_attention_heads") if
                      isinstance(config.get(one), int)), 0)  # fmt: skip
        return 1 if value == 1 else HEADS if value == heads else HEADS // 2
    for pattern, size in SIZES:
        if re.fullmatch(pattern, key):
            return size
    for pattern, most in LIMITS:
        if re.fullmatch(pattern, key):
            return min(value, most)
    return value


def _token(key: str, value: Any) -> Any:
    if isinstance(value, list):
        return [_token(key, one) for one in value]
    if type(value) is not int or value < 0:
        return value
    fixed = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return fixed.get(key, value if value < 4 else 80 + sum(map(ord, key)) % 16)


def _mamba(config: dict[str, Any]) -> dict[str, Any]:
    """Return the sizes of state space mixers, whose heads share `expand` times the width."""
    expand = config.get("mamba_expand") or config.get("expand")
    if not isinstance(expand, int | float):
        return _linear(config) | ({"attention_hidden_size": HIDDEN} if config.get("attention_hidden_size") else {})
    inner = int(expand * HIDDEN)
    heads = "mamba_n_heads" if "mamba_n_heads" in config else "mamba_num_heads"
    found: dict[str, Any] = {}
    if heads in config:
        found[heads] = inner // HEAD
    elif config.get("model_type") == "mamba2":
        found |= {"num_heads": inner // HEAD, "head_dim": HEAD}
    if "mamba_headdim" in config:
        found["mamba_headdim"] = inner // config["n_mamba_heads"]
    if config.get("mamba_d_ssm") is not None:
        found["mamba_d_ssm"] = inner
    if config.get("attention_hidden_size"):
        found["attention_hidden_size"] = 2 * HIDDEN
    if config.get("attention_head_dim"):
        found["attention_head_dim"] = 2 * HIDDEN // HEADS
    return found | _linear(config)


def _latent(config: dict[str, Any]) -> dict[str, Any]:
    """Return the width of heads of latent attention, where it is that of queries and keys."""
    parts = [config.get(key) for key in ("qk_nope_head_dim", "qk_rope_head_dim")]
    whole = sum(parts) if all(type(one) is int for one in parts) else None
    if type(parts[0]) is int and parts[1] is None and "head_dim" in config:
        return {"head_dim": 2 * HEAD}  # of some blocks, whose other part is what is left
    return {key: 2 * HEAD for key in ("head_dim", "swa_head_dim") if config.get(key) == whole and whole}


def _linear(config: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers of heads of linear attention."""
    keys, values = config.get("linear_num_key_heads"), config.get("linear_num_value_heads")
    if not isinstance(keys, int) or not isinstance(values, int):
        return {}
    return {"linear_num_key_heads": 2, "linear_num_value_heads": 2 * max(1, min(values // max(keys, 1), 2))}
