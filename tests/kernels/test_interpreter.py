"""The kernels' own tests by Triton's interpreter on the CPU, in processes: it is chosen when a kernel is decorated."""

import os
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
from packaging.version import Version

FILES = ("test_gram.py", "test_row_cosine.py", "test_pairwise_cosine.py", "test_pairwise_l2.py")


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="would start itself")
@pytest.mark.parametrize("name", FILES)
def test_in_the_interpreter(name):
    triton = pytest.importorskip("triton")
    if Version(triton.__version__) < Version("3.7") and Version(numpy.__version__) >= Version("2.4"):
        pytest.skip("the interpreter of Triton before 3.7 does not run on numpy 2.4")
    file = Path(__file__).with_name(name)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "not gpu", str(file)]
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    root = Path(__file__).parents[2]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
