"""Answers from a config.json: the family of a model, the transforms that fit it, its config when it is shorter."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from replaceme.config.units import PARAMETERS
from replaceme.core.errors import ReplaceMeError, printable
from replaceme.core.places import Span, kept_halves, shown
from replaceme.dequantising.described import KEY as QUANTISED
from replaceme.dequantising.described import needs_dequantising
from replaceme.models.config_json import LARGEST
from replaceme.models.custom_code import is_separate
from replaceme.models.families import FAMILIES
from replaceme.models.family import Family
from replaceme.models.language_model import check_purpose
from replaceme.models.probed import described, names_of, takes_pictures
from replaceme.models.text_encoder import is_text_encoder
from replaceme.placements.mlp import Mlp
from replaceme.placements.placement import INPUT, REMOVED
from replaceme.placements.registry import PLACEMENTS

if TYPE_CHECKING:
    from replaceme.config.calibrations import CalibrationConfig
    from replaceme.config.cuts import CutConfig

# entries by block that are of its attention, and of its MLP
OF_ATTENTION = ("layer_types", "no_rope_layers")
OF_MLP = ("mlp_layer_types", "decoder_sparse_step", "mlp_only_layers")
# config entries that are lists of numbers of blocks, counted from 0 or from 1; those that count the first blocks, which
# are of another kind; those with a value for each block and then for layers that predict further tokens
FROM_0 = ("mlp_only_layers", "full_attn_idxs", "moe_layers", "hybrid_layer_ids", "attn_layer_indices")
NUMBERS = {**dict.fromkeys(FROM_0, 0), "ple_layer_ids": 1}
FIRST = ("first_k_dense_replace", "num_dense_layers", "num_hash_layers")
BEYOND = ("compress_ratios",)
PADDING = 1  # the padding token of RoBERTa and its kin, where config.json does not say


def family_of(config: dict[str, Any], where: str) -> Family:
    """Return the family of a config.json; raises ReplaceMeError for an unsupported `model_type`."""
    model_type = config["model_type"]
    if is_separate(config):
        raise ReplaceMeError(
            f"{where}: already made smaller, with layers of its own (placement block, or another method); give the "
            "original model"
        )
    if "auto_map" in config:
        raise ReplaceMeError(
            f"{where}: config.json wants to run the checkpoint's own code (auto_map), which is not allowed; remove "
            "`auto_map` where a class of transformers does"
        )
    if config.get(QUANTISED):
        raise needs_dequantising(config[QUANTISED], where)
    encoder = is_encoder(config)
    if model_type not in FAMILIES and not encoder:
        named = names_of(config)
        check_purpose(named.sizes(config) if named else config, where)
    family = replace(described(config, where).of(config), predicts=not encoder)
    if model_type in FAMILIES and not encoder:
        check_purpose(config, where)
    sizes = family.sizes(config)
    for key in (family.depth, family.width):
        found = sizes.get(key)
        if not isinstance(found, int) or isinstance(found, bool) or not 1 <= found <= LARGEST:
            shown = "a huge number" if isinstance(found, int) and found > LARGEST else printable(repr(found)[:60])
            raise ReplaceMeError(
                f"{where}: config.json gives no usable `{key}` (found {shown}); take the config.json that belongs to "
                "the weights"
            )
    for key, value, reason in family.refused:
        if config.get(key) == value:
            raise ReplaceMeError(f"{where}: {key} is {value}: {reason}, so nothing can be folded; take another model")
    return family


def is_encoder(config: dict[str, Any]) -> bool:
    """Return whether a model encodes images or text, without a next token or its loss."""
    return is_of_images(config) or is_text_encoder(config)


def is_of_images(config: dict[str, Any]) -> bool:
    """Return whether a model encodes images."""
    return config["model_type"] in FAMILIES and FAMILIES[config["model_type"]].modality == "image"


def has_text_tower(config: dict[str, Any]) -> bool:
    """Return whether an image encoder comes with a text encoder, so that images and texts can be compared."""
    alone = any(name.endswith("ForImageClassification") for name in config.get("architectures") or [])
    return is_of_images(config) and FAMILIES[config["model_type"]].section is not None and not alone


def check_calibration(config: dict[str, Any], calibration: "CalibrationConfig", where: str) -> None:
    """Raise ReplaceMeError where a model of text is calibrated on images, or the other way round."""
    if is_of_images(config) and calibration.images is None:
        raise ReplaceMeError(f"{where}: an encoder of images, which cannot be calibrated on text; give `images`")
    if not is_of_images(config) and calibration.images is not None:
        what = "an encoder of text" if is_encoder(config) else "a language model"
        raise ReplaceMeError(f"{where}: {what}, which cannot be calibrated on images; give `dataset`")
    if calibration.pictures is not None and not takes_pictures(config):
        raise ReplaceMeError(f"{where}: a model of text alone, whose prompts hold no pictures; drop `pictures`")


def check_cut(config: dict[str, Any], cut: "CutConfig", where: str) -> None:
    """Raise ReplaceMeError where a cut, or its metric, needs a part that the model lacks."""
    if (is_encoder(config) and cut.needs_loss) or (is_of_images(config) and cut.position == "last"):
        what = f"metric {cut.metric}" if cut.needs_loss else "position last"
        raise ReplaceMeError(f"{where}: {what} is of language models, this is an encoder; drop it")
    check_unit(config, cut.of, where)
    if cut.in_middle:
        (check_sublayers if cut.search == "sublayers" else check_halves)(family_of(config, where), where)


def check_unit(config: dict[str, Any], unit: str, where: str) -> None:
    """Raise ReplaceMeError where a share of a model is asked for in a unit of language models."""
    if unit != PARAMETERS and is_encoder(config):
        raise ReplaceMeError(f"{where}: a share of {unit} is of language models, this is an encoder; drop `of`")


def check_fit(config: dict[str, Any], where: str, placement: str = Mlp.name, recycle: str | None = None) -> None:
    """Raise ReplaceMeError where a fit could not be written into a model's weights; `recycle`: what its recycled
    neurons are made from, if it has any.
    """
    family = family_of(config, where)
    if family.spread and placement != Mlp.name:
        raise several_streams(f"placement {placement}", f"placement {Mlp.name}", where)
    PLACEMENTS[placement].check(family, config, where)
    if recycle == INPUT and family.gate is None:
        raise ReplaceMeError(f"{where}: its MLPs have no gate behind a norm, so no neuron can be recycled; drop it")
    if recycle == REMOVED and family.mlp_norm is None:
        raise ReplaceMeError(
            f"{where}: the norm before its MLPs is not known by name, or they are mixtures of experts, so no neuron of "
            "another block can be put there; drop it"
        )


def several_streams(what: str, instead: str, where: str) -> ReplaceMeError:
    """Return the error for what is defined on one residual stream, and a model whose blocks keep several."""
    return ReplaceMeError(f"{where}: {what} is of one residual stream, its blocks keep several; use {instead}")


def longest_sequence(config: dict[str, Any], where: str) -> int | None:
    """Return how many tokens the model's positions reach, None where config.json does not say."""
    family = family_of(config, where)
    sizes = family.sizes(config)
    longest = None if family.positions is None else sizes.get(family.positions)
    if longest is None or not family.padded_positions:
        return longest
    padding = sizes.get("pad_token_id")
    return longest - (PADDING if padding is None else padding) - 1


