"""Weights rounded to 4 bits by bitsandbytes: NF4, with its scales rounded too, as in the authors' code.

On CPUs that multiply bfloat16 (AVX512-BF16) bitsandbytes would, at the first forward pass, pack the weights for kernels
of their own. Those take only layers whose outputs are a multiple of 32 and whose inputs one of a block, and compute in
bfloat16 with scales in bfloat16, whatever the configured type. And on CPUs with AVX-512 it takes the scale of a row's
first block from the wrong place where a row of inputs is not a multiple of a block (its dequantizeBlockwise4bitCpu has
`dim_1 / blocksize` scales a row). Kept from both, a model runs alike on every CPU.
"""

import copy
import logging
from typing import TYPE_CHECKING, Any

from replaceme.core.errors import ReplaceMeError

if TYPE_CHECKING:
    import torch
    from bitsandbytes.nn import Linear4bit
    from torch import nn

log = logging.getLogger(__name__)


def in_4bit(computed: "torch.dtype") -> dict[str, Any]:
    """Return options of `from_pretrained` that round the weights of linear layers, which compute in the type
    `computed`.
    """
    from importlib.util import find_spec

    from transformers import BitsAndBytesConfig

    if find_spec("bitsandbytes") is None:
        raise ReplaceMeError("load_in_4bit: needs the package bitsandbytes: pip install 'replaceme[4bit]'")
    # when imported it looks for a kernel of the packed way on the Hub, and warns that there is none
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    options = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": computed}
    return {"quantization_config": BitsAndBytesConfig(load_in_4bit=True, **options)}


def alike_on_every_cpu(model: "nn.Module") -> None:
    """Make the rounded layers of a model compute as on any other CPU, and in the configured type.

    On a CPU, layers whose inputs are no multiple of a block become plain layers of the same rounded numbers.
    """
    from bitsandbytes.nn import Linear4bit

    plain = 0
    for name, layer in list(model.named_modules()):
        if not isinstance(layer, Linear4bit):
            continue
        layer.support_avx512bf16_for_cpu = False
        if layer.weight.device.type == "cpu" and layer.in_features % layer.weight.quant_state.blocksize:
            model.set_submodule(name, _plain(layer))
            plain += 1
    if plain:
        log.info("%d layers, of inputs that are no multiple of a block, hold their rounded numbers unpacked", plain)


def _plain(layer: "Linear4bit") -> "nn.Linear":
    """Return a linear layer with the weights that a rounded one stands for."""
    from torch import nn

    rounded = dequantised(layer)
    found = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
    found.weight = nn.Parameter(rounded.to(layer.compute_dtype), requires_grad=False)
    found.bias = layer.bias
    return found.eval()


def dequantised(layer: "Linear4bit") -> "torch.Tensor":
    """Return the weights [outputs, inputs] of a rounded layer, dequantised as one row, whose scales bitsandbytes
    finds.
    """
    import torch
    from bitsandbytes.functional import dequantize_4bit

    state = layer.weight.quant_state
    row = copy.copy(state)
    row.shape = torch.Size((1, state.shape.numel()))
    return dequantize_4bit(layer.weight.data, row).reshape(state.shape)
