"""compressed-tensors: integers of 4 or 8 bits or FP8 with scales, as llm-compressor stores them.

    weight[output, input] = scale[tile] * (q[output, input] - z[tile])

`pack-quantized`: `weight_packed` [outputs, inputs * bits / 32] holds q + 2 ** (bits - 1), packed along the inputs,
`weight_shape` the true shape, and `weight_zero_point` [outputs * bits / 32, groups], where there is one, zero points in
the same way, packed along the outputs. `int-quantized`, `float-quantized`, `naive-quantized`: q as it is, in int8 or
float8_e4m3fn. A scale [1], [outputs, 1], [outputs, groups] or [tiles, tiles] is of the tensor, of a row, of a run of
inputs or of a tile; with `weight_g_idx` an input's group is that which it names. Source: the package
compressed-tensors, compressors/ and quantization/lifecycle/forward.py.
"""

from typing import TYPE_CHECKING, Any

from replaceme.core.errors import ReplaceMeError, printable
from replaceme.dequantising.described import mappings
from replaceme.dequantising.packing import Packing, Parts, refused
from replaceme.dequantising.tiles import spread
from replaceme.dequantising.words import WORD, unpacked

if TYPE_CHECKING:
    import torch

PACKED = "pack-quantized"
WHOLE = ("int-quantized", "float-quantized", "naive-quantized")
NAME = "compressed-tensors"


def packing(config: dict[str, Any]) -> Packing:
    """Return how a quantization_config of compressed-tensors packs; raises ReplaceMeError for formats not named
    above.
    """
    groups = mappings((config.get("config_groups") or {}).values())
    weights = mappings(one.get("weights") for one in groups)
    formats = {one.get("format") or config.get("format") for one in groups} or {config.get("format")}
    unknown = sorted(map(str, formats - {PACKED, *WHOLE}))
    if unknown or not weights:
        known = f"read are {', '.join((PACKED, *WHOLE))}"
        raise refused(f"{NAME} {', '.join(unknown) or 'without weights'}", known)
    for key, reason in (("sparsity_config", "sparse weights"), ("transform_config", "rotated weights")):
        given = config.get(key) or {}
        if given.get("config_groups") or given.get("format", "dense") != "dense":
            raise ReplaceMeError(f"quantised as {NAME} with {reason}, which are not read; give full-precision weights")
    bits = sorted({one.get("num_bits") for one in weights}, key=str)
    if not set(bits) <= {4, 8}:
        raise refused(f"{NAME} of {', '.join(map(str, bits))} bits", "read are 4 and 8")
    tiles = [one.get("block_structure") for one in weights if one.get("block_structure")]
    return Packing(
        endings=dict.fromkeys(("_packed", "_scale", "_shape", "_zero_point", "_g_idx", ""), ""),
        packed=("_packed", ""),
        shape=lambda parts: _shape(parts, bits),
        plain=lambda parts, dtype: _plain(parts, dtype, bits, tiles[0] if tiles else None),
        unused=(".input_scale", ".input_zero_point", ".output_scale", ".k_scale", ".v_scale", ".q_scale"),
    )


def _shape(parts: Parts, bits: list[int]) -> tuple[int, ...]:
    if "_packed" not in parts:
        return parts.shape("")
    shape = tuple(map(int, parts["_shape"].tolist()))
    _bits_of(parts, shape, bits)
    return shape


def _bits_of(parts: Parts, shape: tuple[int, ...], bits: list[int]) -> int:
    """Return the bits of a weight by its words; formats of groups are mixed by the names of modules."""
    packed = parts.shape("_packed")
    fitting = [one for one in bits if (*shape[:-1], -(-shape[-1] * one // WORD)) == packed] if shape else []
    if not fitting or len(shape) != 2:
        raise parts.mismatch("packed otherwise than its shape says")
    return fitting[0]


def _plain(parts: Parts, dtype: "torch.dtype", bits: list[int], tile: list[int] | None) -> "torch.Tensor":
    shape = _shape(parts, bits)
    if "_packed" in parts:
        width = _bits_of(parts, shape, bits)
        numbers = unpacked(parts["_packed"], width)[:, : shape[1]] - 2 ** (width - 1)
    else:
        width, numbers = 0, parts[""]
        if numbers.element_size() != 1 or numbers.ndim != 2:
            raise parts.mismatch(f"stored as {printable(str(numbers.dtype))}, not in 8 bits")
    scales = parts["_scale"].float()
    zeros = _zeros(parts, width, shape, scales)
    if "_g_idx" in parts and (group := parts["_g_idx"].long()).min() >= 0:
        scales, zeros = scales[:, group], None if zeros is None else zeros[:, group]
    scales = _as_grid(scales)
    if tile is not None and tuple(scales.shape) != tuple(
        -(-size // one) for size, one in zip(shape, tile, strict=True)
    ):
        tile = None  # another group of modules, whose scales are of rows
    if zeros is not None:
        numbers = numbers.float() - spread(parts, zeros, shape, tile)
    return (numbers.float() * spread(parts, scales, shape, tile)).to(dtype)


def _zeros(parts: Parts, width: int, shape: tuple[int, ...], scales: "torch.Tensor") -> "torch.Tensor | None":
    """Return the zero points as a grid of tiles, None where they are all 0."""
    import torch

    if "_zero_point" not in parts:
        return None
    stored = parts["_zero_point"]
    if width and stored.dtype == torch.int32:
        stored = unpacked(stored.T, width).T[: shape[0]] - 2 ** (width - 1)
    return _as_grid(stored.float())


def _as_grid(values: "torch.Tensor") -> "torch.Tensor":
    return values.unsqueeze(-1) if values.ndim == 1 and values.numel() > 1 else values
