"""Unpack integers of a few bits from words of 32 bits, lowest bits first, as GPTQ, AWQ and compressed-tensors store
them.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

WORD = 32


def unpacked(words: "torch.Tensor", bits: int) -> "torch.Tensor":
    """Return the unsigned integers [..., n * 32 / bits] of words [..., n], int32; `bits` is 2, 4 or 8."""
    import torch

    shifts = torch.arange(0, WORD, bits, dtype=torch.int32)
    return ((words.to(torch.int32).unsqueeze(-1) >> shifts) & (2**bits - 1)).flatten(-2)
