"""What has to hold for every family, on a tiny model with random weights: tests/models/test_families.py demands it.

`python tests/family_checks.py` writes the table of docs/models.md anew.

Two runs of blocks go at once, one of them the last blocks; in mixtures of experts one carrier is a dense block.
"""

import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import cache, lru_cache
from pathlib import Path

import torch
from given import cut_of
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedConfig

from replaceme.activations.capture import Wanted, capture
from replaceme.activations.open_model import load_model
from replaceme.activations.recycled_neurons import Recycled, activation_of
from replaceme.activations.removed_neurons import neurons_of
from replaceme.calibration.images import Images, positions_of
from replaceme.calibration.samples import Samples
from replaceme.calibration.tokens import Tokens
from replaceme.core.errors import ReplaceMeError
from replaceme.core.places import Place, Span, carrier_of
from replaceme.models.checkpoints import open_checkpoint, read_config
from replaceme.models.families import FAMILIES
from replaceme.models.model_config import check_fit, family_of, is_encoder
from replaceme.placements.placement import INPUT, REMOVED
from replaceme.placements.registry import PLACEMENTS
from replaceme.surgery.fold import merge
from replaceme.surgery.shortened_model import shortened
from replaceme.transforms.transform import Transform

DOCS = Path(__file__).parents[1] / "docs" / "models.md"
HIDDEN, INTERMEDIATE, BLOCKS = 16, 24, 6
GROUPS = [(1, 3), (4, 6)]
HALVES = [(0.5, 2.5), (4, 5)]  # one that begins in the middle of a block, and whole ones right after it
KEPT = [0, 3]
EXACT = 1e-5  # of the largest logit, in float32
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


def weights(variant: str) -> list[str]:
    """The weights that T goes into, a `*` for their numbers."""
    checkpoint = open_checkpoint(source(variant))
    names = [re.sub(r"\.\d+\.", ".*.", name) for block in KEPT for name in checkpoint.folded(block)]
    return sorted({name.removeprefix(f"{checkpoint.family.blocks}.*.") for name in names})


def takes(variant: str, **fit: object) -> bool:
    """Whether a family says that such a fit can be folded."""
    try:
        check_fit(read_config(source(variant)), variant, **fit)
    except ReplaceMeError:
        return False
    return True


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference, of the largest value."""
    return float((one - other).abs().max() / other.abs().max())


def mlp_output_difference(variant: str) -> float:
    """Captured M against what a block loses with its down projection (and the bias) at zero."""
    config = read_config(source(variant))
    family = family_of(config, variant)
    model, given = whole(variant).base_model, samples(variant)
    blocks, mask, worst = family.block_modules(model), given.mask, 0.0
    for block in KEPT:
        wanted = Wanted(frozenset({block}), frozenset({block}))
        with_it = next(capture(model, family, [given], wanted))
        with _without_projection(blocks[block], family.fold):
            without = next(capture(model, family, [given], wanted))
        lost = (with_it.hidden_states[block] - without.hidden_states[block])[mask]
        worst = max(worst, difference(with_it.mlp_output[block][mask], lost))
    return worst


@contextmanager
def _without_projection(block: torch.nn.Module, patterns: Sequence[str]) -> Iterator[None]:
    """Let a block's down projections, and their biases, be zero for a while."""
    kept = {
        parameter: parameter.detach().clone()
        for name, parameter in block.named_parameters()
        if any(re.fullmatch(_weight_or_bias(pattern), name) for pattern in patterns)
    }
    with torch.no_grad():
        for parameter in kept:
            parameter.zero_()
        yield
        for parameter, value in kept.items():
            parameter.copy_(value)


def _weight_or_bias(pattern: str) -> str:
    return re.escape(pattern).replace(r"\*", r"\d+").replace("weight", "(weight|bias)")


def shorter(variant: str, found: list[Transform], groups: Sequence[Span] = GROUPS) -> Path:
    """A saved model without both runs of blocks."""
    out = Path(tempfile.mkdtemp(dir=SCRATCH.name)) / "out"
    merge(source(variant), cut_of(groups, BLOCKS), found, out, {})
    return out


@lru_cache(maxsize=1)
def whole(variant: str) -> torch.nn.Module:
    """The original, loaded once; who changes it puts it back."""
    return loaded(source(variant))


@lru_cache(maxsize=1)
def plainly_shorter(variant: str) -> Path:
    """Return the shortened model with plain maps."""
    return shorter(variant, transforms(variant, "mlp"))


@lru_cache(maxsize=1)
def folded_into_mlp(variant: str) -> torch.nn.Module:
    """Return the shortened model with plain maps, reloaded."""
    return loaded(plainly_shorter(variant))


def loaded(folder: Path) -> torch.nn.Module:
    """A model as the project loads it: with its head, or the tower of an encoder."""
    return load_model(folder, "float32", "cpu", head=not is_encoder(read_config(folder)))


@lru_cache(maxsize=1)
def like_folded(variant: str) -> torch.nn.Module:
    """Return a copy of `folded_into_mlp`, to be filled with the tensors of other checkpoints."""
    return deepcopy(folded_into_mlp(variant))


def reloaded(variant: str, folder: Path) -> torch.nn.Module:
    """Load a shortened model as the project does: quickly, where `folded_into_mlp` has its config, names and shapes.

    The library makes of such a folder what it made of that one, but for what the tensors hold.
    """
    model, tensors = like_folded(variant), load_file(folder / "model.safetensors")
    if read_config(folder) != read_config(plainly_shorter(variant)) or shapes(tensors) != shapes(model.state_dict()):
        return loaded(folder)
    model.load_state_dict(tensors, strict=False)  # it also has second names, of tied weights
    return model


