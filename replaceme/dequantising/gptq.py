"""GPTQ: integers of 2, 4 or 8 bits in groups of inputs that share a scale and a zero point.

    weight[output, input] = scales[g, output] * (q[input, output] - z[g, output]),   g = g_idx[input]

`qweight` [inputs * bits / 32, outputs] holds q, packed along the inputs; `qzeros` [groups, outputs * bits / 32] holds
z - 1, in the later format `gptq_v2` z. As its loaders do (AutoGPTQ 0.7, vLLM), 1 is added without wrapping around.
Without `g_idx` (of `desc_act`) a group is a run of `group_size` inputs, -1: all of them.
"""

from typing import TYPE_CHECKING, Any

from replaceme.dequantising.packing import Packing, Parts, chosen
from replaceme.dequantising.words import WORD, unpacked

if TYPE_CHECKING:
    import torch


def packing(config: dict[str, Any]) -> Packing:
    """Return how a quantization_config of GPTQ packs; raises ReplaceMeError for 3 bits and unknown variants."""
    bits = chosen(config, "bits", None, (2, 4, 8), "gptq")
    stored = chosen(config, "checkpoint_format", "gptq", ("gptq", "gptq_v2"), "gptq")
    offset = 0 if stored == "gptq_v2" else 1
    return Packing(
        endings=dict.fromkeys((".qweight", ".qzeros", ".scales", ".g_idx"), ".weight"),
        packed=(".qweight",),
        shape=lambda parts: _shape(parts, bits),
        plain=lambda parts, dtype: _plain(parts, dtype, bits, offset),
    )


def _shape(parts: Parts, bits: int) -> tuple[int, ...]:
    rows, outputs = parts.shape(".qweight")
    groups = parts.shape(".scales")
    if parts.shape(".qzeros")[0] != groups[0] or groups[1] != outputs:
        raise parts.mismatch("groups of different shapes")
    return outputs, rows * WORD // bits


def _plain(parts: Parts, dtype: "torch.dtype", bits: int, offset: int) -> "torch.Tensor":
    import torch

    outputs, inputs = _shape(parts, bits)
    scales = parts[".scales"].float()
    zeros = unpacked(parts[".qzeros"], bits)[:, :outputs] + offset
    groups = len(scales)
    if ".g_idx" in parts:
        group = parts[".g_idx"].long()
    else:
        group = torch.arange(inputs) // -(-inputs // groups)
    if len(group) != inputs or int(group.max()) >= groups or int(group.min()) < 0:
        raise parts.mismatch("groups that do not fit the inputs")
    numbers = unpacked(parts[".qweight"].T, bits)
    return (scales[group].T * (numbers - zeros[group].T)).to(dtype)
