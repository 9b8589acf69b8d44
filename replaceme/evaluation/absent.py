"""A loaded model that runs without some of its blocks, attentions or MLPs, and computes nothing in their place.

It takes the time and the cache of the shortened model; what it predicts is of no use, as nothing takes their place.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from replaceme.activations.hooks import skipped
from replaceme.core.places import HALF, Span, is_gone
from replaceme.models.custom_code import stand_ins
from replaceme.models.family import Family

if TYPE_CHECKING:
    from torch import nn

ATTENTION, MLP, BLOCK = "attention", "mlp", "block"


def parts_gone(num_blocks: int, groups: Sequence[Span]) -> dict[str, list[int]]:
    """Return the numbers of the blocks that a cut removes whole, and of those that lose one of their halves."""
    found: dict[str, list[int]] = {BLOCK: [], ATTENTION: [], MLP: []}
    for number in range(num_blocks):
        match is_gone(number, groups), is_gone(number + HALF, groups):
            case True, True:
                found[BLOCK].append(number)
            case True, False:
                found[ATTENTION].append(number)
            case False, True:
                found[MLP].append(number)
    return found


@contextmanager
def without_cut(model: "nn.Module", family: Family, groups: Sequence[Span]) -> Iterator[None]:
    """Within it a model runs without what a cut removes."""
    with ExitStack() as undone:
        for part, numbers in parts_gone(len(family.block_modules(model.base_model)), groups).items():
            undone.enter_context(without(model, family, numbers, part))
        yield


@contextmanager
def without(model: "nn.Module", family: Family, numbers: Sequence[int], part: str) -> Iterator[None]:
    """Within it a model runs without a part of each of some blocks."""
    from replaceme.models.modeling_replaceme import CHANGES

    blocks = family.block_modules(model.base_model)
    with ExitStack() as undone:
        for number in numbers:
            if part == BLOCK:
                undone.callback(skipped(blocks[number], family))
                continue
            inside = (name for name, _ in blocks[number].named_parameters())
            absent = stand_ins(family, inside, of_attention=part == ATTENTION)
            for name in absent:
                undone.callback(setattr, blocks[number], name, getattr(blocks[number], name))
            CHANGES["absent"](model, {f"{family.blocks}.{number}.{name}": kind for name, kind in absent.items()})
        yield
