"""What the probe finds for every causal language model of transformers, and for every masked one: `python
tests/probe_all.py` writes the tables.

It takes ten minutes on one core; what is known is kept until the code changes, so `python tests/probe_all.py TYPE ...`
may go before it, for some. Each type is probed with the default config of its class, made tiny, or with that of OWN,
where the default is no model that runs or lacks a part that models of the type have.
"""

import sys
import warnings
from pathlib import Path
from typing import Any

from transformers import AutoConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from replaceme.core.errors import ReplaceMeError, in_one_line
from replaceme.models.families import FAMILIES
from replaceme.models.language_model import check_purpose
from replaceme.models.probed import names_of
from replaceme.proving.probe import Probe, probe

DOCS = Path(__file__).parents[1] / "docs"
HEADER, OF_ENCODERS = (
    (first, "blocks at", "M", "T goes into", "proved") for first in ("model type", "encoder of text")
)
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "alpha": 100.0, "factor": 1.0}
OF_PICTURES = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
HYBRID = ["mamba", "mamba", "attention", "mamba", "mamba", "attention", "mamba", "mamba"]
CONVOLUTIONS = ["conv", "conv", "full_attention", "conv", "conv", "conv", "full_attention", "conv"]
EXPERTS = {"num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
ALONE = {"is_encoder_decoder": False, "is_decoder": True}
ROTARY = {"text_config": {"rope_parameters": {**OF_PICTURES, "mrope_section": [16, 24, 24]}}}
INDEXED = {
    "indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 128, "indexer_budget": 2048,
    "indexer_compress_ratio": 16, "ple_layer_ids": [2, 10], "eos_token_id": 248044,
    "rope_parameters": {**OF_PICTURES, "partial_rotary_factor": 0.25, "mrope_section": [11, 11, 10]},
}  # fmt: skip
# of classes for text and pictures, whose language model is shortened; those in the list of language models come by it
OF_BOTH = ("glm5_next", "idefics3", "llava", "mistral3", "qwen2_5_vl", "qwen2_vl", "qwen3_vl", "smolvlm")
# models that predict masked tokens by an encoder beside their decoder, or without one
NO_ENCODERS = {"bart", "flaubert", "mbart", "modernvbert", "mvp", "perceiver", "reformer", "ultravbert", "xlm"}
OWN: dict[str, dict[str, Any]] = {
    "gemma4": {"text_config": {"model_type": "gemma4_text", "hidden_size_per_layer_input": 0}},
    "qwen2_5_vl": ROTARY,
    "qwen2_vl": ROTARY,
    "qwen4_exp": {"text_config": INDEXED},
    "qwen4_exp_text": INDEXED,
    # decoders alone, of types that also have an encoder
    **dict.fromkeys(("blenderbot", "mbart", "pegasus", "whisper", "bart", "blenderbot-small", "marian", "mvp", "plbart",
                     "trocr"), ALONE),
    "bigbird_pegasus": {**ALONE, "attention_type": "original_full"},
    "bert-generation": {"is_decoder": True},
    "megatron-bert": {"is_decoder": True},
    "roberta-prelayernorm": {"is_decoder": True},
    "xlm-roberta-xl": {"is_decoder": True},
    # encoders, and decoders of the same types
    "big_bird": {"attention_type": "original_full"},
    "esm": {"vocab_size": 33, "pad_token_id": 1, "mask_token_id": 32, "position_embedding_type": "rotary"},
    "longformer": {"attention_window": [512] * 12},
    "xmod": {"default_language": "en_XX"},
    # models of text
    "bamba": {"attn_layer_indices": [2, 5, 9]},
    "cohere_compass_text": {"rope_parameters": {"full_attention": OF_PICTURES}},
    "dbrx": {"attn_config": {"rope_theta": 500000.0, "kv_n_heads": 8, "clip_qkv": 8.0}},
    "dots1": {"n_routed_experts": 8, "n_shared_experts": 1, **EXPERTS},
    "gemma4_text": {"hidden_size_per_layer_input": 0},  # as the 26B and the 31B
    "granitemoe": {"residual_multiplier": 0.22},
    "granitemoehybrid": {"residual_multiplier": 0.22, "layer_types": HYBRID, "num_hidden_layers": len(HYBRID)},
    "hunyuan_v1_dense": {"rope_parameters": DYNAMIC, "head_dim": 128},
    "hunyuan_v1_moe": {"rope_parameters": DYNAMIC, "head_dim": 128, "moe_topk": 2, "num_experts": 8},
    "lfm2_moe": {"layer_types": CONVOLUTIONS, "num_hidden_layers": len(CONVOLUTIONS)},
    "ministral": {"head_dim": 128},
    "nemotron": {"num_key_value_heads": 8, "head_dim": 128},
    "nemotron_h": {"layers_block_type": [*["mamba", "moe", "attention", "mlp"] * 2, "mamba", "mlp"]},
}  # fmt: skip


def found(model_type: str, encoder: bool) -> Probe:
    """Return what the probe finds of a type, as an encoder or as a language model."""
    try:
        own = OWN.get(model_type, {}) | ({"is_decoder": False} if encoder else {})
        config = AutoConfig.for_model(model_type, **own).to_dict()
        if encoder:
            config["architectures"] = [MODEL_FOR_MASKED_LM_MAPPING_NAMES[model_type]]
            return probe(config, model_type)
        config |= {"is_decoder": True} if model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES else {}
        named = names_of(config)
        check_purpose(named.sizes(config) if named else config, model_type)
        return probe(config, model_type)
    except ReplaceMeError as error:
        return Probe(model_type, None, in_one_line(error).removeprefix(f"{model_type}: "))
    except Exception as error:  # of a class whose default config is none
        return Probe(model_type, None, f"its default config is not accepted ({in_one_line(error)})")


def row(model_type: str, encoder: bool = False) -> list[str]:
    """Return the line of a type."""
    if model_type in FAMILIES:
        return [model_type, "", "", "", "[listed](models.md)"]
    one = found(model_type, encoder)
    if one.family is None:
        return [model_type, "", "", "", f"no: {one.finding.replace('|', '/')}"]
    family = one.family
    added = " + ".join(f"`{name}`" for name in (family.mlp_output, *family.further))
    factor = f" times `{family.scaled_by or family.scalar}`" if family.scaled_by or family.scalar else ""
    folds = ", ".join(f"`{name}`" for name in family.fold)
    kinds = ", several kinds of blocks" if family.kinds else ""
    kinds += ", several residual streams" if family.spread else ""
    kinds += f", before the norm `{family.closing_norm}`" if family.closing_norm else ""
    direction = " (direction)" if family.post_norm else ""
    return [model_type, f"`{family.blocks}`", added + factor, folds, f"yes{direction}{kinds}"]


def table(types: list[str], header: tuple[str, ...]) -> str:
    """Return all lines, in markdown."""
    lines = [list(header), ["---"] * len(header), *(row(one, header is OF_ENCODERS) for one in types)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write(path: Path, types: list[str], header: tuple[str, ...]) -> None:
    """Put a table in the place of the one in a page."""
    lines = path.read_text(encoding="utf-8").split("\n")
    first = next(number for number, line in enumerate(lines) if line.startswith(f"| {header[0]} |"))
    last = next(number for number, line in enumerate(lines) if number > first and not line.startswith("|"))
    path.write_text("\n".join([*lines[:first], table(types, header), *lines[last:]]), encoding="utf-8")


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    if sys.argv[1:]:
        print(table(sys.argv[1:], HEADER))
    else:
        write(DOCS / "encoders.md", sorted(set(MODEL_FOR_MASKED_LM_MAPPING_NAMES) - NO_ENCODERS), OF_ENCODERS)
        write(DOCS / "model-types.md", sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *OF_BOTH}), HEADER)