def check_length(config: dict[str, Any], tokens: int, where: str) -> None:
    """Raise ReplaceMeError where sequences of `tokens` tokens are longer than the model's positions reach."""
    longest = longest_sequence(config, where)
    if longest is not None and tokens > longest:
        raise ReplaceMeError(f"{where}: sequences of {tokens} tokens, but the model takes {longest}; use shorter ones")


def check_halves(family: Family, where: str) -> None:
    """Raise ReplaceMeError for a family whose blocks have no middle to begin a cut in."""
    if family.attention is None:
        raise ReplaceMeError(
            f"{where}: a cut cannot begin in the middle of its blocks, which are not known to be an attention and then "
            "an MLP; cut whole blocks"
        )


def check_sublayers(family: Family, where: str) -> None:
    """Raise ReplaceMeError for a family in whose checkpoints no block can lack its attention or its MLP."""
    check_halves(family, where)
    if family.mixture or not family.own_layers:
        raise ReplaceMeError(f"{where}: single sublayers of mixtures of experts are not left out; cut whole blocks")


def pruned_config(config: dict[str, Any], groups: Sequence[Span]) -> dict[str, Any]:
    """Return config.json without what each group [start, end) removes: the number of blocks and every entry by block.

    Raises ReplaceMeError where the halves of a new block come from blocks of which an entry says different things.
    """
    family = described(config, "config.json")
    sizes = family.sizes(config)
    kept = kept_halves(sizes[family.depth], groups)
    pruned, of_mlp = (with_blocks(sizes, family.depth, blocks, family.lists) for blocks in _by_half(kept))
    for key, value in of_mlp.items():
        if key in (*OF_MLP, *FIRST):
            pruned[key] = value
        elif pruned[key] != value and key not in OF_ATTENTION:
            raise ReplaceMeError(
                f"config.json: {printable(key)} differs between the blocks that cut {shown(groups)} makes one of; take "
                "another cut"
            )
    if family.rooted:
        pruned[family.scaled_by] = sizes[family.scaled_by] * (len(kept) / sizes[family.depth]) ** 0.5
    return pruned if family.section is None else {**config, family.section: pruned}


def _by_half(kept: Sequence[tuple[int | None, int | None]]) -> tuple[list[int], list[int]]:
    """Return the blocks that entries by block are taken from, for attentions and MLPs.

    Where a block lacks an attention, the last one before it counts: caches go by the first block of each kind. Where it
    lacks an MLP, its own attention.
    """
    attentions: list[int] = []
    for attention, _ in kept:
        attentions.append(attentions[-1] if attention is None else attention)
    return attentions, [other if mlp is None else mlp for (_, mlp), other in zip(kept, attentions, strict=True)]


