"""Files of tests run anew by Triton's interpreter, which is chosen when a kernel is decorated: in another process."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
from packaging.version import Version


@pytest.fixture(scope="session")
def pass_in_the_interpreter():
    """A function that expects the tests of files beside this one to pass, all kernels interpreted on the CPU."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("would start itself")
    triton = pytest.importorskip("triton")
    if Version(triton.__version__) < Version("3.7") and Version(numpy.__version__) >= Version("2.4"):
        pytest.skip("the interpreter of Triton before 3.7 does not run on numpy 2.4")

    def run(*names):
        files = [str(Path(__file__).with_name(name)) for name in names]
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:xdist",
            "-m",
            "not gpu",
            *files,
        ]
        environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        root = Path(__file__).parents[2]
        done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stdout + done.stderr
        assert " passed" in done.stdout

    return run


@pytest.fixture(autouse=True, scope="session")
def quick_interpreter():
    """Interpret short programs, as a step costs milliseconds there, also where it lies behind the last row.

    Without `debug` the interpreter computes whether each sum of integers overflows, and drops the answer: it need not.
    Nor need it build its table of types for each operation, or patch the language for a function that a patched one
    calls.
    """
    if os.environ.get("TRITON_INTERPRET") != "1":
        yield
        return
    from triton import language
    from triton.runtime import interpreter

    from replaceme.kernels import parts

    builder, type_of, by_name = interpreter.interpreter_builder, interpreter._get_np_dtype, {}
    patch_language, plain = interpreter._patch_lang, language.range
    assert not builder.options.debug

    def patched_once(function):
        used = [one for one in (language, language.core) if one in function.__globals__.values()]
        is_patched = used and all(one.range is not plain for one in used)
        return interpreter._LangPatchScope() if is_patched else patch_language(function)

    def remembered(kind):
        name = kind.scalar.name
        if name not in by_name:
            by_name[name] = type_of(kind)
        return by_name[name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "options", replace(builder.options, sanitize_overflow=False))
        patch.setattr(interpreter, "_get_np_dtype", remembered)
        patch.setattr(interpreter, "_patch_lang", patched_once)
        patch.setattr(parts, "BLOCK_ROWS", 32)
        patch.setattr(parts, "STEPS", 2)
        yield
