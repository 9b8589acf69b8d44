"""FP8: numbers of 8 bits with a scale for each tile of a weight, as DeepSeek-V3 and Qwen3-FP8 are stored.

    weight[output, input] = q[output, input] * weight_scale_inv[output // rows, input // columns]

q is float8_e4m3fn; `weight_block_size` is [rows, columns], [128, 128] as a rule, and tiles at the edges are smaller;
without it the one scale is of the whole weight. Scales are floating numbers, or exponents of 2 plus 127 in bytes
(MXFP8). Stacked experts have a tile grid each. Source: DeepSeek-V3's inference/kernel.py (`weight_dequant`),
transformers' integrations/finegrained_fp8.py.
"""

from typing import TYPE_CHECKING, Any

from replaceme.core.errors import ReplaceMeError
from replaceme.dequantising.packing import Packing, Parts
from replaceme.dequantising.tiles import spread

if TYPE_CHECKING:
    import torch

SCALE = "_scale_inv"
BIAS = 127  # of an exponent in a byte


def packing(config: dict[str, Any]) -> Packing:
    """Return how a quantization_config of FP8 packs; raises ReplaceMeError for a block size that is none."""
    tile = config.get("weight_block_size")
    if tile is not None and not (
        isinstance(tile, list) and len(tile) == 2 and all(isinstance(one, int) and one > 0 for one in tile)
    ):
        raise ReplaceMeError(f"quantised as fp8 with weight_block_size {tile!r}, which is no [rows, columns]")
    return Packing(
        endings={SCALE: "", "": ""},
        packed=("",),
        shape=lambda parts: parts.shape(""),
        plain=lambda parts, dtype: _plain(parts, dtype, tile),
        unused=(".activation_scale", ".input_scale", ".k_scale", ".v_scale"),
    )


def _plain(parts: Parts, dtype: "torch.dtype", tile: list[int] | None) -> "torch.Tensor":
    import torch

    numbers, scales = parts[""], as_scales(parts[SCALE])
    if numbers.element_size() != 1 or not numbers.is_floating_point():
        raise parts.mismatch(f"stored as {numbers.dtype}, not in FP8")
    if numbers.ndim == 2 or scales.numel() == 1:
        return _matrix(parts, numbers, scales, tile).to(dtype)
    if scales.ndim != numbers.ndim or len(scales) != len(numbers):
        raise parts.mismatch("scales of another number of experts")
    found = torch.empty(numbers.shape, dtype=dtype)
    for expert in range(len(numbers)):  # of a hundred, in float32 one is enough
        found[expert] = _matrix(parts, numbers[expert], scales[expert], tile)
    return found


def _matrix(parts: Parts, numbers: "torch.Tensor", scales: "torch.Tensor", tile: list[int] | None) -> "torch.Tensor":
    """Return the float32 numbers [rows, columns] (of any shape, where there is one scale) times their scales."""
    factors = scales.reshape(()) if scales.numel() == 1 else spread(parts, scales, tuple(numbers.shape), tile)
    return numbers.float() * factors


def as_scales(stored: "torch.Tensor") -> "torch.Tensor":
    """Return scales in float32; bytes are exponents of 2 plus 127."""
    import torch

    return torch.exp2(stored.float() - BIAS) if stored.dtype == torch.uint8 else stored.float()
