"""Growth in depth: every block of a trained model becomes several blocks that share its step.

A residual block is one Euler step x + f(x). Replacing it by k copies that each add f(x) / k integrates the same
field in smaller steps (Chang et al., arXiv 1710.10348), so a shallow model, cheap to train, starts a deep one whose
neighbouring blocks continue each other's work.
"""

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM


def grow(model: "LlamaForCausalLM", factors: Sequence[int]) -> "LlamaForCausalLM":
    """Return a new model in which block i of `model` stands factors[i] times, its two output projections divided by
    that number.

    Raises ValueError when there is not one factor of at least 1 per block.
    """
    import torch

    blocks = model.model.layers
    if len(factors) != len(blocks) or min(factors) < 1:
        raise ValueError(f"{len(blocks)} blocks need as many factors of at least 1, not {list(factors)}")
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = sum(factors)
    grown = type(model)(config).to(device=model.device, dtype=model.dtype)
    grown.model.embed_tokens.load_state_dict(model.model.embed_tokens.state_dict())
    grown.model.norm.load_state_dict(model.model.norm.state_dict())
    grown.lm_head.load_state_dict(model.lm_head.state_dict())
    sources = [(block, factor) for block, factor in zip(blocks, factors, strict=True) for _ in range(factor)]
    with torch.no_grad():
        for target, (source, factor) in zip(grown.model.layers, sources, strict=True):
            target.load_state_dict(source.state_dict())
            target.self_attn.o_proj.weight.div_(factor)
            target.mlp.down_proj.weight.div_(factor)
    return grown
