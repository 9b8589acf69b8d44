"""SVD-LLM (arXiv 2403.07378): every linear layer of the blocks becomes a pair of factors, by a whitened truncated SVD.

With G = sum x x^T over the inputs x of a layer with weight W [out, in], and a Cholesky factor S of it, G = S S^T, the
error of a W' on the text is `sum |W x - W' x|^2 = |(W - W') S|_F^2`. With W S = U diag(s) V^T the paper keeps the r
largest s, `W' = U_r diag(s_r) V_r^T S^-1`, whose error is the sum of the s^2 left out, the least that rank r allows.
Here the same W' is `U_r U_r^T W`, so that no S is inverted and a singular G is no obstacle: `U_r^T W` [r, in] is the
first of the two layers, `U_r` [out, r] the second.

All layers keep the same share of their parameters, r = share * out * in / (out + in), such that together they lose as
many as the blocks of the cut have. `estimation: parallel` takes the inputs from the original model, `sequential` those
of each block from the model whose earlier blocks are factored already. As in the paper: layers of the blocks only,
biases and norms stay. Differs: neither its update of `U` on the compressed inputs nor its LoRA step is done.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from replaceme.core.cut_record import Cut
from replaceme.core.errors import ReplaceMeError
from replaceme.core.progress import progress
from replaceme.kernels.gram import gram
from replaceme.methods.found import Found
from replaceme.methods.registry import removed_parameters
from replaceme.methods.walk import Walk, inputs_of
from replaceme.models.custom_code import coded_config
from replaceme.models.model_record import ModelRecord
from replaceme.surgery.edits import Changes, Content, Split, Tensors

if TYPE_CHECKING:
    from replaceme.config.methods import SvdLlmConfig
    from replaceme.fitting.passes import Passes
    from replaceme.models.checkpoints import Checkpoint
    from replaceme.models.family import Family


def fit(passes: "Passes", config: "SvdLlmConfig", cut: Cut, record: ModelRecord) -> Found:
    """Return the factors U_r [out, r], float32, of every linear layer, `<block>.<layer>`, and the energy that each
    loses.
    """
    walk = Walk(passes)
    shapes = [layer.weight.shape for block in walk.blocks for layer in linear_layers(block).values()]
    share = 1 - removed_parameters(cut, record) / sum(shape.numel() for shape in shapes)
    if not share > 0:
        raise ReplaceMeError(
            "svd_llm: the linear layers have no more parameters than the cut removes; cut fewer blocks"
        )
    tensors: dict[str, torch.Tensor] = {}
    lost: dict[str, float] = {}
    sequential = config.estimation == "sequential"
    for number in progress(range(len(walk.blocks)), "factors", unit="block"):
        block = walk.block
        layers = linear_layers(block)
        for name, inputs in input_grams(walk, layers, advance=not sequential).items():
            layer = layers[name]
            factor, loss = truncated(layer.weight, inputs, rank_of(layer.weight.shape, share))
            tensors[f"{number}.{name}"], lost[f"{number}.{name}"] = factor.float().cpu(), loss
            if sequential:
                layer.weight.copy_(product(factor, layer.weight))
        if sequential:
            for _ in walk.visit():
                pass
    report = {
        "solver": "svd",
        "tokens": passes.tokens.count,
        "parameters_kept": share,
        "mean_energy_lost": sum(lost.values()) / len(lost),
        "ranks": {name: tensor.shape[1] for name, tensor in tensors.items()},
        "energy_lost": lost,
    }
    return Found("svd_llm", tensors, report)


def linear_layers(block: nn.Module) -> dict[str, nn.Linear]:
    """Return the linear layers of a block by name."""
    return {name: module for name, module in block.named_modules() if isinstance(module, nn.Linear)}


def rank_of(shape: torch.Size, share: float) -> int:
    """Return the largest rank, at least 1, at which two factors have at most `share` of the parameters of W [out,
    in].
    """
    return max(1, int(share * shape.numel() / sum(shape)))


def input_grams(walk: Walk, layers: dict[str, nn.Linear], advance: bool) -> dict[str, torch.Tensor]:
    """Return the Gram [in, in], float64, of the unmasked inputs of each layer of the next block; layers with one input
    share it.

    Raises ReplaceMeError where a layer is not run.
    """
    sums: dict[str, torch.Tensor] = {}
    with inputs_of(layers) as inputs:
        for _, activations in walk.visit(advance):
            if inputs.keys() != layers.keys():
                raise ReplaceMeError(f"svd_llm: layer {min(layers.keys() - inputs)} of block {walk.at} is never run")
            first = {name: next(one for one in inputs if inputs[one] is inputs[name]) for name in inputs}
            for name in set(first.values()):
                rows = inputs[name].reshape(-1, inputs[name].shape[-1])
                sums[name] = gram(rows, mask=activations.mask.reshape(-1), out=sums.get(name))
    return {name: sums[first[name]] for name in layers}


def truncated(weight: torch.Tensor, inputs: torch.Tensor, rank: int) -> tuple[torch.Tensor, float]:
    """Return (U_r float64 [out, r], lost share of `tr(W G W^T)`) for a weight [out, in] and the Gram [in, in].

    U_r are the leading left singular vectors of W S.
    """
    whitened = weight.double() @ square_root(inputs)
    out, width = whitened.shape
    if out <= width:
        values, vectors = torch.linalg.eigh(whitened @ whitened.T)
        factor = vectors[:, -rank:]
    else:
        values, vectors = torch.linalg.eigh(whitened.T @ whitened)
        # orthonormal also where a value is zero and the quotient by its root would be noise
        factor = torch.linalg.qr(whitened @ vectors[:, -rank:])[0]
    energy = float(values.sum())
    return factor, float(values[:-rank].clamp(min=0).sum()) / energy if energy > 0 else 0.0


def square_root(inputs: torch.Tensor) -> torch.Tensor:
    """Return an S with S S^T = G of a symmetric G [in, in]: Cholesky's, or by eigenvectors where G is not definite
    enough.
    """
    factor, failed = torch.linalg.cholesky_ex(inputs)
    if not failed:
        return factor
    values, vectors = torch.linalg.eigh(inputs)
    return vectors * values.clamp(min=0).sqrt()


def product(factor: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Compute W' = U U^T W, in the type of W."""
    factor = factor.to(weight.device, torch.float64)
    return (factor @ (factor.T @ weight.double())).to(weight.dtype)


