"""Build a tiny model of random weights, none of which hides a mistake by being zero or one."""

from typing import Any

import torch
from torch import nn

from replaceme.core.quiet import quiet_transformers
from replaceme.models.probed import class_with_head

PLAIN = 1e-6  # spread of values below which a matrix counts as constant


def build(config: dict[str, Any]) -> "nn.Module":
    """Return the class with the head of a config, in float32, with the same random weights every time."""
    from transformers import AutoConfig

    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = class_with_head(config).from_config(AutoConfig.for_model(**config), dtype=torch.float32)
        _randomise(model)
    return model.float().eval().requires_grad_(False)


def _randomise(model: "nn.Module") -> None:
    """Draw gains, biases, scalars and constant matrices; matrices that the class draws stay."""
    stored = model.state_dict().keys()
    buffers = [(name, one) for name, one in model.named_buffers() if name in stored and one.is_floating_point()]
    with torch.no_grad():
        for name, one in [*model.named_parameters(), *buffers]:
            if one.dim() < 2 and "A_log" not in name and not name.endswith(".D"):
                low, high = (-0.5, 0.5) if name.endswith("bias") else (0.5, 1.5)
                one.uniform_(low, high)
            elif one.numel() > 1 and float(one.std()) < (0.1 if one.dim() == 2 and "A_log" not in name else PLAIN):
                one.normal_(std=0.2)
