"""Describe the architecture of a config.json by what a tiny model of it does: the family that is to be proved."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from replaceme.core.errors import in_one_line
from replaceme.core.quiet import quiet_transformers
from replaceme.models.config_defaults import accepted
from replaceme.models.family import Family
from replaceme.models.probed import names_of
from replaceme.models.text_encoder import is_text_encoder
from replaceme.probing.blocks import Blocks, find_blocks
from replaceme.probing.kinds import kind_of
from replaceme.probing.model import build
from replaceme.probing.stored import Stored, stored_names
from replaceme.probing.tiny import VOCABULARY, lists_by_block, tiny
from replaceme.probing.unproved import Unproved
from replaceme.probing.writers import Writer, find_writers

DEEPEST = 1000


@dataclass(frozen=True)
class Finding:
    """The family of a tiny config, not proved yet; `config` is what the tiny model was made of."""

    family: Family
    config: dict[str, Any]
    blocks: str
    writers: tuple[Writer, ...]


def tiny_of(config: dict[str, Any], where: str) -> dict[str, Any]:
    """Return the tiny config of a config.json; raises Unproved where its class has no number of blocks or no width."""
    names = names_of(config)
    if names is None:
        raise Unproved("transformers has neither a causal language model nor a masked one of this type")
    if ((config.get(names.section) or {}) if names.section else config).get(names.depth, 0) > DEEPEST:
        raise Unproved(f"it has more than {DEEPEST} blocks")
    return tiny(_complete(config, names, where), names)


def _complete(config: dict[str, Any], names: Family, where: str) -> dict[str, Any]:
    """Return every entry of a config.json, as its class writes it, and the sizes that the class only computes."""
    read = accepted(config, where)
    complete = read.to_dict()
    sizes, read = names.sizes(complete), getattr(read, names.section) if names.section else read
    for key in (names.depth, names.width):
        if not isinstance(sizes.setdefault(key, getattr(read, key, None)), int):
            raise Unproved(f"its config has no number `{key}`")
    return complete


def describe(config: dict[str, Any], tiny_config: dict[str, Any], folder: Path) -> Finding:
    """Return what is found in the tiny model, which is saved to `folder`; raises Unproved where something is not."""
    names = names_of(config)
    try:
        model = build(tiny_config)
    except Exception as error:  # of the class, for whatever the small sizes break
        raise Unproved(f"transformers cannot make it small ({in_one_line(error)})") from error
    try:
        blocks = find_blocks(model, VOCABULARY)
    except Unproved:
        raise
    except Exception as error:
        raise Unproved(f"the small model does not run ({in_one_line(error)})") from error
    if model.config.model_type != config["model_type"]:
        raise Unproved(f"transformers takes only its language model, {model.config.model_type}: give that alone")
    depth = names.sizes(tiny_config)[names.depth]
    if len(blocks.calls) != depth:
        raise Unproved(f"{blocks.path} has {len(blocks.calls)} blocks, `{names.depth}` is {depth}")
    kinds = [repr(kind_of(call.block)) for call in blocks.calls]
    tried = [call for number, call in enumerate(blocks.calls) if kinds.index(kinds[number]) == number]
    tried = replace(blocks, calls=(*tried, blocks.calls[-1]))
    found, closing = _writing(tried)
    scalar = scalar_of(found, tried)
    writers = common(found, tried)
    with quiet_transformers():
        model.save_pretrained(folder)
    stored = stored_names(model, blocks.path, folder)
    complete = names.sizes(_complete(config, names, "config.json"))
    family = replace(
        names,
        **_places(model, blocks, stored, writers),
        **({"scalar": scalar} if scalar else _scale(writers, names.sizes(tiny_config))),
        head=() if is_text_encoder(config) else _head(model, stored),
        predicts=not is_text_encoder(config),
        padded_positions=_padded_positions(model, names.sizes(tiny_config).get(names.positions)),
        closing_norm=closing,
        closing_stored=stored.module_of(closing),
        tied=bool(getattr(type(model.config)(), "tie_word_embeddings", False)),
        lists=tuple(lists_by_block(complete, complete[names.depth])),
        derived_lists=True,
        kinds=len(set(kinds)) > 1,
        own_layers=False,
    )
    return Finding(family, tiny_config, blocks.path, tuple(writers))


def _writing(blocks: Blocks) -> tuple[list[list[Writer]], str | None]:
    """Return the writers of each block, and the norm of the whole stream that blocks end with, None without."""
    try:
        return [find_writers(call) for call in blocks.calls], None
    except Unproved as error:
        closed = [call.closed() for call in blocks.calls]
        norms = {None if call is None else call.closing_norm for call in closed}
        if norms == {None} or len(norms) > 1:
            raise error
        return [find_writers(call) for call in closed], norms.pop()


def common(found: Sequence[Sequence[Writer]], blocks: Blocks) -> list[Writer]:
    """Return the writers of all blocks, one for each module; raises Unproved where blocks differ in how they write."""
    joined: dict[str, Writer] = {}
    for writers in found:
        for one in writers:
            known = joined.setdefault(one.module, one)
            weights = tuple(dict.fromkeys([*known.weights, *one.weights]))
            if known.spread != one.spread:
                raise Unproved(f"blocks found at {blocks.path}, but {one.module} goes into streams in different ways")
            if (known.factor, known.norm, known.offset) != (one.factor, one.norm, one.offset):
                raise Unproved(
                    f"blocks found at {blocks.path}, but {one.module} is added times {known.factor} in one block and "
                    f"times {one.factor} in another"
                )
            joined[one.module] = replace(known, weights=weights)
    everywhere = [
        one
        for one in joined.values()
        if all(_lacks(call.block, one.module) or one.module in {other.module for other in writers}
               for call, writers in zip(blocks.calls, found, strict=True))
    ]  # fmt: skip
    for call in blocks.calls:
        if all(_lacks(call.block, one.module) for one in everywhere):
            raise Unproved(f"blocks found at {blocks.path}, but not every block adds something in the same way")
    if len({(one.norm is not None, one.offset) for one in everywhere}) > 1 or (
        len(everywhere) > 1 and everywhere[0].norm is not None
    ):
        raise Unproved(f"blocks found at {blocks.path}, but only some have a norm behind {everywhere[0].module}")
    return everywhere


def scalar_of(found: list[list[Writer]], blocks: Blocks) -> str | None:
    """Return the tensor [1] of a block that is the factor on M in every block, of which `found` then is without."""
    for name, one in blocks.calls[0].block.state_dict().items():
        if one.numel() != 1 or not one.is_floating_point():
            continue
        values = [float(call.block.state_dict().get(name, torch.zeros(1))) for call in blocks.calls]
        pairs = [(value, writer.factor) for value, writers in zip(values, found, strict=True) for writer in writers]
        if all(abs(value - factor) < 1e-3 for value, factor in pairs):
            found[:] = [[replace(writer, factor=1.0) for writer in writers] for writers in found]
            return name
    return None


def _lacks(block: nn.Module, module: str) -> bool:
    return module not in dict(block.named_modules())


def _places(model: nn.Module, blocks: Blocks, stored: Stored, writers: Sequence[Writer]) -> dict[str, Any]:
    """Return where the blocks and their parts lie, in the checkpoint and in the model."""
    base = blocks.path.removeprefix(f"{model.base_model_prefix}.")
    weights = list(dict.fromkeys(one for writer in writers for one in writer.weights))
    fold: dict[str, bool] = {}
    for weight in weights:
        fold |= stored.places(weight)
    turned = tuple(name for name, transposed in fold.items() if transposed)
    norm = writers[0].norm
    return {
        "blocks": stored.blocks,
        "spellings": _spellings(stored.blocks, model.base_model_prefix),
        "modules": None if stored.blocks == blocks.path else base,
        "mlp_output": writers[0].module,
        "further": tuple(one.module for one in writers[1:]),
        "fold": tuple(fold),
        "transposed": bool(turned) and len(turned) == len(fold),
        "turned": turned if len(turned) < len(fold) else (),
        "gate": None,
        "up": None,
        "post_norm": None if norm is None else stored.name_of(norm),
        "gain_offset": writers[0].offset,
        "spread": writers[0].spread,
        "in_place": _in_place(blocks, writers),
        "tuples": blocks.tuples,
        "handed": blocks.handed,
    }


def _spellings(blocks: str, prefix: str) -> tuple[str, ...]:
    """Return how a checkpoint of another class names the same blocks: with the base model's prefix or without."""
    bare = blocks.removeprefix(f"{prefix}.")
    return (f"{prefix}.{bare}",) if blocks == bare else (bare,)


