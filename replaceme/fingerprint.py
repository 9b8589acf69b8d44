"""Hash of the code behind a step, for workflow parameters: a job reruns when the code that it runs was edited.

The hash covers a module and every module of this package that it imports, wherever the import stands: at the top,
inside a function or under TYPE_CHECKING. Comments, docstrings and layout do not count. Blind to imports by computed
name and to data files. A workflow asks for some 25 steps that share most of their modules, so each file is read once in
a process; what its text says is kept in `__pycache__`, by the hash of the text, as Python keeps its bytecode there.
"""

import ast
import contextlib
import functools
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from replaceme.files import write_text

PACKAGE_FOLDER = Path(__file__).parent
DEFINITIONS = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
KEPT = Path("__pycache__") / "fingerprints.json"


def fingerprint(*modules: str, folder: Path = PACKAGE_FOLDER) -> str:
    """12 hex digits that change when the code of `modules` (such as "replaceme.fold") or of what they import changes.

    `folder` is the package's, read once: `forget` makes edits since then count. Raises ModuleNotFoundError for a module
    that the package lacks.
    """
    return _package(folder).fingerprint(*modules)


def forget() -> None:
    """Have `fingerprint` read the files again."""
    _package.cache_clear()


class Facts(NamedTuple):
    """What the text of a module says.

    code: hash of its syntax tree without docstrings. imports: each (whether outside of functions, level and module of a
    `from`, null for a plain import, names). bound: names that it sets outside of functions.
    """

    code: str
    imports: list[tuple[bool, int | None, str | None, list[str]]]
    bound: list[str]


class _Package:
    """The modules of a package as they were when they were first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kept = _Kept(folder / KEPT)
        self.known: dict[tuple[str, ...], str] = {}
        self.paths: dict[str, Path | None] = {}
        self.found: dict[Path, Facts] = {}
        self.imports: dict[tuple[str, bool], list[tuple[str, bool]]] = {}

    def fingerprint(self, *modules: str) -> str:
        """See the function of this name."""
        if modules not in self.known:
            self.known[modules] = self._fingerprint(modules)
            self.kept.save()
        return self.known[modules]

    def _fingerprint(self, modules: tuple[str, ...]) -> str:
        for module in modules:
            if self.find(module) is None:
                raise ModuleNotFoundError(f"no module {module!r} in {self.folder}")
        pending = [(module, True) for module in modules]
        followed: set[tuple[str, bool]] = set()
        while pending:
            module, lazily = pending.pop()
            if self.find(module) is None or (module, lazily) in followed:
                continue
            followed.add((module, lazily))
            pending += self.imports_of(module, lazily)
            if "." in module:
                # importing a module runs its parents, but not the bodies of their functions: the lazy imports by which
                # a package offers its shortcuts are no dependency of every module in it
                pending.append((module.rpartition(".")[0], False))
        code = sorted((module, self.facts(module).code) for module in {module for module, _ in followed})
        return hashlib.sha256(repr(code).encode()).hexdigest()[:12]

    def find(self, module: str) -> Path | None:
        """The file of a module of the package; `kernels` lies beside it in a checkout and inside it installed."""
        if module not in self.paths:
            self.paths[module] = self._find(module)
        return self.paths[module]

    def _find(self, module: str) -> Path | None:
        package, *inner = module.split(".")
        if package != self.folder.name:
            return None
        places = [self.folder, self.folder.parent] if inner[:1] == ["kernels"] else [self.folder]
        for place in places:
            stem = place.joinpath(*inner)
            for path in (stem.with_suffix(".py"), stem / "__init__.py"):
                if path.is_file():
                    return path
        return None

    def facts(self, module: str) -> Facts:
        """What the file of a module says."""
        path = self.find(module)
        if path not in self.found:
            self.found[path] = self.kept.facts(path.read_text(encoding="utf-8"))
        return self.found[path]

    def imports_of(self, module: str, lazily: bool) -> list[tuple[str, bool]]:
        """Modules that a module imports, each with whether the lazy imports inside it count too."""
        if (module, lazily) not in self.imports:
            self.imports[module, lazily] = list(dict.fromkeys(self._imports(module, lazily)))
        return self.imports[module, lazily]

    def _imports(self, module: str, lazily: bool) -> Iterator[tuple[str, bool]]:
        is_package = self.find(module).name == "__init__.py"
        for outside, level, named, names in self.facts(module).imports:
            if not (outside or lazily):
                continue
            if level is None:
                yield from ((name, True) for name in names)
                continue
            base = named or ""
            if level:
                parts = module.split(".")
                above = parts[: len(parts) - level + is_package]
                base = ".".join([*above, *([named] if named else [])])
            for name in names:
                inner = f"{base}.{name}"
                if self.find(inner) is not None:
                    yield inner, True
                else:
                    yield base, not self.binds(base, name)

    def binds(self, module: str, name: str) -> bool:
        """Whether a package's `__init__` sets the variable `name` on import, as it does `__version__`.

        Anything else may run code that imports more when it is used: a function, or what a lazy `__getattr__` offers.
        """
        path = self.find(module)
        return path is not None and path.name == "__init__.py" and name in self.facts(module).bound


class _Kept:
    """The facts of texts, in a file that a next process reads; without it, or where it cannot be written, all the same.

    It counts for this Python and this module alone, on which the facts depend.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.made_by = [*sys.version_info[:3], hashlib.sha256(Path(__file__).read_bytes()).hexdigest()]
        self.before = self._read()
        self.used: dict[str, Any] = {}

    def _read(self) -> dict[str, Any]:
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            return content["facts"] if content["made_by"] == self.made_by else {}
        except (OSError, ValueError, LookupError, TypeError):
            return {}

    def facts(self, text: str) -> Facts:
        """What a text says."""
        key = hashlib.sha256(text.encode()).hexdigest()
        if key not in self.used:
            self.used[key] = self.before[key] if key in self.before else _facts(text)
        return Facts(*self.used[key])

    def save(self) -> None:
        """Keep what this process has used, where some of it is new."""
        if self.used.keys() <= self.before.keys():
            return
        self.before = self.before | self.used
        content = {"made_by": self.made_by, "facts": self.used}
        with contextlib.suppress(Exception):  # an installation that may not be written
            write_text(self.path, json.dumps(content))


def _facts(text: str) -> Facts:
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, DEFINITIONS) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    outside = list(_nodes_outside_functions(tree))
    of_import = set(map(id, outside))
    imports = [
        (id(node) in of_import, *_named(node))
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    bound = {node.id for node in outside if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return Facts(hashlib.sha256(ast.dump(tree).encode()).hexdigest(), imports, sorted(bound))


def _named(node: ast.Import | ast.ImportFrom) -> tuple[int | None, str | None, list[str]]:
    names = [alias.name for alias in node.names]
    return (None, None, names) if isinstance(node, ast.Import) else (node.level, node.module, names)


def _nodes_outside_functions(tree: ast.AST) -> Iterator[ast.AST]:
    pending = [tree]
    while pending:
        node = pending.pop()
        yield node
        if not isinstance(node, FUNCTIONS):
            pending += ast.iter_child_nodes(node)


_package = functools.cache(_Package)
