"""Weights rounded to 4 bits by bitsandbytes: NF4, with its scales rounded too, as in the authors' code.

On CPUs that multiply bfloat16 (AVX512-BF16) bitsandbytes would, at the first forward pass, pack the weights for kernels
of their own. Those take only layers whose outputs are a multiple of 32 and whose inputs one of a block, and compute in
bfloat16 with scales in bfloat16, whatever type was asked for. Kept from that, a model runs alike on every CPU.
"""

import logging
from typing import TYPE_CHECKING, Any

from replaceme.errors import ReplaceMeError

if TYPE_CHECKING:
    import torch
    from torch import nn


def in_4bit(computed: "torch.dtype") -> dict[str, Any]:
    """Options of `from_pretrained` that round the weights of linear layers, which compute in the type `computed`."""
    from importlib.util import find_spec

    from transformers import BitsAndBytesConfig

    if find_spec("bitsandbytes") is None:
        raise ReplaceMeError("load_in_4bit: needs the package bitsandbytes: pip install 'replaceme[4bit]'")
    # when imported it looks for a kernel of the packed way on the Hub, and warns that there is none
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    options = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": computed}
    return {"quantization_config": BitsAndBytesConfig(load_in_4bit=True, **options)}


def keep_unpacked(model: "nn.Module") -> None:
    """Have the rounded layers of a model compute as on any other CPU, and in the type that was asked for."""
    from bitsandbytes.nn import Linear4bit

    for layer in model.modules():
        if isinstance(layer, Linear4bit):
            layer.support_avx512bf16_for_cpu = False
