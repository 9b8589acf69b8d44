"""Every kernel compiles for the GPUs we name, within their shared memory and without spills; no GPU needed."""

import importlib
import os
import re
import subprocess

import pytest

triton = pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

SHARED = {80: 163 * 1024, 86: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024}  # bytes a block may have
EVERY = sorted(SHARED)
ENDS = [80, 90]


def module(name):
    return importlib.import_module(f"replaceme.kernels.{name}")


def compiled(kernel, types, constants, capability, warps, stages=3):
    """Return compile a kernel; pointers by name in `types`, integers for the rest, as aligned as real arguments are."""
    signature, hints = {}, {}
    for position, name in enumerate(kernel.arg_names):
        signature[name] = "constexpr" if name in constants else types.get(name, "i32")
        if name not in constants and not name.endswith(("rows", "columns", "tokens")):
            hints[(position,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, hints)
    options = {"num_warps": warps, "num_stages": stages}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def stack_bytes(binary, tmp_path):
    """Stack of each thread, where spilled registers go."""
    file = tmp_path / "kernel.cubin"
    file.write_bytes(binary.asm["cubin"])
    command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return max(int(size) for size in re.findall(r"STACK:(\d+)", done.stdout + done.stderr))


def check(binary, capability, tmp_path):
    assert binary.metadata.shared <= SHARED[capability]
    assert stack_bytes(binary, tmp_path) == 0


@pytest.mark.parametrize("capability", EVERY)
@pytest.mark.parametrize("name", ["SMALL", "LARGE"])
def test_portable_products(name, capability, tmp_path):
    products = module("products")
    configuration = getattr(products, name)
    types = {"left_ptr": "*bf16", "right_ptr": "*bf16", "partial_ptr": "*fp32", "units_ptr": "*i32"}
    tile = configuration.tile
    constants = {"PAIRS": 3, "CODE": 0x48, "WIDEN": False, "TILE": tile, "BLOCK_ROWS": configuration.block_rows}
    args = (constants, capability, configuration.warps, configuration.stages)
    binary = compiled(products._products_kernel, types, *args)
    check(binary, capability, tmp_path)
    # each element of each run is added on its own, not in the tensor cores' long truncating sum
    own = tile * tile // (32 * configuration.warps)
    assert len(re.findall(r"(?:add|fma)(?:\.rn)?\.f32", binary.asm["ptx"])) >= own


@pytest.mark.parametrize("capability", ENDS)
def test_finish(capability, tmp_path):
    kernel = module("products")._finish_kernel
    types = {"partial_ptr": "*fp32", "tiles_ptr": "*i32", "out_ptr": "*fp64"}
    constants = {"SYMMETRIC": True, "FRESH": False, "HEIGHT": 128, "WIDTH": 256, "BLOCK": 32, "PDL": capability == 90}
    check(compiled(kernel, types, constants, capability, warps=4), capability, tmp_path)


@pytest.mark.parametrize("capability", ENDS)
def test_form(capability, tmp_path):
    import triton.language as tl

    kernel = module("parts")._form_kernel
    types = dict.fromkeys(("a_ptr", "b_ptr", "c_ptr", "parts_ptr"), "*bf16") | {"kept_ptr": "*i64"}
    types |= dict.fromkeys(("scale_ptr", "weights_ptr"), "*fp32")
    types |= {"sums_ptr": "*fp64"}
    constants = {"TERMS": 3, "HAS_KEPT": True, "HAS_SCALE": True, "HAS_WEIGHTS": True, "PARTS": 3, "ROUND_TO": None}
    constants |= {"SUM_R": True, "SUM_TERM": 2, "PDL": capability == 90}
    constants |= {"PART_DTYPE": tl.bfloat16, "STEPS": 16, "ROWS": 16, "COLUMNS": 128}
    constants |= dict.fromkeys(("a_column", "b_column", "c_column"), 1)
    check(compiled(kernel, types, constants, capability, warps=4), capability, tmp_path)


@pytest.mark.parametrize("capability", ENDS)
def test_totals(capability, tmp_path):
    parts = module("parts")
    types = dict.fromkeys(("sums_ptr", "sum_r_ptr", "energy_ptr", "sum_term_ptr"), "*fp64")
    constants = {"SUM_R": True, "SUM_TERM": True, "PDL": capability == 90}
    constants |= {"BLOCKS": parts.TOTAL_BLOCKS, "COLUMNS": parts.TOTAL_COLUMNS}
    check(compiled(parts._add_totals_kernel, types, constants, capability, warps=4), capability, tmp_path)


@pytest.mark.parametrize("width", [128, 256])
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_hopper_products(dtype, width, tmp_path):
    gluon = pytest.importorskip("triton.experimental.gluon")
    from triton.experimental.gluon._runtime import GluonASTSource

    gl = gluon.language
    hopper = module("products_hopper")
    element = {"bf16": gl.bfloat16, "fp16": gl.float16}[dtype]

    def descriptor(columns):
        layout = gl.NVMMASharedLayout.get_default_for([hopper.BLOCK_ROWS, columns], element)
        return f"tensordesc<{dtype}[{hopper.BLOCK_ROWS},{columns}],{layout!r}>"

    constants = {"PAIRS_0": 1, "CODE_0": 0, "PAIRS_1": 3, "CODE_1": 0x48}
    constants |= {"BLOCK": hopper.BLOCK_ROWS, "WIDTH": width, "STAGES": hopper.STAGES[width], "PDL": True}
    signature = {"left": descriptor(64), "right_0": descriptor(128), "right_1": descriptor(128)}
    signature |= {"units": "*i32", "partial": "*fp32"}
    signature |= dict.fromkeys(("left_part", "right_part_0", "right_part_1"), "i32") | dict.fromkeys(
        constants, "constexpr"
    )
    source = GluonASTSource(hopper._products_kernel, signature, constants, {})
    binary = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})
    check(binary, 90, tmp_path)