def content(checkpoint: "Checkpoint", cut: Cut, found: Found) -> Content:
    """Return the two layers `<layer>.0` and `<layer>.1` that replace each layer; a bias goes to the second."""
    parts: dict[str, Split] = {}
    ranks: dict[str, int] = {}
    for name, factor in found.tensors.items():
        layer = f"{checkpoint.family.blocks}.{name}"
        if f"{layer}.weight" not in checkpoint.tensors:
            raise ReplaceMeError(f"{checkpoint.folder}: no tensor {layer}.weight; the factors are of another model")
        ranks[layer] = factor.shape[1]
        parts |= _pair(layer, factor)
    return Content([], Changes(parts=parts), coded_config(checkpoint.config, {"factors": ranks}), True)


def _pair(layer: str, factor: torch.Tensor) -> dict[str, Split]:
    def weights(weight: torch.Tensor) -> Tensors:
        stored = factor.to(weight.dtype)
        # of the factor as it is stored, so that its rounding is not in the product twice
        inner = (stored.double().T @ weight.double()).to(weight.dtype)
        return {f"{layer}.0.weight": inner, f"{layer}.1.weight": stored}

    return {f"{layer}.weight": weights, f"{layer}.bias": lambda bias: {f"{layer}.1.bias": bias}}


@contextmanager
def running(model: nn.Module, family: "Family", cut: Cut, found: Found) -> Iterator[None]:
    """Give the linear layers the weights W' within the block."""
    with ExitStack() as undone:
        for number, block in enumerate(family.block_modules(model)):
            for name, layer in linear_layers(block).items():
                undone.callback(setattr, layer, "weight", layer.weight)
                changed = product(found.tensors[f"{number}.{name}"], layer.weight)
                layer.weight = nn.Parameter(changed, requires_grad=False)
        yield