def shapes(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Size]:
    """Return shapes by the first name of each tensor."""
    first = {tensor.data_ptr(): name for name, tensor in reversed(tensors.items())}
    return {name: tensors[name].shape for name in first.values()}


def outputs(model: torch.nn.Module, variant: str) -> torch.Tensor:
    """Logits of the unmasked tokens; of an encoder its last states, all norms included."""
    from replaceme.activations.capture import model_inputs

    given = samples(variant)
    with torch.no_grad():
        found = model(**model_inputs(model, given))
    return (found.last_hidden_state if isinstance(given, Images) else found.logits)[given.mask]


def fold_difference(variant: str, **fit: object) -> float:
    """Outputs of the shortened model, reloaded, against those of the original run with the transforms by hooks."""
    found = transforms(variant, **fit)
    config = read_config(source(variant))
    model = whole(variant)
    with shortened(model.base_model, family_of(config, variant), GROUPS, found):
        expected = outputs(model, variant)
    plain = fit == {"placement": "mlp"}
    found = folded_into_mlp(variant) if plain else reloaded(variant, shorter(variant, found))
    return difference(outputs(found, variant), expected)


def halves_difference(variant: str, placement: str) -> float:
    """Outputs of the model without HALVES, reloaded, against those of the original run with the transforms by hooks."""
    found, model = transforms(variant, placement, groups=HALVES), whole(variant)
    with shortened(model.base_model, family_of(read_config(source(variant)), variant), HALVES, found):
        expected = outputs(model, variant)
    return difference(outputs(loaded(shorter(variant, found, HALVES)), variant), expected)


def middle_difference(variant: str) -> float:
    """The captured state in the middle of a block against the block's input and what its attention is said to add."""
    family, given = family_of(read_config(source(variant)), variant), samples(variant)
    wanted = Wanted(frozenset({1, 1.5}), frozenset({1.5}))
    found = next(capture(whole(variant).base_model, family, [given], wanted))
    expected = found.hidden_states[1] + found.mlp_output[1.5]
    return difference(found.hidden_states[1.5][given.mask], expected[given.mask])


def generates(variant: str) -> bool:
    """Whether the shortened model generates the same with a cache as without."""
    model = folded_into_mlp(variant)
    given = {
        "input_ids": samples(variant).input_ids[:1],
        "max_new_tokens": 6,  # the prompt is longer than a window
        "do_sample": False,
        "eos_token_id": None,
    }
    given["attention_mask"] = torch.ones_like(given["input_ids"])
    return torch.equal(model.generate(**given, use_cache=True), model.generate(**given, use_cache=False))


def config_consistent(variant: str) -> bool:
    """Whether the kept blocks are of the kinds that they were: lists by block, MLPs dense or mixed, attention."""
    before, after = whole(variant), folded_into_mlp(variant)
    family = family_of(read_config(source(variant)), variant)
    old, new = (family.block_modules(model.base_model) for model in (before, after))
    lists = [getattr(model.config, key, None) for key in family.lists for model in (before, after)]
    kept = [
        pair[0] is None or [pair[0][block] for block in KEPT] == list(pair[1])
        for pair in zip(lists[::2], lists[1::2], strict=True)
    ]
    same = [_kind(old[block]) == _kind(new[number]) for number, block in enumerate(KEPT)]
    return len(new) == len(KEPT) and all(kept) and all(same)


def _kind(block: torch.nn.Module) -> list[tuple[str, str, object]]:
    """Types of a block's modules, and how far their attention reaches."""
    return [(name, type(one).__name__, getattr(one, "sliding_window", None)) for name, one in block.named_modules()]


@cache
def row(variant: str) -> dict[str, str]:
    """The line of a family in docs/models.md."""

    def said(holds: bool) -> str:
        return "yes" if holds else "NO"

    def folded(**fit: object) -> str:
        return said(fold_difference(variant, **fit) <= EXACT) if takes(variant, **fit) else "-"

    family = FAMILIES[variant.partition(",")[0]]
    return {
        "`model_type`": variant,
        "T goes into": ", ".join(f"`{name}`" for name in weights(variant)),
        "M right": said(mlp_output_difference(variant) <= EXACT),
        "fold exact": folded(placement="mlp") + (" (direction)" if family.post_norm else ""),
        "`down_proj`": folded(placement="down_proj"),
        "`recycle`": folded(placement="down_proj", recycle=INPUT),
        "`removed`": folded(placement="down_proj", recycle=REMOVED),
        "`block`": folded(placement="block"),
        "`upstream`": folded(placement="upstream"),
        "generates": "-" if family.modality == "image" else said(generates(variant)),
        "config consistent": said(config_consistent(variant)),
    }


def table() -> str:
    """All families, in markdown."""
    rows = [row(variant) for variant in VARIANTS]
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(one.values()) for one in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write(path: Path) -> None:
    """Put the table in the place of the one in a page."""
    lines = path.read_text(encoding="utf-8").split("\n")
    first = next(number for number, line in enumerate(lines) if line.startswith("| `model_type` |"))
    last = next(number for number, line in enumerate(lines) if number > first and not line.startswith("|"))
    path.write_text("\n".join([*lines[:first], table(), *lines[last:]]), encoding="utf-8")


if __name__ == "__main__":
    write(DOCS)