@pytest.mark.parametrize("capability", EVERY)
def test_row_cosine(capability, tmp_path):
    row_cosine = module("row_cosine")
    configuration = row_cosine.HALF
    names = ("x_ptr", "t_ptr", "a_ptr", "b_ptr", "c_ptr", "y_ptr")
    types = dict.fromkeys(names, "*bf16") | {"mask_ptr": "*u8", "out_ptr": "*fp32"}
    constants = {"TERMS": 3, "HAS_Y": True, "HAS_MASK": True, "WIDE": False, "ROWS": configuration.rows}
    constants |= {"COLUMNS": configuration.columns, "BLOCK": configuration.block, "GROUP": row_cosine.GROUP, "parts": 1}
    unit = ("x_column", "t_column", "a_column", "b_column", "c_column", "y_column", "mask_stride")
    constants |= dict.fromkeys(unit, 1)
    args = (constants, capability, configuration.warps, configuration.stages)
    check(compiled(row_cosine._row_cosine_kernel, types, *args), capability, tmp_path)


@pytest.mark.parametrize("capability", EVERY)
def test_pairwise_cosine(capability, tmp_path):
    pairwise = module("pairwise_cosine")
    configuration = pairwise._configuration(64, wide=False)
    types = {"first_ptr": "*bf16", "table_ptr": "*i64", "mask_ptr": "*u8", "products_ptr": "*fp32", "sums_ptr": "*fp64"}
    constants = {"mask_stride": 1, "UNIT": 8, "HAS_MASK": True, "WIDE": False, "PADDED": 64}
    constants |= {"BLOCK_COLUMNS": configuration.block_columns}
    constants |= {"BLOCK_PAIRS": min(64 * 64 // 4, pairwise.PAIRS_PER_WARP * configuration.warps)}
    args = (constants, capability, configuration.warps, configuration.stages)
    check(compiled(pairwise._pairwise_cosine_kernel, types, *args), capability, tmp_path)


@pytest.mark.parametrize("capability", ENDS)
def test_divergence(capability, tmp_path):
    kernels = module("divergence")
    types = dict.fromkeys(("p_ptr", "q_ptr", "gradient_ptr"), "*bf16") | {"values_ptr": "*fp32", "weight": "fp32"}
    constants = {"LOWEST": kernels.LEAST, "HAS_GRADIENT": True, "BLOCK": kernels.BLOCK}
    args = (constants, capability, kernels.WARPS)
    check(compiled(kernels._divergence_kernel, types, *args), capability, tmp_path)
