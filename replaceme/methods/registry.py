"""Other methods that make a model smaller, at the size of the same cut, so that one table holds them beside ReplaceMe.

A fit of the config names its `method`, and goes through the steps of any other: `fit` reads the model and the text and
writes what was found (transform.safetensors, here a `Found`, and fit.json), `merge` makes the checkpoint of it, tensor
by tensor, `verify` compares that with the original model run as the method says, `evaluate` and `speed` do not know one
from another. The cut gives the size: a method aims at the parameters that are left without the cut's blocks, from
below, and the ratio of a table is that of the parameters counted in the loaded model.

A method is a module of this package, named as in the config, with

    fit(passes, config, cut, record) -> Found
    content(checkpoint, cut, found) -> Content           what the checkpoint holds
    running(model, family, cut, found)                   context in which the original model runs as the new one does

and a line in METHODS. Where the new model is of no architecture of transformers, its content names the layers that
`modeling_replaceme` makes, and the checkpoint brings that code. Methods are imported by name, so that an edit of one
reruns the jobs of no other (see `code_hash`); the rules add its module to the fingerprint of its own.
"""

import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from replaceme.config.cuts import CutConfig
from replaceme.config.methods import LlmStreamlineConfig, MethodConfig
from replaceme.core.cut_record import Cut
from replaceme.core.errors import ReplaceMeError
from replaceme.models.families import FAMILIES
from replaceme.models.model_config import check_fit, family_of, several_streams
from replaceme.models.model_record import Sizes

if TYPE_CHECKING:
    from torch import nn

    from replaceme.config.fits import FitConfig
    from replaceme.methods.found import Found
    from replaceme.models.checkpoints import Checkpoint
    from replaceme.models.family import Family
    from replaceme.surgery.edits import Content


@dataclass(frozen=True)
class About:
    """The name of a method, its paper on arXiv, its effect on `{blocks}` blocks' worth, and the models it refuses.

    `refusal` gives the reason why a family, or the config.json of one model of it, cannot be done, or None.
    """

    title: str
    arxiv: str
    sentence: str
    refusal: "Callable[[Family, dict[str, Any]], str | None]"


def _no_single_layers(family: "Family", config: dict[str, Any]) -> str | None:
    if not family.predicts:
        return "an encoder"
    if family.mixture:
        return "its MLPs are mixtures of experts"
    if family.transposed or not family.own_layers:
        return "its linear layers are not torch's, or transformers renames their tensors"
    return None


def _no_block_to_train(family: "Family", config: dict[str, Any]) -> str | None:
    if not family.predicts:
        return "an encoder"
    if family.kinds and not family.own_layers:
        return "its blocks are of several kinds"
    return "its blocks are mixtures of experts" if family.mixture else None


ROTATABLE = tuple(model_type for model_type, family in FAMILIES.items() if family.rotatable)


def _no_rotation(family: "Family", config: dict[str, Any]) -> str | None:
    if family.rotatable:
        return None
    return f"the residual stream is rotated in {', '.join(ROTATABLE)} only"


def _no_known_groups(family: "Family", config: dict[str, Any]) -> str | None:
    if family.rotatable:
        return None
    return f"what goes with a head or a channel is known in {', '.join(ROTATABLE)} only"


def _no_common_block(family: "Family", config: dict[str, Any]) -> str | None:
    if not family.rotatable:
        return f"what goes with a head or a neuron is known in {', '.join(ROTATABLE)} only"
    biased = next((name for name in ("attention_bias", "mlp_bias") if config.get(name)), None)
    return None if biased is None else f"its projections to the stream have biases ({biased})"


