"""Compare blocks before and after a cut: what a block is made of may depend on its number in many ways."""

import json
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import nn

from replaceme.core.errors import ReplaceMeError, in_one_line
from replaceme.core.places import shown
from replaceme.models.config_defaults import accepted
from replaceme.models.family import Family
from replaceme.models.model_config import pruned_config, spelled_out
from replaceme.probing.blocks import token_ids
from replaceme.probing.model import build
from replaceme.probing.tiny import VOCABULARY, small

NUMBERED = {"layer_idx", "layer_id", "layer_number", "layer_index", "block_idx", "block_id", "layer_num", "idx"}
Kind = list[tuple[str, str, tuple[tuple[str, Any], ...], tuple[tuple[str, Any], ...]]]


def kind_of(block: nn.Module) -> Kind:
    """Return what a block is made of: its modules with their plain attributes, and buffers that no checkpoint holds
    (of a model without weights their shapes).
    """
    found: Kind = []
    for name, module in block.named_modules():
        plain = {
            key: value
            for key, value in vars(module).items()
            if isinstance(value, str | int | float | bool | type(None)) and key not in NUMBERED
        }
        buffers = [
            (key, tuple(one.shape if one.is_meta else one.flatten().tolist()))
            for key, one in module.named_buffers(recurse=False)
            if key in module._non_persistent_buffers_set
        ]
        found.append((name, type(module).__name__, tuple(sorted(plain.items())), tuple(buffers)))
    return found


def kinds_of(config: dict[str, Any], family: Family, where: str) -> list[Kind]:
    """Return the kind of each block of a config.json; errors as those of transformers."""
    model = build(small(accepted(config, where).to_dict()))
    return [kind_of(block) for block in family.block_modules(model.base_model)]


def changed_block(
    config: dict[str, Any], family: Family, groups: Sequence[tuple[int, int]], kinds: Sequence[Kind], where: str
) -> int | None:
    """Return the first block that the config without a cut's blocks makes of another kind, None where there is none."""
    gone = {block for start, end in groups for block in range(start, end)}
    kept = [block for block in range(len(kinds)) if block not in gone]
    model = build(small(accepted(pruned_config(config, groups), where).to_dict()))
    pairs = zip(kept, family.block_modules(model.base_model), strict=True)
    found = next((block for block, after in pairs if kinds[block] != kind_of(after)), None)
    if found is None:
        with torch.no_grad():  # some classes need a block of each kind, to make masks or count tokens in a cache
            model(input_ids=token_ids(VOCABULARY), **({"use_cache": True} if family.predicts else {}))
    return found


def check_kinds(config: dict[str, Any], family: Family, groups: Sequence[tuple[int, int]], where: str) -> None:
    """Raise ReplaceMeError where a cut makes config.json say another kind for a block that stays."""
    fault = fault_of(config, family, groups)
    if fault is not None:
        raise ReplaceMeError(f"{where}: {fault}; take another cut")


def fault_of(config: dict[str, Any], family: Family, groups: Sequence[tuple[int, int]]) -> str | None:
    """Return why a model cannot do without the blocks of a cut, None where it can: its class may need a block of each
    kind, or its config.json say another kind for a block that stays. What was found is kept.
    """
    if not family.kinds:
        return None
    return _fault(json.dumps(config, sort_keys=True), family, tuple(map(tuple, groups)))


@cache
def _fault(config_text: str, family: Family, groups: tuple[tuple[int, int], ...]) -> str | None:
    span = shown(groups)
    try:
        config, kinds = _whole(config_text, family)
        block = changed_block(config, family, groups, kinds, "config.json")
    except (ReplaceMeError, RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        return f"without blocks {span} transformers cannot make the model ({in_one_line(error)})"
    if block is None:
        return None
    return f"without blocks {span}, block {block} would be of another kind, as config.json cannot say otherwise"


@cache
def _whole(config_text: str, family: Family) -> tuple[dict[str, Any], list[Kind]]:
    """Return a config.json with all its entries, and the kinds of its blocks."""
    config = json.loads(config_text)
    config = spelled_out(config, family, accepted(config, "config.json"))
    return config, kinds_of(config, family, "config.json")
