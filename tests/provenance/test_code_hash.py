"""The code hash changes with what a step runs, wherever it is imported, and with nothing else."""

import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from replaceme.core.files import noting_apart
from replaceme.provenance import code_hash as fingerprints
from replaceme.provenance.code_hash import fingerprint, forget

ROOT = Path(__file__).parents[2]

FILES = {
    "replaceme/__init__.py": '''
        """Package."""
        __version__ = "1"
        def __getattr__(name):
            from replaceme.api import prune
            return prune
    ''',
    "replaceme/api.py": "from replaceme import everything\ndef prune(): return everything.x\n",
    "replaceme/everything.py": "x = 1\n",
    "replaceme/step.py": '''
        """A step."""
        from typing import TYPE_CHECKING

        from replaceme import __version__
        from . import relative
        from replaceme.kernels import gram
        from replaceme.shared import Section, used

        if TYPE_CHECKING:
            from replaceme.typed import Thing

        def run(thing: "Thing"):
            """Run it."""
            import replaceme.lazy as lazy
            return lazy.z, gram, relative.y, __version__, used(Section())
    ''',
    "replaceme/shared.py": '''
        import logging
        from dataclasses import dataclass
        from math import pi

        LIMIT, OTHER = 3, 4
        logging.captureWarnings(True)

        try:
            import triton
        except ImportError:
            triton = None

        @dataclass
        class Section:
            """Options."""
            size: int = LIMIT
            def method(self): return 1
            def other(self): return self.third()
            def third(self): return 10

        class Foreign(logging.Handler):
            def emit(self, record): return 20

        def used(section):
            return _helper(section.method, Foreign(), pi, triton)

        def _helper(*given): return given

        def unused(): return OTHER
    ''',
    "replaceme/relative.py": "from .sub.deep import y\nfrom replaceme import below\nother = below.b\n",
    "replaceme/typed.py": "class Thing: pass\n",
    "replaceme/lazy.py": "z = 3\n",
    "replaceme/unrelated.py": "u = 4\n",
    "replaceme/sub/__init__.py": "",
    "replaceme/sub/deep.py": "y = 2\n",
    "replaceme/below.py": "b = 5\n",
    "kernels/__init__.py": "from replaceme.kernels.gram import gram\n",
    "kernels/gram.py": "def gram(): return 1\n",
}


@pytest.fixture
def tree(tmp_path):
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    return tmp_path


def of(tree, *modules):
    forget()
    return fingerprint(*(modules or ("replaceme.step",)), folder=tree / "replaceme")


def edit(tree, name, old, new):
    path = tree / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("replaceme/step.py", "return lazy.z,", "return 0,"),
        ("replaceme/step.py", "replaceme.lazy as", "replaceme.unrelated as"),
        ("replaceme/__init__.py", '= "1"', '= "2"'),
        ("replaceme/relative.py", "import y", "import y as q"),
        ("replaceme/sub/deep.py", "y = 2", "y = 3"),
        ("replaceme/sub/__init__.py", "", "print()\n"),
        ("replaceme/lazy.py", "z = 3", "z = 4"),
        ("replaceme/shared.py", "return given", "return given[:1]"),
        ("replaceme/shared.py", "from math import pi", "from cmath import pi"),
        ("replaceme/shared.py", "LIMIT, OTHER = 3", "LIMIT, OTHER = 5"),
        ("replaceme/shared.py", "size: int", "size: float"),
        ("replaceme/shared.py", "return 1\n", "return 2\n"),
        ("replaceme/shared.py", "return 20", "return 21"),
        ("replaceme/shared.py", "@dataclass\n", "@dataclass(frozen=True)\n"),
        ("replaceme/shared.py", "captureWarnings(True)", "captureWarnings(False)"),
        ("replaceme/shared.py", "triton = None", "triton = 0"),
        ("kernels/gram.py", "return 1", "return 2"),
    ],
    ids=lambda value: value if "/" in value else "",
)
def test_changes_with_code_that_can_run(tree, name, old, new):
    before = of(tree)
    edit(tree, name, old, new) if old else (tree / name).write_text(new)
    assert of(tree) != before


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("replaceme/shared.py", "self.third()", "self.third() + 1"),
        ("replaceme/shared.py", "return 10", "return 11"),
        ("replaceme/step.py", '"""A step."""', '"""Another\n\ntext."""\n# and a comment'),
        ("replaceme/step.py", '"""Run it."""', '"""Runs."""'),
        ("replaceme/step.py", "return lazy.z, gram", "return  lazy.z,  gram"),
        ("replaceme/step.py", 'thing: "Thing"', 'thing: "Thing | None"'),
        ("replaceme/typed.py", "pass", "a = 1"),
        ("replaceme/shared.py", "return OTHER", "return OTHER + 1"),
        ("replaceme/shared.py", '"""Options."""', '"""Other options."""'),
        ("replaceme/relative.py", "other = below.b", "other = below.b + 1"),
        ("replaceme/below.py", "b = 5", "b = 6"),
        ("replaceme/sub/__init__.py", "", "s = 1\n"),
        ("replaceme/unrelated.py", "u = 4", "u = 5"),
        ("replaceme/everything.py", "x = 1", "x = 2"),
        ("replaceme/api.py", "return everything.x", "return 1"),
    ],
    ids=lambda value: value if value.startswith("replaceme/") else "",
)
def test_stays_with_all_else(tree, name, old, new):
    before = of(tree)
    edit(tree, name, old, new) if old else (tree / name).write_text(new)
    assert of(tree) == before


