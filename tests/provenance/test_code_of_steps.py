"""How far an edit of the package reaches: the steps of the workflow whose code hash it changes."""

import ast
from pathlib import Path

import pytest

from replaceme.provenance import code_hash, source_text
from replaceme.steps.index import STEPS

ROOT = Path(__file__).parents[2]
BY_HAND = {"prune", "publish", "preflight", "check"}  # no rule keeps what they make
SPARSE, COSINE = "fit of a sparse map", "fit by reweighting"
MODULES = {name: (f"replaceme.steps.{name}",) for name in STEPS if name not in BY_HAND}
MODULES[SPARSE] = ("replaceme.steps.fit", "replaceme.transforms.sparse")
MODULES[COSINE] = ("replaceme.steps.fit", "replaceme.transforms.cosine")
FITS = {"fit", SPARSE, COSINE}
OF_RECYCLED = {"candidates", "gram", "recycle", "rows", "heal", "merge", "verify"}

REACH = [
    ("transforms.sparse", "fit_elastic_net", {SPARSE}),
    ("transforms.cosine", "fit_cosine", {COSINE}),
    ("config.figures", "FigureConfig", {"figure"}),
    ("reports.figure_style", "figure_in_style", {"figure"}),
    ("activations.recycled_neurons", "Recycled", OF_RECYCLED | {"enough"} | FITS),
    ("activations.recycled_neurons", "choose_neurons", {"recycle"} | FITS),
    ("transforms.neuron_choice", "keep_best", {"recycle"} | FITS),
    ("micro.stories", "document", {"tokens", "generate"}),
    ("cuts.groups", "greedy", {"cut"}),
    ("cuts.similarity", "cka", {"distances"}),
    ("cuts.after_fit", "predictions", {"candidates"}),
    ("activations.comparison", "compare", {"candidates", "divergence", "heal"}),
    ("cuts.taylor", "taylor_scores", {"candidates"}),
    ("cuts.laco_search", "merge", {"candidates"}),
    ("evaluation.scoring", "estimate", {"evaluate"}),
    ("surgery.fold", "finish", {"merge"}),
    ("placements.upstream", "_writers", {"merge", "heal"}),
    ("placements.placement", "mapped", {"candidates", "verify"} | FITS),
    ("healing.loop", "train", {"heal"}),
    ("methods.slicegpt", "fit", set()),  # but that of its own fits, whose rules name it
    ("kernels.products_hopper", "add_products", {"candidates", "enough", "gram", "recycle"} | FITS),
    ("core.files", "replacing", set(MODULES)),
]


@pytest.fixture(scope="module")
def package():
    return code_hash._Package(ROOT / "replaceme")


@pytest.fixture(scope="module")
def before(package):
    return hashes(package)


def hashes(package):
    return {step: package._fingerprint(modules) for step, modules in MODULES.items()}


def edited(text, name):
    """The text with a statement more in a function or class."""
    node = next(one for one in ast.parse(text).body if getattr(one, "name", None) == name)
    line, column = node.end_lineno, node.body[-1].col_offset
    lines = text.splitlines(keepends=True)
    return "".join([*lines[:line], f"{' ' * column}_edited = True\n", *lines[line:]])


@pytest.mark.parametrize(
    ("module", "name", "expected"), REACH, ids=lambda value: value if isinstance(value, str) else ""
)
def test_an_edit_reaches_the_steps_that_can_run_it(package, before, monkeypatch, module, name, expected):
    full = f"replaceme.{module}"
    text = edited(package.find(full).read_text(), name)
    package.read(full)
    monkeypatch.setitem(package.modules, full, source_text.read_module(text, full.rpartition(".")[0]))
    after = hashes(package)
    assert {step for step in MODULES if after[step] != before[step]} == expected


def test_words_reach_nothing(package, before, monkeypatch):
    for module in list(package.modules):
        text = package.find(module).read_text()
        is_package = package.find(module).name == "__init__.py"
        monkeypatch.setitem(
            package.modules,
            module,
            source_text.read_module(
                text.replace('"""', '"""Once more: ', 1) + "\n# the end\n",
                module if is_package else module.rpartition(".")[0],
            ),
        )
    assert hashes(package) == before
