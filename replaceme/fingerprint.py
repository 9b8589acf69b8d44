"""Hash of the code behind a step, for workflow parameters: a job reruns when the code that it runs was edited.

The hash covers a module and every module of this package that it imports, wherever the import stands: at the top,
inside a function or under TYPE_CHECKING. Comments, docstrings and layout do not count. Blind to imports by computed
name and to data files. A workflow asks for some 25 steps that share most of their modules, so each file is read once in
a process.
"""

import ast
import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path

PACKAGE_FOLDER = Path(__file__).parent
DEFINITIONS = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


def fingerprint(*modules: str, folder: Path = PACKAGE_FOLDER) -> str:
    """12 hex digits that change when the code of `modules` (such as "replaceme.fold") or of what they import changes.

    `folder` is the package's, read once: `forget` makes edits since then count. Raises ModuleNotFoundError for a module
    that the package lacks.
    """
    return _package(folder).fingerprint(*modules)


def forget() -> None:
    """Have `fingerprint` read the files again."""
    _package.cache_clear()


class _Package:
    """The modules of a package as they were when they were first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.known: dict[tuple[str, ...], str] = {}
        self.paths: dict[str, Path | None] = {}
        self.trees: dict[Path, ast.Module] = {}
        self.digests: dict[str, str] = {}
        self.imports: dict[tuple[str, bool], list[tuple[str, bool]]] = {}
        self.bound: dict[str, set[str]] = {}

    def fingerprint(self, *modules: str) -> str:
        """See the function of this name."""
        if modules not in self.known:
            self.known[modules] = self._fingerprint(modules)
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
        code = sorted((module, self.digest(module)) for module in {module for module, _ in followed})
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

    def tree(self, path: Path) -> ast.Module:
        """Syntax tree without docstrings."""
        if path not in self.trees:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for node in ast.walk(tree):
                if isinstance(node, DEFINITIONS) and ast.get_docstring(node, clean=False) is not None:
                    node.body = node.body[1:] or [ast.Pass()]
            self.trees[path] = tree
        return self.trees[path]

    def digest(self, module: str) -> str:
        """Hash of the code of one module."""
        if module not in self.digests:
            code = ast.dump(self.tree(self.find(module)))
            self.digests[module] = hashlib.sha256(code.encode()).hexdigest()
        return self.digests[module]

    def imports_of(self, module: str, lazily: bool) -> list[tuple[str, bool]]:
        """Modules that a module imports, each with whether the lazy imports inside it count too."""
        if (module, lazily) not in self.imports:
            self.imports[module, lazily] = list(dict.fromkeys(self._imports(module, lazily)))
        return self.imports[module, lazily]

    def _imports(self, module: str, lazily: bool) -> Iterator[tuple[str, bool]]:
        path = self.find(module)
        for node in _nodes(self.tree(path), lazily):
            if isinstance(node, ast.Import):
                yield from ((alias.name, True) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    parts = module.split(".")
                    above = parts[: len(parts) - node.level + (path.name == "__init__.py")]
                    base = ".".join([*above, *([node.module] if node.module else [])])
                for alias in node.names:
                    inner = f"{base}.{alias.name}"
                    if self.find(inner) is not None:
                        yield inner, True
                    else:
                        yield base, not self.binds(base, alias.name)

    def binds(self, module: str, name: str) -> bool:
        """Whether a package's `__init__` sets the variable `name` on import, as it does `__version__`.

        Anything else may run code that imports more when it is used: a function, or what a lazy `__getattr__` offers.
        """
        path = self.find(module)
        if path is None or path.name != "__init__.py":
            return False
        if module not in self.bound:
            nodes = _nodes(self.tree(path), lazily=False)
            self.bound[module] = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        return name in self.bound[module]


_package = functools.cache(_Package)


def _nodes(tree: ast.AST, lazily: bool) -> Iterator[ast.AST]:
    """All nodes, or those outside function bodies."""
    pending = [tree]
    while pending:
        node = pending.pop()
        yield node
        if lazily or not isinstance(node, FUNCTIONS):
            pending += ast.iter_child_nodes(node)
