"""The Taylor score of a block: how much the loss would change, to first order, if each of its weights were zero.

score = sum over its weights w of |w dL/dw|, L the language-model loss over all tokens (Shortened LLaMA, arXiv
2402.02834, one score for each block). One backward pass over the text. Memory: the gradients of the given blocks, and
their sums in float32.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from replaceme.activations.gradients import backward, repeatable
from replaceme.activations.language_loss import counted_tokens, loss_batches, token_losses
from replaceme.calibration.tokens import Tokens
from replaceme.core.errors import ReplaceMeError
from replaceme.core.progress import progress
from replaceme.models.family import Family

if TYPE_CHECKING:
    import torch
    from torch import nn


def taylor_scores(
    model: "nn.Module", family: Family, tokens: Tokens, batch_size: int, blocks: Sequence[int]
) -> dict[int, float]:
    """Return the score of each of `blocks` of a model with its head; sums in float64, of products with float32
    gradients.

    Counted are all parameters of a block, and the tokens that `token_losses` counts. Raises ReplaceMeError for a score
    that is not finite, and where no token follows another.
    """
    modules = family.block_modules(model.base_model)
    parameters = {block: list(modules[block].parameters()) for block in blocks}
    sums = loss_gradients(model, tokens, batch_size, [one for several in parameters.values() for one in several])
    scores = {
        block: sum(float((one.detach().double() * sums[one]).abs().sum()) for one in several if one in sums)
        for block, several in parameters.items()
    }
    for block, score in scores.items():
        if not score < float("inf"):
            raise ReplaceMeError(f"taylor: the score of block {block} is not finite; set `dtype: float32`")
    return scores


@repeatable()
def loss_gradients(
    model: "nn.Module", tokens: Tokens, batch_size: int, parameters: "Sequence[torch.Tensor]"
) -> "dict[torch.Tensor, torch.Tensor]":
    """Return dL/dw of each parameter that the loss depends on, float32, added up batch by batch.

    L is the mean over the tokens that `token_losses` counts, of a model with its head.
    """
    total = counted_tokens(tokens)
    sums: dict[torch.Tensor, torch.Tensor] = {}
    for one in parameters:
        one.requires_grad_(True)
    try:
        for batch in progress(loss_batches(model, tokens, batch_size), "gradients", unit="batch"):
            losses, _ = token_losses(model, batch)
            backward(losses.sum() / total)
            for one in parameters:
                if one.grad is not None:
                    sums[one] = sums[one] + one.grad.float() if one in sums else one.grad.float()
                    one.grad = None
    finally:
        for one in parameters:
            one.requires_grad_(False)
            one.grad = None
    return sums
