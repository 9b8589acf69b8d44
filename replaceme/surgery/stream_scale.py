"""Put a factor on the residual stream after a carrier into the weights that write to the stream up to there.

The blocks read the stream through norms, to which its size makes no difference (but for their epsilon). So the stream
after block c is alpha times what it was when every weight that writes to it up to there is: the embedding, and in the
blocks 0 .. c the output projections of attention and MLP with their biases (where a norm follows these, its gains).
No parameter is added. A head that shares the embedding's weights would see alpha too: there the gains of the final norm
are divided by it. So is Prune&Comp's factor placed (arXiv 2507.18212).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from replaceme.config.placement import UPSTREAM
from replaceme.core.errors import ReplaceMeError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from replaceme.models.checkpoints import Checkpoint
    from replaceme.models.family import Family
    from replaceme.surgery.edits import Edit
    from replaceme.transforms.transform import Transform

HEAD = "lm_head.weight"


def factor_of(transform: "Transform") -> float:
    """Return alpha of a transform `alpha I`; raises ReplaceMeError for any other."""
    import torch

    factor = float(transform.matrix[0, 0])
    if factor == 0 or not torch.equal(transform.matrix, factor * torch.eye(len(transform.matrix)).to(transform.matrix)):
        raise ReplaceMeError("placement upstream: the transform is no multiple of the identity; use placement block")
    return factor


def factors(
    checkpoint: "Checkpoint", groups: Sequence[tuple[int, int]], transforms: "Sequence[Transform]"
) -> "dict[str, Edit]":
    """Return the edits of the tensors, by their names in the source; the factors of several groups multiply."""
    found: dict[str, float] = {}
    for (start, _), transform in zip(groups, transforms, strict=True):
        if transform.placement == UPSTREAM and not transform.is_identity:
            factor = factor_of(transform)
            for name in _writers(checkpoint, start):
                found[name] = found.get(name, 1.0) * factor
            for name in _final_norm(checkpoint):
                found[name] = found.get(name, 1.0) / factor
    return {name: _scaled(checkpoint, name, factor) for name, factor in found.items()}


def hooked(base_model: "nn.Module", family: "Family", start: int, factor: float) -> Iterator[Callable[[], None]]:
    """Scale the output of everything that writes to the stream before block `start` by `factor`; yields undo
    functions.
    """

    def scale(_: "nn.Module", inputs: Any, output: Any) -> Any:
        return (output[0] * factor, *output[1:]) if isinstance(output, tuple) else output * factor

    writers = [base_model.get_input_embeddings()]
    for block in family.block_modules(base_model)[:start]:
        writers += [block.get_submodule(family.attention_output.rpartition(".")[0]), family.mlp_module(block)]
    for module in writers:
        yield module.register_forward_hook(scale).remove


def _writers(checkpoint: "Checkpoint", start: int) -> list[str]:
    """Return the tensors that write to the residual stream before block `start`."""
    family = checkpoint.family
    weights = _embeddings(checkpoint)
    for block in range(start):
        prefix = f"{family.blocks}.{block}."
        mlp = [prefix + family.post_norm] if family.post_norm is not None else checkpoint.folded(block)
        weights += [prefix + family.attention_output, *mlp]
    missing = next((name for name in weights if name not in checkpoint.tensors), None)
    if missing is not None:
        raise ReplaceMeError(f"{checkpoint.folder}: no tensor {missing}, into which the factor should go")
    return [*weights, *map(_bias_of, weights)]  # a bias may be there, or be made by an intercept


def _embeddings(checkpoint: "Checkpoint") -> list[str]:
    """Return the tensor with the embedding's weights, and the head's own if it is tied but stored too."""
    name = checkpoint.embedding(_beside(checkpoint, "embed_tokens.weight"))
    if (
        name == HEAD
        or not {name, HEAD} <= checkpoint.tensors.keys()
        or not checkpoint.family.ties_head(checkpoint.config)
    ):
        return [name]
    import torch

    stored = checkpoint.read([name, HEAD])
    return [name, HEAD] if torch.equal(stored[name], stored[HEAD]) else [name]  # else transformers does not tie them


def _final_norm(checkpoint: "Checkpoint") -> list[str]:
    """Return the gains (and biases) of the final norm where the head shares the embedding's weights, else nothing."""
    own_head = HEAD in checkpoint.tensors and HEAD not in _embeddings(checkpoint)
    if own_head or not checkpoint.family.ties_head(checkpoint.config):
        return []
    gains = _beside(checkpoint, "norm.weight")
    if gains not in checkpoint.tensors:
        raise ReplaceMeError(
            f"{checkpoint.folder}: its head shares the embedding's weights and its final norm has no gains, so a "
            "factor would reach the logits; use placement block"
        )
    return [name for name in (gains, _bias_of(gains)) if name in checkpoint.tensors]


def _beside(checkpoint: "Checkpoint", name: str) -> str:
    """Return the full name of a tensor of the base model outside its blocks."""
    return checkpoint.family.blocks.removesuffix("layers") + name


def _bias_of(weight: str) -> str:
    return weight.removesuffix("weight") + "bias"


def _scaled(checkpoint: "Checkpoint", name: str, factor: float) -> "Edit":
    """Return an edit `factor * tensor` in float64, rounded once; gains stored as differences keep their offset."""
    offset = checkpoint.family.gain_offset if name.endswith("norm.weight") else 0.0

    def edit(given: "torch.Tensor") -> "torch.Tensor":
        return (factor * (given.double() + offset) - offset).to(given.dtype)

    return edit
