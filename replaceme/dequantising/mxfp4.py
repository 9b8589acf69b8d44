"""MXFP4: numbers of 4 bits in blocks of 32 that share a power of 2, as the experts of GPT-OSS are stored.

    row[32 k + j] = value(nibble j of blocks[..., k, :]) * 2 ** (scales[..., k] - 127)

`_blocks` [experts, rows, blocks, 16] has two numbers a byte, the lower nibble first; a nibble is a sign, two bits of
exponent and one of mantissa (VALUES). The weight [experts, columns, rows] is the transpose, as its class multiplies
from the right. Source: the OCP Microscaling specification; transformers' integrations/mxfp4.py.
"""

from typing import TYPE_CHECKING, Any

from replaceme.dequantising.packing import Packing, Parts

if TYPE_CHECKING:
    import torch

BLOCK = 32
HALF = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
VALUES = (*HALF, *(-one for one in HALF))
BIAS = 127


def packing(config: dict[str, Any]) -> Packing:
    """Return how a quantization_config of MXFP4 packs."""
    return Packing(
        endings={"_blocks": "", "_scales": ""},
        packed=("_blocks",),
        shape=_shape,
        plain=_plain,
    )


def _shape(parts: Parts) -> tuple[int, ...]:
    *before, rows, blocks, half = parts.shape("_blocks")
    if parts.shape("_scales") != (*before, rows, blocks) or 2 * half != BLOCK:
        raise parts.mismatch("blocks and scales of different shapes")
    return *before, blocks * BLOCK, rows


def _plain(parts: Parts, dtype: "torch.dtype") -> "torch.Tensor":
    import torch

    found = torch.empty(_shape(parts), dtype=dtype)
    blocks, scales = parts["_blocks"], parts["_scales"]
    if found.ndim == 2:
        return found.copy_(_matrix(blocks, scales).T)
    for expert in range(len(found)):  # of a hundred, in float32 one is enough
        found[expert] = _matrix(blocks[expert], scales[expert]).T
    return found


def _matrix(blocks: "torch.Tensor", scales: "torch.Tensor") -> "torch.Tensor":
    """Return the float32 rows [rows, columns] of blocks [rows, blocks, 16]."""
    import torch

    values = torch.tensor(VALUES)
    nibbles = torch.stack((blocks & 15, blocks >> 4), -1).flatten(-2)
    exponents = scales.to(torch.int32).unsqueeze(-1) - BIAS
    return torch.ldexp(values[nibbles.long()], exponents).flatten(-2)
