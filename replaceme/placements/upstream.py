"""`upstream`: a factor on the residual stream after the carrier, in the weights that write to the stream up to there.

Fitted as `block`, the map being one factor alpha. The blocks read the stream through norms, to which its size makes no
difference (but for their epsilon). So the stream after block c is alpha times what it was when every weight that writes
to it up to there is: the embedding, and in the blocks 0 .. c the output projections of attention and MLP with their
biases (where a norm follows these, its gains). No parameter is added. A head that shares the embedding's weights would
see alpha too: there the gains of the final norm are divided by it. So is Prune&Comp's factor placed (arXiv 2507.18212).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from replaceme.core.errors import ReplaceMeError
from replaceme.core.places import Span
from replaceme.placements.block import Block
from replaceme.placements.placement import Placement, bias_of, check_language_model

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


class Upstream(Placement):
    """Into all weights that write to the stream up to the carrier."""

    name = "upstream"
    description = "onto the same, folded into all weights that write to it up to there (one factor: scalar, magnitude)"
    on_stream = True
    factor = True
    put = "folded into all before the end of"

    @property
    def fitted_as(self) -> str:
        """The two differ in where the map goes, not in what it is fitted on."""
        return Block.name

    def check(self, family: "Family", config: dict[str, Any], where: str) -> None:
        """Blocks of a language model that read the stream through norms."""
        check_language_model(self.name, family, where)
        if family.attention_output is None:
            raise ReplaceMeError(
                f"{where}: placement upstream is not known for model_type {config['model_type']!r}, which may read the "
                "residual stream not through norms alone; use placement block"
            )

    def hooks(self, base_model: "nn.Module", family: "Family", cut: Span, transform: "Transform") -> Iterator[Callable]:
        """Everything that writes to the stream up to the carrier puts out so many times as much."""
        factor = factor_of(transform)

        def scale(_: "nn.Module", inputs: Any, output: Any) -> Any:
            return (output[0] * factor, *output[1:]) if isinstance(output, tuple) else output * factor

        writers = [base_model.get_input_embeddings()]
        for block in family.block_modules(base_model)[: cut[0]]:
            writers += [block.get_submodule(family.attention_output.rpartition(".")[0]), *family.mlp_modules(block)]
        for module in writers:
            yield module.register_forward_hook(scale).remove

    def edits(self, checkpoint: "Checkpoint", placed: "Sequence[tuple[Span, Transform]]") -> "dict[str, Edit]":
        """Return the factors of several cuts multiply."""
        found: dict[str, float] = {}
        for (start, _), transform in placed:
            factor = factor_of(transform)
            for name in _writers(checkpoint, start):
                found[name] = found.get(name, 1.0) * factor
            for name in _final_norm(checkpoint):
                found[name] = found.get(name, 1.0) / factor
        return {name: _scaled(checkpoint, name, factor) for name, factor in found.items()}


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
    return [*weights, *map(bias_of, weights)]  # where there are biases


def _embeddings(checkpoint: "Checkpoint") -> list[str]:
    """Return the tensor with the embedding's weights, and the head's own where it is tied to it and stored with the
    same.
    """
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
    return [name for name in (gains, bias_of(gains)) if name in checkpoint.tensors]


def _beside(checkpoint: "Checkpoint", name: str) -> str:
    """Return a tensor of the base model, beside its blocks."""
    return checkpoint.family.blocks.removesuffix("layers") + name


def _scaled(checkpoint: "Checkpoint", name: str, factor: float) -> "Edit":
    """Return `factor * tensor` in float64, rounded once; gains that are stored less an offset are scaled with it."""
    offset = checkpoint.family.gain_offset if name.endswith("norm.weight") else 0.0

    def edit(given: "torch.Tensor") -> "torch.Tensor":
        return (factor * (given.double() + offset) - offset).to(given.dtype)

    return edit
