"""Find the tensors of a checkpoint that transformers does not load: old buffers, layers that only training uses.

Names tell most of them: layers that predict further tokens (stored behind the last block, or as `mtp`), heads of a
value, and buffers that are computed today. Any other name that is not ordinary is looked for in the class itself, which
is made without weights for that. None of them is counted or written.
"""

import json
import re
from collections.abc import Iterable
from functools import cache
from typing import Any

from replaceme.core.quiet import quiet_transformers
from replaceme.models.family import Family
from replaceme.models.probed import class_with_head

# of names that no supported class loads, whatever the checkpoint
UNLOADED = re.compile(
    r"(^|\.)mtp\w*\."  # multi-token prediction
    r"|^(v_head|value_head)\."
    r"|(^|\.)rotary_(pos_)?emb\."
    r"|(^|\.)(attn|attention)\.(masked_)?bias$"
)
# what a block behind the last one has where it predicts a further token (DeepSeek-V3, GLM-4.5)
PREDICTS = frozenset(("eh_proj", "enorm", "hnorm", "shared_head"))
PREDICTORS = re.compile(r"n(um)?_(nextn|mtp)_\w+|mtp_num_\w+")
# what names that transformers loads are made of; one of other words is looked for in the class, which takes seconds
WORDS = frozenset(
    re.findall(
        r"\w+",
        """
    attention attn bias block_sparse_moe c_attn c_fc c_proj decoder dense dense_4h_to_h dense_h_to_4h down_proj
    e_score_correction_bias embed_in embed_out embed_positions embed_tokens experts fc1 fc2 fc_in fc_out
    final_layer_norm final_layernorm gate gate_proj gate_up_proj gpt_neox h input_layernorm k_norm k_proj
    kv_a_layernorm kv_a_proj_with_mqa kv_b_proj layers lm_head ln_1 ln_2 ln_attn ln_f ln_mlp mlp model norm o_proj
    out_proj post_attention_layernorm post_feedforward_layernorm post_mlp_layernorm post_self_attn_layernorm
    pre_feedforward_layernorm q_a_layernorm q_a_proj q_b_proj q_norm q_proj qkv_proj query_key_value self_attention
    self_attn self_attn_layer_norm shared_expert shared_expert_gate shared_experts transformer up_proj v_proj w1 w2 w3
    weight word_embeddings word_embeddings_layernorm wpe wte
    """,
    )
)


def named_as_unloaded(family: Family, config: dict[str, Any], names: Iterable[str]) -> set[str]:
    """Return the tensors of a language model whose names alone show that transformers does not load them."""
    names = list(names)
    behind: dict[int, set[str]] = {}
    for name in names:
        block = family.block_of(name)
        if block is not None and block >= family.sizes(config)[family.depth]:
            behind.setdefault(block, set()).add(name)
    declared = max((config[key] for key in predictors(config)), default=0)
    predicting = {
        block for block, held in behind.items() if PREDICTS & {part for one in held for part in one.split(".")}
    }
    further = set(behind) if len(behind) <= declared else predicting
    return {name for name in names if UNLOADED.search(name)}.union(*(behind[block] for block in further))


def predictors(config: dict[str, Any]) -> list[str]:
    """Return the entries of a config.json that give a number of layers predicting further tokens."""
    return [
        key
        for key, value in config.items()
        if PREDICTORS.fullmatch(key) and isinstance(value, int) and not isinstance(value, bool) and value > 0
    ]


def not_in_class(config: dict[str, Any], names: Iterable[str]) -> frozenset[str]:
    """Return the names of tensors that the class of a language model has no place for."""
    odd = tuple(sorted(name for name in names if not {part for part in name.split(".") if not part.isdigit()} <= WORDS))
    return _not_in_class(json.dumps(config, sort_keys=True), odd) if odd else frozenset()


@cache
def _not_in_class(config_text: str, names: tuple[str, ...]) -> frozenset[str]:
    import torch
    from transformers import AutoConfig

    empty = {name: torch.empty(0, device="meta") for name in names}
    options = {"device_map": "meta", "output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        with quiet_transformers():
            given = json.loads(config_text)
            config = AutoConfig.for_model(**given)
            model_class = class_with_head(given)._model_mapping[type(config)]
            model, loading = model_class.from_pretrained(None, config=config, state_dict=empty, **options)
    except Exception:  # an entry or a tensor that it cannot take: whoever loads the weights says so
        return frozenset()
    ignored = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_unexpected or ()]
    unexpected = loading["unexpected_keys"]
    return frozenset(name for name in names if name in unexpected or any(one.search(name) for one in ignored))
