"""A tiny model with random weights of every family and its variants, with inputs and maps for it.

Two runs of blocks go at once, one of them the last blocks; in mixtures of experts one carrier is a dense block.
"""

import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedConfig

from replaceme.activations.recycled_neurons import Recycled, activation_of
from replaceme.activations.removed_neurons import neurons_of
from replaceme.calibration.images import Images, positions_of
from replaceme.calibration.samples import Samples
from replaceme.calibration.tokens import Tokens
from replaceme.core.places import Place, Span, carrier_of
from replaceme.models.checkpoints import open_checkpoint, read_config
from replaceme.models.families import FAMILIES
from replaceme.models.model_config import family_of, is_encoder
from replaceme.placements.placement import INPUT, REMOVED
from replaceme.placements.registry import PLACEMENTS
from replaceme.transforms.transform import Transform

HIDDEN, INTERMEDIATE, BLOCKS = 16, 24, 6
GROUPS = [(1, 3), (4, 6)]
SIZES = {
    "vocab_size": 66, "hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE, "num_hidden_layers": BLOCKS,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 128, "initializer_range": 0.3,
    "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0,
}  # fmt: skip
GPT = {"n_layer": BLOCKS, "n_embd": HIDDEN, "n_head": 2, "n_positions": 128, "n_inner": INTERMEDIATE}
QWEN_EXPERTS = {"num_experts": 4, "moe_intermediate_size": 12, "num_experts_per_tok": 2, "mlp_only_layers": [2]}
DEEPSEEK = {
    "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8,
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12, "first_k_dense_replace": 2,
    "n_group": 1, "topk_group": 1, "num_key_value_heads": 2,
}  # fmt: skip
VISION = {
    "hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE, "num_hidden_layers": BLOCKS, "num_attention_heads": 2,
    "image_size": 16, "patch_size": 4, "initializer_range": 0.3,
}  # fmt: skip
TEXT = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 66}
DINOV2 = {**VISION, "mlp_ratio": 2}
WHOLE = {"vision_config": VISION, "text_config": {**TEXT, "eos_token_id": 3}, "projection_dim": 8}
OWN = {
    "qwen2": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3},
    "qwen3": {"head_dim": 8, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2},
    "gemma": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "sliding_window": 8},
    "gemma3_text": {"head_dim": 8, "sliding_window": 8, "sliding_window_pattern": 2},
    "smollm3": {"no_rope_layer_interval": 2},
    "granite": {"residual_multiplier": 0.5, "embedding_multiplier": 2.0},
    "minicpm3": {
        "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8,
        "num_key_value_heads": 2,
    },
    "gpt2": GPT,
    "gpt2, attention divided by the block's number": {**GPT, "scale_attn_by_inverse_layer_idx": True},
    "opt": {"ffn_dim": INTERMEDIATE, "word_embed_proj_dim": HIDDEN},
    "bloom": {"n_layer": BLOCKS, "n_head": 2},
    "falcon": {"alibi": False},
    "falcon, as 11B": {
        "alibi": False, "new_decoder_architecture": True, "num_kv_heads": 1, "num_ln_in_parallel_attn": 2,
    },
    "gptj": {**GPT, "rotary_dim": 4},
    "gpt_neox, one after the other": {"use_parallel_residual": False},
    "stablelm, side by side": {"use_parallel_residual": True},
    "cohere2": {"sliding_window": 8, "sliding_window_pattern": 2},
    # small activations pass a norm here, whose epsilon the hooks do not know
    "olmo2": {"rms_norm_eps": 1e-8},
    "olmo3": {"sliding_window": 8, "rms_norm_eps": 1e-8},
    "glm4": {"head_dim": 8},
    "mixtral": {"num_local_experts": 4},
    "qwen2_moe": {**QWEN_EXPERTS, "shared_expert_intermediate_size": 20, "decoder_sparse_step": 1},
    "qwen2_moe, every second block": {
        **QWEN_EXPERTS, "shared_expert_intermediate_size": 20, "decoder_sparse_step": 2, "mlp_only_layers": [],
        "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 4,
    },
    "qwen3_moe": {**QWEN_EXPERTS, "head_dim": 8},
    "deepseek_v2": DEEPSEEK,
    "deepseek_v3": DEEPSEEK,
    "dinov2": DINOV2,
    "dinov2, with SwiGLU": {**DINOV2, "use_swiglu_ffn": True},
    "clip": WHOLE,
    "siglip": WHOLE,
}  # fmt: skip
VARIANTS = sorted({*FAMILIES, *OWN}, key=lambda name: (list(FAMILIES).index(name.partition(",")[0]), name))


