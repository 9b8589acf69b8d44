"""AWQ: integers of 4 bits in groups of inputs that share a scale and a zero point, in AutoAWQ's layout `gemm`.

    weight[output, input] = scales[g, output] * (q[input, output] - z[g, output]),   g = input // group_size

`qweight` [inputs, outputs / 8] and `qzeros` [groups, outputs / 8] are packed along the outputs; the lowest four bits of
a word hold its output 0, the next ones outputs 2, 4, 6, 1, 3, 5, 7 (AutoAWQ, awq/utils/packing_utils.py).
"""

from typing import TYPE_CHECKING, Any

from replaceme.dequantising.packing import Packing, Parts, chosen
from replaceme.dequantising.words import WORD, unpacked

if TYPE_CHECKING:
    import torch

BITS = 4
PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # of outputs 0 .. 7 in a word


def packing(config: dict[str, Any]) -> Packing:
    """Return how a quantization_config of AWQ packs; raises ReplaceMeError for other layouts."""
    chosen(config, "bits", BITS, (BITS,), "awq")
    chosen({"version": str(config.get("version") or "gemm").lower()}, "version", "gemm", ("gemm",), "awq")
    chosen(config, "zero_point", True, (True,), "awq")
    return Packing(
        endings=dict.fromkeys((".qweight", ".qzeros", ".scales"), ".weight"),
        packed=(".qweight",),
        shape=_shape,
        plain=_plain,
    )


def _shape(parts: Parts) -> tuple[int, ...]:
    inputs, words = parts.shape(".qweight")
    groups, outputs = parts.shape(".scales")
    if parts.shape(".qzeros") != (groups, words) or outputs != words * WORD // BITS or inputs % groups:
        raise parts.mismatch("groups of different shapes")
    return outputs, inputs


def _plain(parts: Parts, dtype: "torch.dtype") -> "torch.Tensor":
    _, inputs = _shape(parts)
    scales, zeros = parts[".scales"].float(), _in_order(parts[".qzeros"])
    size = inputs // len(scales)
    numbers = _in_order(parts[".qweight"]) - zeros.repeat_interleave(size, 0)
    return (scales.repeat_interleave(size, 0) * numbers).T.contiguous().to(dtype)


def _in_order(words: "torch.Tensor") -> "torch.Tensor":
    numbers = unpacked(words, BITS).unflatten(-1, (-1, len(PLACES)))
    return numbers[..., list(PLACES)].flatten(-2)