def _padded_positions(model: nn.Module, positions: int | None) -> bool:
    """Return whether an embedding of positions leaves room for a padding token, behind which they begin."""
    tables = [one for one in model.modules() if isinstance(one, nn.Embedding)]
    return any(one.num_embeddings == positions and one.padding_idx is not None for one in tables)


def _scale(writers: Sequence[Writer], config: dict[str, Any]) -> dict[str, Any]:
    """Return the config entry of the factor on M; raises Unproved where none has its value."""
    factor = writers[0].factor
    if factor == 1.0:
        return {}
    entries = [key for key, value in config.items() if isinstance(value, float) and abs(value - factor) < 1e-3]
    if not entries:
        raise Unproved(f"{writers[0].module} is added times {factor}, which no entry of its config is")
    return {"scaled_by": sorted(entries, key=lambda key: ("residual" not in key, key))[0]}


def _in_place(blocks: Blocks, writers: Sequence[Writer]) -> bool:
    """Return whether a block changes the tensor that a module has put out."""
    call = blocks.calls[0]
    for one in writers:
        if _lacks(call.block, one.module):
            continue
        kept: list[torch.Tensor] = []

        def keep(_: Any, inputs: Any, output: Any, kept: list = kept) -> None:
            found = output[0] if isinstance(output, tuple) else output
            kept.extend([found, found.clone()])

        handle = call.block.get_submodule(one.module).register_forward_hook(keep)
        call.again()
        handle.remove()
        if not torch.equal(*kept):
            return True
    return False


def _head(model: nn.Module, stored: Stored) -> tuple[str, ...]:
    """Return the names of the head in checkpoints."""
    head = model.get_output_embeddings()
    paths = [name for name, one in model.named_modules() if one is head]
    if not paths:
        raise Unproved("it has no head that puts out logits of tokens")
    return tuple(dict.fromkeys([stored.outside(f"{paths[0]}.weight").removesuffix(".weight"), paths[0]]))
