"""Each format is unpacked to the numbers that its definition gives, and to those of the library that reads it."""

import numpy
import packers
import pytest
import torch

from replaceme.dequantising.described import READ, needs_dequantising
from replaceme.dequantising.packing import Parts
from replaceme.dequantising.registry import FORMATS, packing_of


def unpacked(section, stored, dtype=torch.float32):
    """Return the plain tensors that a config and stored tensors stand for, by name."""
    packing = packing_of({"quantization_config": section}, "here")
    found = {}
    for name, parts in packing.weights(stored, "here").items():
        one = Parts.of(name, {ending: stored[own] for ending, own in parts.items()})
        found[name] = stored[name] if set(parts) == {""} else packing.unpacked(one, dtype)
    return found


@pytest.mark.parametrize("name", packers.FORMATS)
def test_weights_are_what_the_format_says(name):
    pack, section = packers.FORMATS[name]
    stored, weight = pack(numpy.random.default_rng(0), "a.b", (24, 40))
    stored |= {"a.norm.weight": torch.ones(3), "a.b.bias": torch.ones(24)}
    found = unpacked(section, stored)
    assert set(found) == {"a.b.weight", "a.norm.weight", "a.b.bias"}
    exact = torch.from_numpy(weight)
    assert (found["a.b.weight"] - exact).abs().max() <= 2e-7 * exact.abs().max()
    rounded = unpacked(section, stored, torch.bfloat16)["a.b.weight"]
    assert rounded.dtype == torch.bfloat16 and torch.equal(rounded, found["a.b.weight"].bfloat16())


def test_experts_of_mxfp4():
    stored, weight = packers.mxfp4(numpy.random.default_rng(0), "a.experts.down_proj", (3, 64, 5))
    stored["a.experts.down_proj_bias"] = torch.ones(3, 5)
    found = unpacked({"quant_method": "mxfp4"}, stored)
    assert set(found) == {"a.experts.down_proj", "a.experts.down_proj_bias"}
    assert torch.equal(found["a.experts.down_proj"].double(), torch.from_numpy(weight))
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    theirs = convert_moe_packed_tensors(stored["a.experts.down_proj_blocks"], stored["a.experts.down_proj_scales"])
    assert torch.equal(theirs.float(), found["a.experts.down_proj"])


