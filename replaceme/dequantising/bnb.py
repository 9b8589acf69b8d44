"""bitsandbytes: NF4 and FP4 in blocks of a flat weight, and LLM.int8.

    4 bits: weight.flat[i] = quant_map[nibble i] * absmax[i // blocksize],
            absmax[b] = nested_quant_map[absmax[b]] * nested_absmax[b // nested_blocksize] + nested_offset where the
            scales are rounded too; of a byte the higher nibble comes first, and `quant_state` (JSON in bytes) has the
            true shape
    8 bits: weight[output, input] = q[output, input] * SCB[output] / 127

Source: the package bitsandbytes, functional.py (`QuantState`, `dequantize_4bit`, `int8_vectorwise_dequant`). Its own
kernels are not asked: with AVX-512 they take wrong scales where a row is no multiple of a block (models/quantised.py).
"""

import json
from typing import TYPE_CHECKING, Any

from replaceme.dequantising.packing import Packing, Parts, refused

if TYPE_CHECKING:
    import torch

STATES = (".quant_state.bitsandbytes__nf4", ".quant_state.bitsandbytes__fp4")
FOUR = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", *STATES, "")
LARGEST = 127


def packing(config: dict[str, Any]) -> Packing:
    """Return how a quantization_config of bitsandbytes packs; raises ReplaceMeError where it says no bits."""
    if config.get("load_in_4bit") or config.get("_load_in_4bit"):
        return Packing(
            endings=dict.fromkeys(FOUR, ""),
            packed=("",),
            shape=lambda parts: tuple(_state(parts)["shape"]),
            plain=_four,
        )
    if config.get("load_in_8bit") or config.get("_load_in_8bit"):
        return Packing(
            endings={".SCB": ".weight", ".weight_format": ".weight", "": ""},
            packed=("",),
            shape=lambda parts: parts.shape(""),
            plain=_eight,
        )
    raise refused("bitsandbytes of neither 4 nor 8 bits", "read are load_in_4bit and load_in_8bit")


def _state(parts: Parts) -> dict[str, Any]:
    ending = next((one for one in STATES if one in parts), STATES[0])
    try:
        state = json.loads(bytes(parts[ending].tolist()))
        return {key: state[key] for key in ("shape", "blocksize")} | state
    except (ValueError, KeyError, TypeError) as error:
        raise parts.mismatch("a quant_state that cannot be read") from error


def _four(parts: Parts, dtype: "torch.dtype") -> "torch.Tensor":
    import torch

    state = _state(parts)
    scales = parts[".absmax"]
    if "nested_offset" in state:
        rounded = parts[".nested_quant_map"].float()[scales.long()]
        scales = _blocks(rounded, parts[".nested_absmax"], state["nested_blocksize"]) + state["nested_offset"]
    stored = parts[""].contiguous().flatten().view(torch.uint8)
    numbers = parts[".quant_map"].float()[torch.stack((stored >> 4, stored & 15), -1).flatten().long()]
    shape = torch.Size(state["shape"])
    if not 0 <= len(numbers) - shape.numel() <= 1:
        raise parts.mismatch(f"stored for another shape than {list(shape)}")
    return _blocks(numbers[: shape.numel()], scales, state["blocksize"]).to(dtype).reshape(shape)


def _blocks(numbers: "torch.Tensor", scales: "torch.Tensor", size: int) -> "torch.Tensor":
    """Return flat numbers times the scale of their block; raises ValueError for another number of blocks."""
    if len(scales) != -(-len(numbers) // size):
        raise ValueError(f"{len(scales)} scales for {len(numbers)} numbers in blocks of {size}")
    return numbers * scales.float().repeat_interleave(size)[: len(numbers)]


def _eight(parts: Parts, dtype: "torch.dtype") -> "torch.Tensor":
    import torch

    numbers, largest = parts[""], parts[".SCB"].float()
    if numbers.dtype != torch.int8 or largest.numel() != len(numbers):
        raise parts.mismatch(f"stored as {numbers.dtype}, with scales that are not of its rows")
    if ".weight_format" in parts and parts[".weight_format"].max() != 0:
        raise parts.mismatch("weights in the order of a kernel")
    return (numbers.float() * (largest.reshape(-1, 1) / LARGEST)).to(dtype)
