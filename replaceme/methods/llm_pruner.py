"""LLM-Pruner (arXiv 2305.11627): remove the attention heads and MLP channels of least importance.

Parts that are useless without one another are removed together, as a group: a head of the keys and values with the
heads of the queries that share it, and an MLP channel (`groups`). Its importance is the sum over its weights w of

    |w dL/dw|,

to first order what the loss L of the language model would change by without w: of the paper's variants the element-wise
one of first order; L is the mean over all tokens of the text. Every block but the first `whole_first` and the last
`whole_last` loses its least important groups, as many heads and as many channels in each: so many that the model has no
more parameters than without the blocks of the cut, and the share of heads that stay is the nearest to that of the
parameters. Where one head has more parameters than channels can compensate, more parameters go than the cut requires.
Where all blocks lose some, config.json says how many heads there are: a number that the architecture's class takes (of
Llama, one that divides the hidden size).

As in the paper: groups, importance, the sum over a group, one ratio for all blocks but the first and the last. Differs:
the text is the calibration's (theirs: 10 sequences of BookCorpus), channels make up for the rounding to whole heads,
and no LoRA follows.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from replaceme.core.cut_record import Cut
from replaceme.core.errors import ReplaceMeError
from replaceme.cuts.taylor import loss_gradients
from replaceme.methods.found import Found
from replaceme.methods.groups import AXES, Side, coupled_groups
from replaceme.methods.registry import removed_parameters
from replaceme.models.checkpoints import read_config
from replaceme.models.config_defaults import accepted, value_of
from replaceme.models.custom_code import coded_config
from replaceme.models.model_record import ModelRecord
from replaceme.surgery.edits import Changes, Content, Split

if TYPE_CHECKING:
    from replaceme.config.methods import LlmPrunerConfig
    from replaceme.fitting.passes import Passes
    from replaceme.models.checkpoints import Checkpoint
    from replaceme.models.family import Family

KINDS = ("heads", "channels")
Scores = dict[str, torch.Tensor]


def fit(passes: "Passes", config: "LlmPrunerConfig", cut: Cut, record: ModelRecord) -> Found:
    """Return the kept rows and columns of the linear layers of every pruned block, `<block>.<layer>.rows`, `.columns`,
    int64.
    """
    blocks = passes.family.block_modules(passes.model)
    pruned = range(config.whole_first, len(blocks) - config.whole_last)
    if not pruned:
        raise ReplaceMeError(
            f"llm_pruner: all {len(blocks)} blocks are first or last ones, which stay whole; lower `whole_first` or "
            "`whole_last`"
        )
    groups = coupled_groups(passes, pruned[0], roots_of(passes.model.config))
    taken = partial(_is_taken, read_config(record.folder)) if len(pruned) == len(blocks) else None
    counts = counts_for(blocks[pruned[0]], groups, removed_parameters(cut, record) / len(pruned), taken)
    tensors: dict[str, torch.Tensor] = {}
    lost: dict[str, float] = {}
    for block, scores in importances(passes, groups, pruned).items():
        for kind, count in counts.items():
            kept = scores[kind].topk(count).indices.cpu()
            lost[f"{block}.{kind}"] = 1 - float(scores[kind][kept].sum() / scores[kind].sum())
            for side in groups[kind]:
                tensors[f"{block}.{side.layer}.{AXES[side.axis]}"] = side.kept(kept)
    report = {
        "solver": "taylor",
        "tokens": passes.tokens.count,
        **counts,
        "pruned": f"[{pruned.start}, {pruned.stop})",
        "mean_importance_lost": sum(lost.values()) / len(lost),
        "importance_lost": lost,
    }
    return Found("llm_pruner", tensors, report)


def roots_of(config: Any) -> dict[str, tuple[str, int]]:
    """Return the layer from which the groups of each kind are found, and their number."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return {"heads": ("self_attn.q_proj", heads), "channels": ("mlp.up_proj", config.intermediate_size)}


