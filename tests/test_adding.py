"""What docs/adding.md adds to the package, one file and one entry each, works in a copy of it, schema and all."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FITS = {
    "symmetric": {"transform": "symmetric", "ridge_relative": 0.001},
    "gain": {"transform": "scalar", "placement": "mlp_gain"},
}
SCRIPT = """# warm
import json, sys
import replaceme
from replaceme.config.cuts import CutConfig
from replaceme.config.docs import render
from replaceme.config.fits import FitConfig
from replaceme.fitting.fit_cut import modules_of
from safetensors.torch import load_file

source, texts, fits, out = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3]), sys.argv[4]
found = {"package": replaceme.__file__, "docs": render()}
for name, options in fits.items():
    fit = FitConfig(**options)
    cut = CutConfig(blocks=2, metric="largest") if name == "symmetric" else CutConfig(blocks=2, start=3)
    # a placement has to be compared with its hooks; how a structure is folded is known
    verify = "placement" in options
    record = replaceme.prune(source, texts=texts, cut=cut, fit=fit, out=f"{out}/{name}", verify=verify)
    found[name] = {"fit": record["fit"], "placement": record["placement"], "modules": modules_of(fit)}
    found[name]["cut"] = record["cut"]
print(json.dumps(found))
"""


def shown(after):
    """The code that the document shows after some words."""
    text = (ROOT / "docs" / "adding.md").read_text()
    return re.search(r"```(?:python)?\n(.*?)```", text[text.index(after) :], re.S)[1]


def added(path, before, line):
    """Put a line before another one of a file."""
    text = path.read_text()
    assert text.count(before) == 1
    path.write_text(text.replace(before, line + before))


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A package with a structure and a placement more."""
    root = tmp_path_factory.mktemp("copy")
    package = Path(
        shutil.copytree(ROOT / "replaceme", root / "replaceme", ignore=shutil.ignore_patterns("__pycache__"))
    )
    shutil.copytree(ROOT / "kernels", package / "kernels", dirs_exist_ok=True)
    (package / "transforms" / "symmetric.py").write_text(shown("transforms/symmetric.py`:"))
    added(package / "config" / "transforms.py", '    "collapse": Structure(', shown("an entry of STRUCTURES in"))
    (package / "placements" / "mlp_gain.py").write_text(shown("placements/mlp_gain.py`:"))
    registry = package / "placements" / "registry.py"
    added(registry, "from replaceme.placements.placement import", shown("an import in"))
    added(registry, "    Block(),\n", shown("a line of PLACES"))
    (package / "cuts" / "largest.py").write_text(shown("cuts/largest.py`:"))
    text = (ROOT / "docs" / "adding.md").read_text()
    line = re.search(r'    "largest": Metric.*\n', text)[0]
    added(package / "config" / "metrics.py", '    "l2": Metric(', line)
    return root


@pytest.fixture(scope="module")
def found(copy, llama, texts, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    arguments = [sys.executable, "-c", SCRIPT, llama, json.dumps(texts), json.dumps(FITS), out]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "tests/startup"), str(copy)])}
    done = subprocess.run(list(map(str, arguments)), cwd=copy, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_structure_of_t(found, copy):
    assert Path(found["package"]).is_relative_to(copy)
    fit = found["symmetric"]["fit"]
    assert fit["solver"] == "symmetric" and 0 < fit["residual"] < fit["residual_identity"]
    assert found["symmetric"]["modules"] == ["replaceme.transforms.symmetric"], (
        "its code counts in the hash of its fits"
    )
    assert "symmetric (T = T^T)" in found["docs"]


def test_a_placement(found):
    """`prune` has compared the checkpoint with the original and the map in hooks."""
    assert found["gain"]["placement"] == "mlp_gain" and found["gain"]["fit"]["residual"] < 1
    assert "mlp_gain, onto the output of the carrier's MLP, as one factor (scalar)" in found["docs"]


def test_a_metric(found):
    cut = found["symmetric"]["cut"]
    assert cut["metric"] == "largest" and "largest" in found["docs"]