def spelled_out(config: dict[str, Any], family: Family, loaded: Any) -> dict[str, Any]:
    """Return config.json with every entry that goes by block numbers, as the config class of transformers has it."""
    if family.section is not None:
        inside = spelled_out(config[family.section], replace(family, section=None), getattr(loaded, family.section))
        return {**config, family.section: inside}
    found = dict(config)
    for key in (*family.lists, *((*NUMBERS, *FIRST) if family.kinds else ())):
        derived = getattr(loaded, key, None)
        if derived is not None and config.get(key) is None:
            found[key] = list(derived) if isinstance(derived, list | tuple) else derived
    return found


def with_blocks(config: dict[str, Any], depth: str, kept: Sequence[int], lists: Sequence[str]) -> dict[str, Any]:
    """Return a config of the kept blocks; `depth` is the entry of their number, `lists` have one entry a block."""
    num_blocks = config[depth]
    pruned = {**config, depth: len(kept), **_dense_blocks(config, kept), **_stages(config, kept)}
    for key in lists:
        values = config.get(key)
        if values is None:
            continue
        if len(values) != num_blocks:
            raise ReplaceMeError(f"config.json: {key} has {len(values)} entries for {num_blocks} blocks")
        pruned[key] = [values[block] for block in kept]
    for key, value in config.items():
        if key in NUMBERS and key not in lists and isinstance(value, list) and key != "mlp_only_layers":
            first = NUMBERS[key]
            pruned[key] = [new + first for new, block in enumerate(kept) if block + first in value]
        if key in BEYOND and key not in lists and isinstance(value, list) and len(value) >= num_blocks:
            pruned[key] = [value[block] for block in kept]
        if by_number(key, value):
            numbered = {int(number): one for number, one in value.items()}
            pruned[key] = {str(new): numbered[block] for new, block in enumerate(kept) if block in numbered}
    return pruned


def by_number(key: str, value: Any) -> bool:
    """Return whether a config entry maps numbers of blocks to what differs in them."""
    return key.startswith("per_layer") and isinstance(value, dict) and all(str(one).isdigit() for one in value)


def _stages(config: dict[str, Any], kept: Sequence[int]) -> dict[str, Any]:
    """Return the stages of a backbone (stem, then one for each block), and its output stages, by their new numbers."""
    put_out = config.get("out_indices")
    if put_out is None and config.get("out_features") is not None:
        put_out = [_stage(name, config["num_hidden_layers"]) for name in config["out_features"]]
    names = ["stem", *(f"stage{number + 1}" for number in range(len(kept)))]
    if put_out is None:
        return {"stage_names": names} if "stage_names" in config else {}
    whole = config["num_hidden_layers"] + 1
    numbers = sorted({sum(block < stage % whole for block in kept) for stage in put_out})
    return {"stage_names": names, "out_indices": numbers, "out_features": [names[number] for number in numbers]}


def _stage(name: str, num_blocks: int) -> int:
    """Return the number of a backbone's stage by its name."""
    stages = {"stem": 0} | {f"stage{number}": number for number in range(1, num_blocks + 1)}
    if name not in stages:
        raise ReplaceMeError(f"config.json: `out_features` names {printable(name)}, of {num_blocks} stages; correct it")
    return stages[name]


def _dense_blocks(config: dict[str, Any], kept: Sequence[int]) -> dict[str, Any]:
    """Return the config entries that say which kept blocks of a mixture of experts have a single MLP."""
    found: dict[str, Any] = {}
    for key in FIRST:
        if config.get(key) is not None:
            found[key] = sum(block < config[key] for block in kept)
    if config.get("moe_layer_freq", 1) != 1:
        raise ReplaceMeError(f"config.json: moe_layer_freq is {config['moe_layer_freq']}; only 1 is supported")
    if "decoder_sparse_step" in config or "mlp_only_layers" in config:
        step, named = config.get("decoder_sparse_step", 1), config.get("mlp_only_layers") or []
        dense = [number for number, block in enumerate(kept) if block in named or (block + 1) % step]
        found |= {"decoder_sparse_step": 1, "mlp_only_layers": dense}
    return found


def pick_device(device: str) -> str:
    """Return `cuda` or `cpu` for a configured device; auto takes the GPU when there is one."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise ReplaceMeError("device: cuda was asked for, but torch sees no GPU; use `device: auto`")
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def pick_dtype(dtype: str, device: str, config: dict[str, Any]) -> str:
    """Return the name of the torch type of a forward pass: the checkpoint's on a GPU, float32 on a CPU, unless
    configured.
    """
    if dtype != "auto":
        return dtype
    return stored_dtype(config) if device == "cuda" else "float32"


def stored_dtype(config: dict[str, Any]) -> str:
    """Return the name of the torch type of a checkpoint's weights."""
    return config.get("dtype") or config.get("torch_dtype") or "float32"