SCRATCH = tempfile.TemporaryDirectory(prefix="replaceme-families-")  # removed when the process ends


@cache
def source(variant: str) -> Path:
    """A saved tiny model of random weights."""
    folder = Path(tempfile.mkdtemp(dir=SCRATCH.name))
    torch.manual_seed(0)
    kind = AutoModel if FAMILIES[variant.partition(",")[0]].modality == "image" else AutoModelForCausalLM
    model = kind.from_config(config_of(variant)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "ln_" in name or "lambda" in name:  # not all ones, so that a misplaced one shows
                parameter.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                parameter.uniform_(-0.5, 0.5)
    model.save_pretrained(folder)
    return folder


def config_of(variant: str) -> PreTrainedConfig:
    """Its config."""
    given = {key: value for key, value in {**SIZES, **OWN.get(variant, {})}.items() if key not in renamed(variant)}
    if FAMILIES[variant.partition(",")[0]].modality == "image":
        given = OWN.get(variant, VISION)
    return AutoConfig.for_model(variant.partition(",")[0], **given)


def renamed(variant: str) -> set[str]:
    """Sizes that a config of this family knows by other names."""
    family = FAMILIES[variant.partition(",")[0]]
    return {name for name, own in (("num_hidden_layers", family.depth), ("hidden_size", family.width)) if name != own}


def samples(variant: str) -> Samples:
    """Two sequences, one padded on the left; for an encoder two images."""
    generator = torch.Generator().manual_seed(0)
    config = read_config(source(variant))
    if is_encoder(config):
        pixels = torch.randn(2, 3, VISION["image_size"], VISION["image_size"], generator=generator)
        return Images(pixels, positions_of(config, pixels.shape, variant))
    ids = torch.randint(4, 66, (2, 12), generator=generator)
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[1, :3] = False
    return Tokens(ids, mask)


def transforms(
    variant: str, placement: str, recycle: str | None = None, groups: Sequence[Span] = GROUPS
) -> list[Transform]:
    """Random maps, not far from one, for both groups."""
    config = read_config(source(variant))
    family, activation = family_of(config, variant), activation_of(config)
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    found = []
    for start, _ in groups:
        width = intermediate(variant, start) if placement == "down_proj" else HIDDEN
        matrix = random(width, HIDDEN) * 0.3 + (0.0 if placement == "down_proj" else torch.eye(HIDDEN))
        if placement == "upstream":  # a factor, another one for each group
            matrix = (0.5 + 0.4 * start) * torch.eye(HIDDEN, dtype=torch.float64)
        changed, recycled = torch.tensor([1, 5]), None
        if recycle == INPUT:
            recycled = Recycled(changed, random(1, HIDDEN).float(), random(2, HIDDEN).float(), activation)
        if recycle == REMOVED:
            recycled = neurons_of(open_checkpoint(source(variant)), start, start - 1).at(changed, torch.tensor([2, 3]))
        found.append(
            Transform(
                matrix,
                {"solver": "least_squares", "residual": 0.5},
                placement,
                gain=None if family.post_norm is None or PLACEMENTS[placement].on_stream else 0.7,
                recycled=recycled,
            )
        )
    return found


def intermediate(variant: str, start: Place) -> int:
    """Columns of the projection that is the last before a place."""
    checkpoint = open_checkpoint(source(variant)).carrying(start)
    _, shape, _ = checkpoint.tensors[checkpoint.folded(carrier_of(start))[0]]
    return shape[0 if checkpoint.family.transposed else 1]