@pytest.mark.parametrize("line", ["from replaceme import prune", "import replaceme"])
def test_what_a_package_offers_lazily_counts_when_it_is_used(tree, line):
    (tree / "replaceme/step.py").write_text(f"{line}\ndef run(): return {line.split()[-1]}\n")
    before = of(tree)
    edit(tree, "replaceme/everything.py", "x = 1", "x = 2")
    assert of(tree) != before


def test_what_a_registry_names_counts_for_who_imports_by_it_alone(tree):
    """`run` calls what the registry names in full, `show` prints the registry."""
    (tree / "replaceme/registry.py").write_text('KNOWN = {"y": ("a label", "replaceme.sub.deep.y")}\n')
    (tree / "replaceme/named.py").write_text("def import_named(name): ...\n")
    head = "from replaceme.named import import_named\nfrom replaceme.registry import KNOWN\n"
    (tree / "replaceme/step.py").write_text(head + "def run(): return import_named(KNOWN['y'][1])\n")
    (tree / "replaceme/show.py").write_text(head + "def show(): return KNOWN\n")
    run, show = of(tree), of(tree, "replaceme.show")
    edit(tree, "replaceme/sub/deep.py", "y = 2", "y = 3")
    assert of(tree) != run and of(tree, "replaceme.show") == show


def test_kernels_inside_an_installed_package(tree):
    before = of(tree)
    shutil.move(tree / "kernels", tree / "replaceme" / "kernels")
    assert of(tree) == before
    edit(tree, "replaceme/kernels/gram.py", "return 1", "return 2")
    assert of(tree) != before


def test_several_modules_and_unknown_ones(tree):
    assert (
        len({of(tree, "replaceme.step"), of(tree, "replaceme.lazy"), of(tree, "replaceme.step", "replaceme.api")}) == 3
    )
    assert of(tree, "replaceme.step", "replaceme.api") == of(tree, "replaceme.api", "replaceme.step")
    for unknown in ("replaceme.no_such", "torch"):
        with pytest.raises(ModuleNotFoundError, match=unknown):
            of(tree, unknown)


def test_import_cycles_end(tree):
    (tree / "replaceme/lazy.py").write_text("import replaceme.step\n")
    assert len(of(tree)) == 12


def test_the_packages_own_code(tmp_path):
    for folder in ("replaceme", "kernels"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    before = of(tmp_path, "replaceme.activations.statistics")
    assert before == of(ROOT, "replaceme.activations.statistics")
    with (tmp_path / "kernels" / "gram.py").open("a") as file:
        file.write("\n# a comment\n")
    assert of(tmp_path, "replaceme.activations.statistics") == before
    edit(tmp_path, "kernels/gram.py", "total = torch.zeros_like(out)", "total = 0 * out")
    assert of(tmp_path, "replaceme.activations.statistics") != before


def test_is_the_same_in_every_process_and_imports_no_torch():
    code = "import sys; from replaceme.provenance.code_hash import fingerprint as f"
    code += "; print(f('replaceme.activations.statistics')); assert 'torch' not in sys.modules"
    found = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout for _ in "ab"
    }
    forget()
    assert found == {fingerprint("replaceme.activations.statistics") + "\n"}


def test_hashes_are_kept_until_a_file_changes(tree, monkeypatch):
    before = of(tree)
    monkeypatch.setattr(fingerprints, "read_module", lambda *_: pytest.fail("read again"))
    assert of(tree) == before
    monkeypatch.undo()
    edit(tree, "replaceme/lazy.py", "z = 3", "z = 4")
    assert of(tree) != before


def test_where_hashes_are_kept_is_no_output_of_the_step_that_asks(tree):
    with noting_apart() as noted:
        of(tree)
    assert (tree / "replaceme" / fingerprints.KEPT).is_file() and not noted.written


@pytest.mark.parametrize("content", ["", "[]", '{"files": {}}', '{"files": "other", "known": 1}'])
def test_what_another_version_kept_or_nobody_is_made_anew(tree, content):
    before, kept = of(tree), tree / "replaceme" / fingerprints.KEPT
    kept.write_text(content)
    assert of(tree) == before
    assert json.loads(kept.read_text())["known"] == {"replaceme.step": before}


def test_where_nothing_can_be_kept_all_is_the_same(tree):
    before, kept = of(tree), tree / "replaceme" / fingerprints.KEPT
    shutil.rmtree(kept.parent)
    kept.parent.write_text("no folder")
    assert of(tree) == before