def test_stacked_experts_and_scales_in_bytes_of_fp8():
    single = [packers.fp8(numpy.random.default_rng(seed), "x", (24, 40)) for seed in (0, 1)]
    numbers = torch.stack([stored["x.weight"] for stored, _ in single])
    exponents = torch.randint(110, 120, (2, 2, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    _, section = packers.FORMATS["fp8"]
    found = unpacked(section, {"a.up": numbers, "a.up_scale_inv": exponents})["a.up"]
    scales = torch.exp2(exponents.double() - 127).repeat_interleave(16, 1)[:, :24].repeat_interleave(16, 2)[..., :40]
    assert torch.equal(found.double(), numbers.double() * scales)
    of_all = unpacked({"quant_method": "fp8"}, {"a.weight": numbers[0], "a.weight_scale_inv": torch.tensor(0.5)})
    assert torch.equal(of_all["a.weight"], numbers[0].float() / 2)


def test_fp8_as_transformers_dequantises_it():
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    stored, _ = packers.fp8(numpy.random.default_rng(0), "a", (32, 48))
    theirs = Fp8Dequantize(None)._dequantize_one(stored["a.weight"], stored["a.weight_scale_inv"], torch.bfloat16)
    _, section = packers.FORMATS["fp8"]
    assert torch.equal(theirs, unpacked(section, stored, torch.bfloat16)["a.weight"])


@pytest.mark.parametrize("form", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [True, False])
def test_4_bits_as_bitsandbytes_packs_them(form, nested):
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = torch.randn(24, 64, generator=torch.Generator().manual_seed(0))
    packed, state = functional.quantize_4bit(weight, blocksize=64, compress_statistics=nested, quant_type=form)
    stored = {"a.weight": packed} | {f"a.weight.{key}": value for key, value in state.as_dict(packed=True).items()}
    section = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": form}
    found = unpacked(section, stored)["a.weight"]
    assert torch.equal(found, functional.dequantize_4bit(packed, state))
    assert (found - weight).abs().max() < 1


def test_8_bits_as_bitsandbytes_packs_them():
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = torch.randn(24, 40, generator=torch.Generator().manual_seed(0))
    numbers, largest, _ = functional.int8_vectorwise_quant(weight.half())
    _, section = packers.FORMATS["bitsandbytes, 8 bits"]
    found = unpacked(section, {"a.weight": numbers, "a.SCB": largest})["a.weight"]
    torch.testing.assert_close(found, functional.int8_vectorwise_dequant(numbers, largest), rtol=3e-7, atol=0)


def test_groups_in_the_order_of_activations():
    """`weight_g_idx` names each input's group; -1 stands where none was stored."""
    pack, section = packers.FORMATS["compressed, 4 bits"]
    stored, _ = pack(numpy.random.default_rng(0), "a", (24, 40))
    plain = unpacked(section, stored)["a.weight"]
    assert torch.equal(plain, unpacked(section, stored | {"a.weight_g_idx": torch.full((40,), -1)})["a.weight"])
    groups = torch.arange(40) % 5
    found = unpacked(section, stored | {"a.weight_g_idx": groups})["a.weight"]
    scales = stored["a.weight_scale"].float()
    numbers = plain / scales.repeat_interleave(8, 1)
    torch.testing.assert_close(found, numbers * scales[:, groups], rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("section", "words"),
    [
        (packers.FORMATS["gptq"][1], "gptq, 4 bits"),
        (packers.FORMATS["fp8"][1], "fp8"),
        (packers.FORMATS["compressed, 4 bits"][1], "compressed-tensors, 4 bits"),
        (packers.FORMATS["bitsandbytes, 8 bits"][1], "bitsandbytes, 8 bits"),
    ],
)
def test_formats_are_named_with_the_remedy(section, words):
    line = str(needs_dequantising(section, "here"))
    assert line.startswith(f"here: config.json says {words}, into which nothing can be folded; set `dequantise: true`")


def test_all_formats_are_said_to_be_read():
    assert set(READ) == set(FORMATS)


UNREAD = {
    "unknown": ({"quant_method": "hqq"}, "config.json says hqq, which is not read (read are fp8"),
    "no name": ({"bits": 4}, "says None, 4 bits, which is not read"),
    "no mapping": ("int4", "says int4, which is not read"),
    "3 bits": ({"quant_method": "gptq", "bits": 3}, "gptq with bits 3, which is not read (read are 2, 4, 8)"),
    "kernel's order": ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "awq with version 'gemv'"),
    "sparse": (packers.compressed("marlin-24", 4), "compressed-tensors marlin-24, which is not read"),
    "rotated": (
        packers.compressed("pack-quantized", 4) | {"transform_config": {"config_groups": {"u": {}}}},
        "rotated weights",
    ),
    "nothing": ({}, "names no quantisation; drop `dequantise`"),
    "bits are a list": ({"quant_method": "gptq", "bits": [4]}, "gptq with bits [4]"),
    "broken": ({"quant_method": "compressed-tensors", "config_groups": [1]}, "is not one of compressed-tensors"),
    "neither 4 nor 8": ({"quant_method": "bitsandbytes"}, "neither 4 nor 8 bits"),
    "tile": ({"quant_method": "fp8", "weight_block_size": [0, 1]}, "no [rows, columns]"),
}


@pytest.mark.parametrize("what", UNREAD)
def test_formats_that_are_not_read_are_refused(what, refuses):
    section, words = UNREAD[what]
    with refuses("here: ", words):
        packing_of({"quantization_config": section}, "here")


def test_parts_that_do_not_belong_together_are_refused(refuses):
    for pack, section in packers.FORMATS.values():
        stored, _ = pack(numpy.random.default_rng(0), "a", (24, 40))
        other, _ = pack(numpy.random.default_rng(0), "a", (40, 72))
        for part in stored:
            if part in ("a.g_idx", "a.weight_format", "a.weight_zero_point"):
                continue
            rest = {key: value for key, value in stored.items() if key != part}
            if len(rest) > 1 or "a.weight" not in rest:  # which alone would be a plain weight
                with refuses("a", "again"):
                    unpacked(section, rest)
            if stored[part].shape != other[part].shape:
                with refuses("a", "again"):
                    unpacked(section, stored | {part: other[part]})