def counts_for(
    block: nn.Module,
    groups: dict[str, list[Side]],
    parameters: float,
    taken: Callable[[dict[str, int]], bool] | None = None,
) -> dict[str, int]:
    """Return how many groups of each kind stay, so that a block has at least `parameters` fewer parameters.

    `taken`: whether a model can have such counts; None: it can have any.
    """
    (heads, head), (channels, channel) = ((len(groups[kind][0].indices), _size(block, groups[kind])) for kind in KINDS)
    whole = heads * head + channels * channel
    wanted = heads * (1 - parameters / whole)
    left = {count: int((whole - parameters - count * head) // channel) for count in range(1, heads + 1)}
    exact = sorted((count for count in left if 1 <= left[count] <= channels), key=lambda one: abs(one - wanted))
    # heads so large that no channel need go: the fewer of them go the better
    larger = sorted((count for count in left if left[count] > channels), reverse=True)
    for count in [*exact, *larger]:
        counts = {"heads": count, "channels": min(left[count], channels)}
        if taken is None or taken(counts):
            return counts
    raise ReplaceMeError(
        "llm_pruner: no number of heads and channels makes the model as small as the cut does; cut fewer"
    )


def _size(block: nn.Module, sides: Sequence[Side]) -> int:
    """Return the number of parameters of one group."""
    found = 0
    for side in sides:
        layer = block.get_submodule(side.layer)
        biased = side.axis == 0 and layer.bias is not None
        found += side.indices.shape[1] * (layer.weight.shape[1 - side.axis] + biased)
    return found


def importances(passes: "Passes", groups: dict[str, list[Side]], pruned: Sequence[int]) -> dict[int, Scores]:
    """Return the importance of every group of every block, float64, by the kind of the groups."""
    blocks = passes.family.block_modules(passes.model)
    layers = {side.layer for sides in groups.values() for side in sides}
    weights = [
        one for block in pruned for name in sorted(layers) for one in blocks[block].get_submodule(name).parameters()
    ]
    gradients = loss_gradients(passes.headed, passes.tokens, passes.batch_size, weights)
    return {
        block: {kind: _importance(blocks[block], sides, gradients) for kind, sides in groups.items()}
        for block in pruned
    }


def _importance(block: nn.Module, sides: Sequence[Side], gradients: "dict[torch.Tensor, torch.Tensor]") -> torch.Tensor:
    """Sum |w dL/dw| over the weights of each group, and over the biases of its rows."""
    total = torch.zeros(len(sides[0].indices), dtype=torch.float64, device=next(block.parameters()).device)
    for side in sides:
        layer = block.get_submodule(side.layer)
        change = (layer.weight.double() * gradients[layer.weight]).abs().sum(1 - side.axis)
        if side.axis == 0 and layer.bias is not None:
            change += (layer.bias.double() * gradients[layer.bias]).abs()
        total += change[side.indices.to(change.device)].sum(1)
    if not bool(total.isfinite().all()):
        raise ReplaceMeError("llm_pruner: the importance of a group is not finite; set `dtype: float32`")
    return total


def content(checkpoint: "Checkpoint", cut: Cut, found: Found) -> Content:
    """Return the kept rows and columns of each layer; a plain model where all blocks lost some, as all then have one
    size.
    """
    parts: dict[str, Split] = {}
    sizes: dict[str, list[int]] = {}
    for name, sides in _by_layer(found).items():
        layer = f"{checkpoint.family.blocks}.{name}"
        if f"{layer}.weight" not in checkpoint.tensors:
            raise ReplaceMeError(f"{checkpoint.folder}: no tensor {layer}.weight; what was found is of another model")
        shape = checkpoint.tensors[f"{layer}.weight"][1]
        sizes[layer] = [len(sides.get(axis, range(size))) for axis, size in zip(AXES, shape, strict=True)]
        for part in ("weight", "bias"):
            parts[f"{layer}.{part}"] = partial(_taken, name=f"{layer}.{part}", sides=sides)
    pruned = {name.partition(".")[0] for name in found.tensors}
    if len(pruned) == checkpoint.num_blocks:
        return Content([], Changes(parts=parts), _narrow_config(checkpoint.config, found.report))
    return Content([], Changes(parts=parts), coded_config(checkpoint.config, {"resized": sizes}), True)


def _by_layer(found: Found) -> dict[str, dict[str, torch.Tensor]]:
    """Return the kept rows and columns of each layer `<block>.<layer>`, by axis."""
    layers: dict[str, dict[str, torch.Tensor]] = {}
    for name, indices in found.tensors.items():
        layer, _, axis = name.rpartition(".")
        layers.setdefault(layer, {})[axis] = indices
    return layers


def _taken(tensor: torch.Tensor, name: str, sides: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the kept rows of a weight or bias, and of a weight the kept columns."""
    for axis, indices in zip(range(tensor.ndim), (sides.get(axis) for axis in AXES), strict=False):
        tensor = tensor if indices is None else tensor.index_select(axis, indices)
    return {name: tensor.contiguous()}


def _narrow_config(config: dict[str, Any], counts: Mapping[str, Any]) -> dict[str, Any]:
    """Return config.json of a model whose blocks all have these numbers of key-value heads and channels."""
    heads, groups, size = (
        value_of(config, key, "config.json") for key in ("num_attention_heads", "num_key_value_heads", "head_dim")
    )
    shared = heads // groups
    return {
        **config,
        "head_dim": size or config["hidden_size"] // heads,
        "num_attention_heads": counts["heads"] * shared,
        "num_key_value_heads": counts["heads"],
        "intermediate_size": counts["channels"],
    }


def _is_taken(config: dict[str, Any], counts: dict[str, int]) -> bool:
    """Return whether transformers accepts a config of these counts."""
    try:
        accepted(_narrow_config(config, counts), "config.json")
    except ReplaceMeError:
        return False
    return True


@contextmanager
def running(model: nn.Module, family: "Family", cut: Cut, found: Found) -> Iterator[None]:
    """Zero, within the block, the removed columns of weights that write to the residual stream."""
    blocks = family.block_modules(model)
    with ExitStack() as undone:
        for name, sides in _by_layer(found).items():
            if "columns" not in sides:
                continue
            number, _, path = name.partition(".")
            layer = blocks[int(number)].get_submodule(path)
            undone.callback(setattr, layer, "weight", layer.weight)
            kept = torch.zeros_like(layer.weight)
            kept[:, sides["columns"]] = layer.weight[:, sides["columns"]]
            layer.weight = nn.Parameter(kept, requires_grad=False)
        yield
