"""Pack random weights by the definition of each quantised format, number by number, with the weights they stand for.

Nothing here is the package's: what it unpacks is packed by plain loops over integers, and the expected weights are
float64 products of the numbers that were drawn.
"""

import json
import shutil

import numpy
import torch
from safetensors.torch import load_file, save_file

GROUP = 8  # inputs that share a scale
TILE = 16
HALF = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
NF4_CODE = torch.linspace(-1, 1, 16) ** 3  # any 16 numbers; a checkpoint brings its own


def words(numbers, bits, order=None):
    """Return words [rows, columns * bits / 32] of unsigned numbers [rows, columns], the first in the lowest bits."""
    each = 32 // bits
    found = numpy.zeros((len(numbers), -(-numbers.shape[1] // each)), dtype=numpy.uint32)
    for row, values in enumerate(numbers):
        for word in range(found.shape[1]):
            for place in range(each):
                column = word * each + (place if order is None else order[place])
                if column < len(values):
                    found[row, word] |= numpy.uint32(int(values[column]) << (bits * place))
    return torch.from_numpy(found.view(numpy.int32).copy())


def grouped(random, shape, bits, groups):
    """Return numbers, zero points and scales of a weight [outputs, inputs], and the weight."""
    outputs, inputs = shape
    numbers = random.integers(0, 2**bits, (outputs, inputs))
    zeros = random.integers(1, 2**bits, (outputs, int(max(groups)) + 1))
    scales = random.uniform(0.01, 0.05, zeros.shape).astype(numpy.float16)
    weight = scales[:, groups].astype(float) * (numbers - zeros[:, groups])
    return numbers, zeros, scales, weight


def gptq(random, name, shape, bits=4, v2=False, desc_act=True):
    groups = numpy.arange(shape[1]) // GROUP
    if desc_act:
        groups = random.permutation(groups)
    numbers, zeros, scales, weight = grouped(random, shape, bits, groups)
    stored = {
        "qweight": words(numbers, bits).T.contiguous(),
        "qzeros": words(zeros.T - (0 if v2 else 1), bits),
        "scales": torch.from_numpy(scales.T.copy()),
    }
    if desc_act:
        stored["g_idx"] = torch.from_numpy(groups.astype(numpy.int32))
    return {f"{name}.{part}": tensor for part, tensor in stored.items()}, weight


def gptq_8(random, name, shape):
    return gptq(random, name, shape, bits=8, v2=True, desc_act=False)


def awq(random, name, shape):
    groups = numpy.arange(shape[1]) // GROUP
    numbers, zeros, scales, weight = grouped(random, shape, 4, groups)
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    stored = {
        "qweight": words(numbers.T, 4, order),
        "qzeros": words(zeros.T, 4, order),
        "scales": torch.from_numpy(scales.T.copy()),
    }
    return {f"{name}.{part}": tensor for part, tensor in stored.items()}, weight


def fp8(random, name, shape):
    numbers = torch.from_numpy(random.normal(size=shape)).mul(20).to(torch.float8_e4m3fn)
    grid = random.uniform(0.001, 0.01, [-(-size // TILE) for size in shape]).astype(numpy.float32)
    weight = numbers.double().numpy().copy()
    for row in range(shape[0]):
        for column in range(shape[1]):
            weight[row, column] *= float(grid[row // TILE, column // TILE])
    return {f"{name}.weight": numbers, f"{name}.weight_scale_inv": torch.from_numpy(grid)}, weight


def mxfp4(random, name, shape):
    """Experts [experts, columns, rows] as GPT-OSS has them; `name` is the whole name of the parameter."""
    experts, columns, rows = shape
    nibbles = random.integers(0, 16, (experts, rows, columns))
    exponents = random.integers(120, 130, (experts, rows, columns // 32))
    values = numpy.array([*HALF, *(-one for one in HALF)])[nibbles]
    weight = (values * 2.0 ** (exponents.repeat(32, -1) - 127.0)).transpose(0, 2, 1)
    blocks = (nibbles[..., 0::2] | nibbles[..., 1::2] << 4).reshape(experts, rows, columns // 32, 16)
    stored = {"blocks": blocks, "scales": exponents}
    return {f"{name}_{part}": torch.from_numpy(one.astype(numpy.uint8)) for part, one in stored.items()}, weight


def pack_quantized(random, name, shape, bits=4, symmetric=True):
    groups = numpy.arange(shape[1]) // GROUP
    numbers, zeros, scales, _ = grouped(random, shape, bits, groups)
    middle = 2 ** (bits - 1)
    zeros = numpy.full_like(zeros, middle) if symmetric else zeros
    weight = scales[:, groups].astype(float) * (numbers - zeros[:, groups])
    stored = {
        "weight_packed": words(numbers, bits),
        "weight_scale": torch.from_numpy(scales),
        "weight_shape": torch.tensor(shape),
    }
    if not symmetric:
        stored["weight_zero_point"] = words(zeros.T, bits).T.contiguous()
    return {f"{name}.{part}": tensor for part, tensor in stored.items()}, weight


def pack_quantized_8(random, name, shape):
    return pack_quantized(random, name, shape, bits=8, symmetric=False)


def float_quantized(random, name, shape):
    numbers = torch.from_numpy(random.normal(size=shape)).mul(20).to(torch.float8_e4m3fn)
    scales = random.uniform(0.001, 0.01, (shape[0], 1)).astype(numpy.float32)
    stored = {f"{name}.weight": numbers, f"{name}.weight_scale": torch.from_numpy(scales)}
    return stored, numbers.double().numpy() * scales


def nf4(random, name, shape, nested=True):
    """NF4 with blocks of 16 numbers and scales rounded in blocks of 4, of a flat weight."""
    count = shape[0] * shape[1]
    nibbles = random.integers(0, 16, count)
    blocks = -(-count // 16)
    rounded, code = random.integers(0, 256, blocks), numpy.linspace(-1, 1, 256, dtype=numpy.float32)
    outer = random.uniform(0.1, 0.2, -(-blocks // 4)).astype(numpy.float32)
    scales = code[rounded].astype(float) * outer[numpy.arange(blocks) // 4] + 0.25
    weight = (NF4_CODE.double().numpy()[nibbles] * scales[numpy.arange(count) // 16]).reshape(shape)
    state = {"shape": list(shape), "blocksize": 16, "dtype": "bfloat16", "quant_type": "nf4"}
    state |= {"nested_blocksize": 4, "nested_offset": 0.25, "nested_dtype": "float32"}
    stored = {
        "": torch.from_numpy((nibbles[0::2] << 4 | nibbles[1::2]).astype(numpy.uint8)).reshape(-1, 1),
        ".absmax": torch.from_numpy(rounded.astype(numpy.uint8)),
        ".quant_map": NF4_CODE.clone(),
        ".nested_absmax": torch.from_numpy(outer),
        ".nested_quant_map": torch.from_numpy(code),
        ".quant_state.bitsandbytes__nf4": torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8),
    }
    return {f"{name}.weight{part}": tensor for part, tensor in stored.items()}, weight


def int8(random, name, shape):
    numbers = random.integers(-127, 128, shape).astype(numpy.int8)
    largest = random.uniform(0.1, 2, shape[0]).astype(numpy.float32)
    stored = {f"{name}.weight": torch.from_numpy(numbers), f"{name}.SCB": torch.from_numpy(largest)}
    stored[f"{name}.weight_format"] = torch.tensor(0, dtype=torch.uint8)
    return stored, numbers * (largest.astype(float)[:, None] / 127)


def compressed(form, bits, kind="int", **more):
    weights = {"num_bits": bits, "type": kind, "strategy": "group", "group_size": GROUP, **more}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": groups, "ignore": ["lm_head"]}


FORMATS = {
    "fp8": (fp8, {"quant_method": "fp8", "weight_block_size": [TILE, TILE], "activation_scheme": "dynamic"}),
    "gptq": (gptq, {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": True}),
    "gptq v2, 8 bits": (
        gptq_8,
        {"quant_method": "gptq", "bits": 8, "group_size": GROUP, "checkpoint_format": "gptq_v2"},
    ),
    "awq": (awq, {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm", "zero_point": True}),
    "compressed, 4 bits": (pack_quantized, compressed("pack-quantized", 4)),
    "compressed, 8 bits with zero points": (
        pack_quantized_8,
        compressed("pack-quantized", 8, symmetric=False),
    ),
    "compressed, FP8": (float_quantized, compressed("float-quantized", 8, "float", strategy="channel")),
    "bitsandbytes, 4 bits": (
        nf4,
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    ),
    "bitsandbytes, 8 bits": (int8, {"quant_method": "bitsandbytes", "load_in_8bit": True}),
}


def pack_checkpoint(plain, folder, form):
    """Copy a tiny checkpoint to a folder and pack its blocks' matrices; returns the plain tensors that this means."""
    pack, section = FORMATS[form]
    shutil.copytree(plain, folder)
    random, stored, expected = numpy.random.default_rng(0), {}, {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        expected[name] = stored[name] = tensor
        if "_proj." in name:
            del stored[name]
            parts, weight = pack(random, name.removesuffix(".weight"), tuple(tensor.shape))
            stored |= parts
            # as it is made: a product in float32, rounded once
            expected[name] = torch.from_numpy(weight.astype(numpy.float32)).to(tensor.dtype)
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": section}))
    return expected
