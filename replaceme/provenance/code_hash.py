"""Hash the code that a step can run, as a parameter of its rule: a job reruns when that code was edited.

The unit is a definition: a function, a class or an assignment of a module. From the definitions of the step's module
on, every name that a definition uses is looked up in its module and followed through imports, whether these stand at
the top or inside a function; what is imported beside it does not count. A class counts whole, and so does a module that
is used other than by `module.name`. Statements that run on import count for each module of which something is used.
Comments, docstrings, layout, the annotations of functions and what stands under TYPE_CHECKING do not count. Blind to
imports by computed name, which a caller adds as further modules, and to data files.

To read the whole package takes a second, at each start of Snakemake: the hashes are kept in `__pycache__` until any
file of the package changes.
"""

import ast
import contextlib
import functools
import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from replaceme.core.files import write_text

PACKAGE_FOLDER = Path(__file__).parents[1]
KEPT = Path("__pycache__") / "fingerprints.json"
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
BRANCHES = ("body", "orelse", "finalbody", "handlers")

Name = tuple[str, ...]  # a dotted name, part by part
Target = tuple[str, str | None]  # what an import binds: a module, and the name of it that is meant


def fingerprint(*modules: str, folder: Path = PACKAGE_FOLDER) -> str:
    """12 hex digits that change when code changes that `modules` (such as "replaceme.surgery.fold") can run.

    `folder` is the package's, read once: `forget` makes edits since then count. Raises ModuleNotFoundError for a module
    that the package lacks.
    """
    return _package(folder).fingerprint(modules)


def forget() -> None:
    """Have `fingerprint` read the files again."""
    _package.cache_clear()


@dataclass
class Code:
    """The statements of a definition, or those that run on import: their text, names they use, imports inside."""

    text: list[str] = field(default_factory=list)
    uses: set[Name] = field(default_factory=set)
    imports: dict[str, Target] = field(default_factory=dict)


@dataclass
class Module:
    """What the text of a module defines, imports at its top, and runs when it is imported."""

    definitions: dict[str, Code] = field(default_factory=dict)
    imports: dict[str, Target] = field(default_factory=dict)
    on_import: Code = field(default_factory=Code)


class _Package:
    """The modules of a package as they were when they were first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paths: dict[str, Path | None] = {}
        self.modules: dict[str, Module] = {}
        self.files = self._digest_of_files()
        self.known = self._kept()

    def fingerprint(self, modules: tuple[str, ...]) -> str:
        """See the function of this name."""
        key = " ".join(sorted(modules))
        if key not in self.known:
            self.known[key] = self._fingerprint(modules)
            content = json.dumps({"files": self.files, "known": self.known})
            with contextlib.suppress(Exception):  # an installation that may not be written
                write_text(self.folder / KEPT, content)
        return self.known[key]

    def _digest_of_files(self) -> str:
        """Hash of all files of the package and of the Python that reads them."""
        digest = hashlib.sha256(sys.version.encode())
        for folder in (self.folder, self.folder.parent / "kernels"):
            for path in sorted(folder.rglob("*.py")):
                digest.update(f"{path.relative_to(folder.parent)} ".encode() + path.read_bytes())
        return digest.hexdigest()

    def _kept(self) -> dict[str, str]:
        """The hashes that an earlier process found for these very files."""
        try:
            content = json.loads((self.folder / KEPT).read_text(encoding="utf-8"))
            return dict(content["known"]) if content["files"] == self.files else {}
        except (OSError, ValueError, LookupError, TypeError):
            return {}

    def _fingerprint(self, modules: tuple[str, ...]) -> str:
        for module in modules:
            if self.find(module) is None:
                raise ModuleNotFoundError(f"no module {module!r} in {self.folder}")
        pending = [place for module in modules for place in self.defined(module)]
        reached, outside = set(), set()
        while pending:
            place = pending.pop()
            if self.find(place[0]) is None:
                outside.add(place)  # of a library: which one is part of the code
            elif place not in reached:
                reached.add(place)
                pending += self.used_by(*place)
        texts = [(module, name or "", self.code(module, name).text) for module, name in reached]
        names = sorted((module, name or "") for module, name in outside)
        return hashlib.sha256(repr((sorted(texts), names)).encode()).hexdigest()[:12]

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

    def read(self, name: str) -> Module:
        """What a module's file says."""
        if name not in self.modules:
            path = self.find(name)
            package = name if path.name == "__init__.py" else name.rpartition(".")[0]
            self.modules[name] = _read(path.read_text(encoding="utf-8"), package)
        return self.modules[name]

    def code(self, module: str, name: str | None) -> Code:
        """The code of a definition, or what a module runs on import."""
        read = self.read(module)
        return read.on_import if name is None else read.definitions[name]

    def defined(self, module: str) -> Iterator[Target]:
        """Everything that a module defines, and runs on import."""
        yield module, None
        yield from ((module, name) for name in self.read(module).definitions)

    def whole(self, module: str) -> Iterator[Target]:
        """Everything that is found in a module: what it imports too."""
        yield from self.defined(module)
        for target, name in self.read(module).imports.values():
            yield from self.named(target, (name,) if name else ())

    def used_by(self, module: str, name: str | None) -> Iterator[Target]:
        """What a definition makes use of: definitions, what runs on import (None), names of libraries."""
        code, read = self.code(module, name), self.read(module)
        if name is not None:
            yield module, None
        elif "." in module:
            yield module.rpartition(".")[0], None  # a package runs before what is in it
        for root, *rest in code.uses:
            for bound in (code.imports, read.imports):
                if root in bound:
                    target, imported = bound[root]
                    yield from self.named(target, (imported, *rest) if imported else tuple(rest))
            if root in read.definitions:
                yield module, root

    def named(self, module: str, name: Name) -> Iterator[Target]:
        """What a dotted name stands for, as seen from outside of the module."""
        if self.find(module) is None:
            yield module, ".".join(name)
            return
        if not name:
            yield from self.whole(module)
            return
        read, first = self.read(module), name[0]
        if first in read.definitions:
            yield module, first
        elif first in read.imports:
            yield module, None
            target, imported = read.imports[first]
            yield from self.named(target, (imported, *name[1:]) if imported else name[1:])
        elif self.find(f"{module}.{first}") is not None:
            yield module, None
            yield from self.named(f"{module}.{first}", name[1:])
        else:  # what `__getattr__` makes, or Python itself
            yield from self.whole(module)


