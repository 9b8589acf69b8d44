"""The supported architectures: where the blocks of each are, which module gives M, into which weights T folds.

To add one, add an entry to FAMILIES: what differs from Llama is all that it has to say (see `Family`).
"""

from dataclasses import replace

from replaceme.models.attention import Attention
from replaceme.models.family import Family

EXPERTS = (
    "mlp.down_proj.weight",
    "mlp.experts.*.down_proj.weight",
    "mlp.experts.down_proj",
    "mlp.shared_expert.down_proj.weight",
    "mlp.shared_experts.down_proj.weight",
)
SEQUENTIAL = Family(
    attention_output="self_attn.o_proj.weight", mlp_norm="post_attention_layernorm.weight", attention=Attention()
)
LISTED = replace(SEQUENTIAL, derived_lists=True)
FUSED = replace(SEQUENTIAL, gate="mlp.gate_up_proj.weight", up="mlp.gate_up_proj.weight")
PLAIN = Family(gate=None, up=None)  # an MLP without a gate
MIXTURE = replace(LISTED, fold=EXPERTS, gate=None, up=None, mlp_norm=None)
DEEPSEEK = replace(MIXTURE, dense_first="first_k_dense_replace")
SANDWICH = Family(
    mlp_output="post_feedforward_layernorm",
    post_norm="post_feedforward_layernorm.weight",
    gain_offset=1.0,
    mlp_norm="pre_feedforward_layernorm.weight",
    attention_output="post_attention_layernorm.weight",
    attention=Attention(
        ("input_layernorm", "self_attn", "post_attention_layernorm"),
        post_norm="post_attention_layernorm.weight",
        middle="pre_feedforward_layernorm",
    ),
    derived_lists=True,
    tied=True,
)
# the input of its MLPs is not normalised
POST_NORM = replace(
    SANDWICH,
    gain_offset=0.0,
    attention_output=None,
    attention=Attention(
        ("self_attn", "post_attention_layernorm"), post_norm="post_attention_layernorm.weight", middle="mlp"
    ),
    gate=None,
    up=None,
    mlp_norm=None,
    tied=False,
)
GPT = replace(PLAIN, blocks="transformer.h", depth="n_layer", width="n_embd", positions="n_positions")
NEOX = replace(
    PLAIN,
    blocks="gpt_neox.layers",
    fold=("mlp.dense_4h_to_h.weight",),
    up="mlp.dense_h_to_4h.weight",
    mlp_norm="post_attention_layernorm.weight",
)
VIT = replace(
    PLAIN,
    blocks="vit.encoder.layer",
    spellings=("vit.layers", "layers"),
    modules="layers",
    fold=("mlp.fc2.weight", "output.dense.weight"),
    own_layers=False,
    predicts=False,
    modality="image",
    prefix=1,
)
TOWER = replace(
    VIT, blocks="vision_model.encoder.layers", spellings=(), modules="encoder.layers", fold=("mlp.fc2.weight",)
)
FAMILIES = {
    # the MLP after the attention, each behind a norm
    "llama": replace(SEQUENTIAL, rotatable=True),
    "mistral": replace(SEQUENTIAL, rotatable=True),
    "qwen2": replace(LISTED, rotatable=True),
    "qwen3": replace(LISTED, rotatable=True),
    "gemma": replace(SEQUENTIAL, gain_offset=1.0, tied=True),
    "phi3": FUSED,
    "smollm3": replace(LISTED, tied=True),
    # its norms have shifts, which its MLPs have no biases to take
    "stablelm": replace(SEQUENTIAL, mlp_norm=None, attention=Attention(beside="use_parallel_residual")),
    "granite": replace(SEQUENTIAL, scaled_by="residual_multiplier"),
    "minicpm3": replace(SEQUENTIAL, attention_output=None, scaled_by="scale_depth", rooted=True, tied=True),
    "olmo": replace(SEQUENTIAL, mlp_norm=None),  # which has no weights
    "gpt2": replace(
        GPT,
        fold=("mlp.c_proj.weight",),
        attention=Attention(("ln_1", "attn"), fold="attn.c_proj.weight", middle="ln_2"),
        up="mlp.c_fc.weight",
        mlp_norm="ln_2.weight",
        transposed=True,
        numbered="scale_attn_by_inverse_layer_idx",
        query="attn.c_attn.weight",
        tied=True,
    ),
    "opt": replace(
        PLAIN,
        blocks="model.decoder.layers",
        mlp_output="fc2",
        fold=("fc2.weight",),
        attention=Attention(
            ("self_attn_layer_norm", "self_attn"), fold="self_attn.out_proj.weight", middle="final_layer_norm"
        ),
        up="fc1.weight",
        mlp_norm="final_layer_norm.weight",
        tied=True,
        refused=(("do_layer_norm_before", False, "its blocks normalise the residual stream itself"),),
    ),
    "bloom": replace(
        PLAIN,
        blocks="transformer.h",
        mlp_output="mlp.dense_4h_to_h",
        fold=("mlp.dense_4h_to_h.weight",),
        tuples=2,
        depth="n_layer",
        positions=None,
        tied=True,
        refused=(("slow_but_exact", True, "it computes its MLPs in slices"),),
    ),
    # the MLP beside the attention
    "falcon": replace(
        PLAIN,
        blocks="transformer.h",
        fold=("mlp.dense_4h_to_h.weight",),
        in_place=True,
        tuples=2,
        tied=True,
    ),
    "gpt_neox": replace(NEOX, own_layers=False, head=("embed_out", "lm_head")),
    "gptj": replace(GPT, fold=("mlp.fc_out.weight",), up="mlp.fc_in.weight", mlp_norm="ln_1.weight", tuples=2),
    "phi": replace(PLAIN, fold=("mlp.fc2.weight",), up="mlp.fc1.weight", mlp_norm="input_layernorm.weight"),
    "cohere": replace(SEQUENTIAL, mlp_norm="input_layernorm.weight", attention=None, tied=True),
    "cohere2": replace(LISTED, mlp_norm="input_layernorm.weight", attention=None, tied=True),
    # a norm after the MLP
    "gemma2": SANDWICH,
    "gemma3_text": SANDWICH,
    "olmo2": POST_NORM,
    "olmo3": POST_NORM,
    "glm4": replace(
        FUSED,
        mlp_output="post_mlp_layernorm",
        post_norm="post_mlp_layernorm.weight",
        attention_output="post_self_attn_layernorm.weight",
        attention=Attention(
            ("input_layernorm", "self_attn", "post_self_attn_layernorm"), post_norm="post_self_attn_layernorm.weight"
        ),
    ),
    # mixtures of experts
    "mixtral": replace(MIXTURE, fold=("block_sparse_moe.experts.*.w2.weight", "mlp.experts.down_proj")),
    "qwen2_moe": MIXTURE,
    "qwen3_moe": MIXTURE,
    "deepseek_v2": DEEPSEEK,
    "deepseek_v3": DEEPSEEK,
    # encoders of images
    "vit": VIT,
    "deit": replace(VIT, blocks="deit.encoder.layer", spellings=("deit.layers", "layers"), prefix=2),
    "dinov2": replace(
        VIT,
        blocks="dinov2.encoder.layer",
        spellings=(),
        modules="encoder.layer",
        mlp_output="layer_scale2",
        scale="layer_scale2.lambda1",
        fold=("mlp.fc2.weight", "mlp.down_proj.weight", "mlp.weights_out.weight"),
        any_size=True,  # it interpolates its position embeddings without being asked to
    ),
    "clip_vision_model": TOWER,
    "siglip_vision_model": replace(TOWER, prefix=0),
    "clip": replace(TOWER, section="vision_config"),
    "siglip": replace(TOWER, section="vision_config", prefix=0),
}
