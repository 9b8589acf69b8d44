"""Files of tests run anew by Triton's interpreter, which is chosen when a kernel is decorated: in another process."""

import os
import subprocess
import sys
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


@pytest.fixture(autouse=True)
def short_programs(monkeypatch):
    """Interpret short programs: a step costs milliseconds there, also where it lies behind the last row."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        from replaceme.kernels import parts

        monkeypatch.setattr(parts, "BLOCK_ROWS", 32)
        monkeypatch.setattr(parts, "STEPS", 2)