def _read(text: str, package: str) -> Module:
    module = Module()
    for statement in _statements(_without_docstring(ast.parse(text))):
        if isinstance(statement, ast.Import | ast.ImportFrom):
            module.imports.update(_bound(statement, package))
            continue
        names = list(_defined(statement))
        for code in [module.definitions.setdefault(name, Code()) for name in names] or [module.on_import]:
            said: list[str] = []
            _add(code, statement, package, said)
            code.text.append(hashlib.sha256(" ".join(said).encode()).hexdigest())
    return module


def _statements(body: list[ast.stmt]) -> Iterator[ast.AST]:
    """The statements of a module, those in branches of `if` and `try` one by one, without what type checkers read."""
    for node in body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from _statements(node.orelse)
        elif isinstance(node, ast.If | ast.Try | ast.ExceptHandler):
            yield from (part for part in (getattr(node, "test", None), getattr(node, "type", None)) if part)
            for branch in BRANCHES:
                yield from _statements(getattr(node, branch, []))
        else:
            yield node


def _defined(statement: ast.AST) -> Iterator[str]:
    """The names that a statement gives to a function, a class or a value."""
    if isinstance(statement, (*FUNCTIONS, ast.ClassDef)):
        yield statement.name
    elif isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        yield from (node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name))


def _add(code: Code, node: ast.AST, package: str, said: list[str]) -> None:
    """Add what a syntax tree says, uses and imports, in the order of its text."""
    said.append(type(node).__name__)
    if isinstance(node, ast.Import | ast.ImportFrom):
        code.imports.update(_bound(node, package))
    name = _dotted(node)
    if name is not None:
        code.uses.add(name)
        said.append(".".join(name))
        return
    for key in node._fields:
        value = getattr(node, key, None)
        if key == "body" and isinstance(node, DOCUMENTED):
            value = _without_docstring(node)
        elif key in ("annotation", "returns") and not isinstance(node, ast.AnnAssign):
            continue  # of a function; those of classes' fields are read by pydantic
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, ast.AST):
                _add(code, one, package, said)
            else:
                said.append(repr(one))
    said.append(";")


def _without_docstring(node: ast.AST) -> list[ast.stmt]:
    """The body of a module, a class or a function."""
    first = node.body[0] if node.body else None
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        return node.body[1:] or [ast.Pass()]
    return node.body


def _dotted(node: ast.AST) -> Name | None:
    """The parts of `a.b.c`, None for anything else."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return (node.id, *reversed(parts)) if isinstance(node, ast.Name) else None


def _bound(node: ast.Import | ast.ImportFrom, package: str) -> Iterator[tuple[str, Target]]:
    """The names that an import binds, and what each stands for."""
    for alias in node.names:
        if isinstance(node, ast.Import):
            bound = alias.asname or alias.name.partition(".")[0]
            yield bound, (alias.name if alias.asname else bound, None)
        else:
            parts = package.split(".")
            above = parts[: len(parts) - node.level + 1] if node.level else []
            yield alias.asname or alias.name, (".".join([*above, *([node.module] if node.module else [])]), alias.name)


_package = functools.cache(_Package)