METHODS = {
    "svd_llm": About(
        "SVD-LLM",
        "2403.07378",
        "the linear layers of its blocks are pairs of factors, as small together as {blocks} blocks fewer",
        _no_single_layers,
    ),
    "llm_streamline": About(
        "LLM-Streamline",
        "2403.19135",
        "blocks {span} (of 0 .. {final}, ends not included) were removed and the block before, as a {network}, was "
        "trained to do their work",
        _no_block_to_train,
    ),
    "slicegpt": About(
        "SliceGPT",
        "2401.15024",
        "the residual stream was rotated and cut to the {width} channels that make the model as small as {blocks} "
        "blocks fewer",
        _no_rotation,
    ),
    "llm_pruner": About(
        "LLM-Pruner",
        "2305.11627",
        "blocks {pruned} (end not included) kept {heads} heads of keys and values and {channels} channels of the MLP "
        "each, which makes the model as small as {blocks} blocks fewer",
        _no_known_groups,
    ),
    "flattengpt": About(
        "FlattenGPT",
        "2602.08858",
        "blocks {span} (of 0 .. {final}, ends not included) were put side by side with the block before, and of the "
        "heads and neurons of all those kept that say most, as many as one block has",
        _no_common_block,
    ),
}


def check_section(config: dict[str, Any], fit: MethodConfig, where: str) -> None:
    """Raise ReplaceMeError where a fit section cannot be done with the model of a config.json."""
    if fit.is_other:
        check_method(config, fit.method, where)
        if isinstance(fit, LlmStreamlineConfig) and fit.network == "mlp" and config["model_type"] not in ROTATABLE:
            raise ReplaceMeError(
                f"{where}: network mlp is for {', '.join(ROTATABLE)} only, not for this model; use `network: layer`"
            )
    else:
        check_fit(config, where, fit.placement, None if fit.recycle is None else fit.recycle_from)
        if family_of(config, where).spread:
            _check_streams(fit, where)
        if fit.end_to_end and not family_of(config, where).predicts:
            raise ReplaceMeError(f"{where}: objective kl is of the next token, this is an encoder; use objective l2")


def _check_streams(fit: "FitConfig", where: str) -> None:
    """Raise ReplaceMeError for a fit section that is not defined on several residual streams."""
    if fit.needs_rows:
        raise several_streams("a fit over rows", "objective l2 or kl", where)
    if not fit.structure.any_place:
        raise several_streams(f"transform {fit.transform}", "another transform", where)


def check_together(cut: CutConfig, fit: MethodConfig) -> None:
    """Raise ReplaceMeError for a cut that may begin in the middle of a block, and a fit that takes whole blocks."""
    if cut.in_middle and fit.of_whole_blocks is not None:
        place = f"search {cut.search}" if cut.start is None else f"start {cut.start}"
        word = "halves" if cut.halves else place
        raise ReplaceMeError(f"{word}: {fit.of_whole_blocks} takes whole blocks; change either")


def check_method(config: dict[str, Any], method: str, where: str) -> None:
    """Raise ReplaceMeError where a method cannot be done with the model of a config.json."""
    reason = METHODS[method].refusal(family_of(config, where), config)
    if reason is not None:
        raise ReplaceMeError(f"{where}: method {method} is not for this model: {reason}; use another method")


def running(model: "nn.Module", family: "Family", cut: Cut, found: "Found") -> AbstractContextManager[None]:
    """Return a context in which the original base model runs as the checkpoint with `content` does, rounding aside."""
    return module_of(found.method).running(model, family, cut, found)


def content(checkpoint: "Checkpoint", cut: Cut, found: "Found") -> "Content":
    """Return the content of a method's checkpoint; errors as in `check_method`, and for another model."""
    check_method(checkpoint.config, found.method, str(checkpoint.folder))
    return module_of(found.method).content(checkpoint, cut, found)


def removed_parameters(cut: Cut, record: Sizes) -> int:
    """Return how many parameters the blocks of a cut have: the method has to remove as many."""
    counts = record.block_parameters
    return sum(sum(counts[start:end]) for start, end in cut.groups)


def module_of(method: str) -> Any:
    """Return the module of a method."""
    return importlib.import_module(f"{__package__}.{method}")
