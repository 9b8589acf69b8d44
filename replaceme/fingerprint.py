"""Hash of the code behind a step, for workflow parameters: a job reruns when the code that it runs was edited.

The hash covers a module and every module of this package that it imports, wherever the import stands: at the top,
inside a function or under TYPE_CHECKING. Comments, docstrings and layout do not count. Blind to imports by computed
name and to data files.
"""

import ast
import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path

PACKAGE_FOLDER = Path(__file__).parent
DEFINITIONS = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


@functools.cache
def fingerprint(*modules: str, folder: Path = PACKAGE_FOLDER) -> str:
    """12 hex digits that change when the code of `modules` (such as "replaceme.fold") or of what they import changes.

    `folder` is the package's. Cached, since a workflow asks for the same modules for many jobs. Raises
    ModuleNotFoundError for a module that the package lacks.
    """
    code: dict[str, str] = {}
    pending = [(module, True) for module in modules]
    followed: set[tuple[str, bool]] = set()
    for module in modules:
        if _find(module, folder) is None:
            raise ModuleNotFoundError(f"no module {module!r} in {folder}")
    while pending:
        module, lazily = pending.pop()
        path = _find(module, folder)
        if path is None or (module, lazily) in followed:
            continue
        followed.add((module, lazily))
        tree = _parse(path)
        code[module] = ast.dump(tree)
        pending += _imports(module, tree, path, lazily, folder)
        if "." in module:
            # importing a module runs its parents, but not the bodies of their functions: the lazy imports by which
            # a package offers its shortcuts are no dependency of every module in it
            pending.append((module.rpartition(".")[0], False))
    return hashlib.sha256(repr(sorted(code.items())).encode()).hexdigest()[:12]


def _find(module: str, folder: Path) -> Path | None:
    """The file of a module of the package; `kernels` lies beside the package in a checkout and inside it installed."""
    package, *inner = module.split(".")
    if package != folder.name:
        return None
    places = [folder, folder.parent] if inner[:1] == ["kernels"] else [folder]
    for place in places:
        stem = place.joinpath(*inner)
        for path in (stem.with_suffix(".py"), stem / "__init__.py"):
            if path.is_file():
                return path
    return None


@functools.cache
def _parse_text(text: str) -> ast.Module:
    """Syntax tree without docstrings."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, DEFINITIONS) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return tree


def _parse(path: Path) -> ast.Module:
    return _parse_text(path.read_text(encoding="utf-8"))


def _nodes(tree: ast.AST, lazily: bool) -> Iterator[ast.AST]:
    """All nodes, or those outside function bodies."""
    pending = [tree]
    while pending:
        node = pending.pop()
        yield node
        if lazily or not isinstance(node, FUNCTIONS):
            pending += ast.iter_child_nodes(node)


def _imports(module: str, tree: ast.Module, path: Path, lazily: bool, folder: Path) -> Iterator[tuple[str, bool]]:
    """Modules that a module imports, each with whether the lazy imports inside it count too."""
    for node in _nodes(tree, lazily):
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
                if _find(inner, folder) is not None:
                    yield inner, True
                else:
                    yield base, not _binds(base, alias.name, folder)


def _binds(module: str, name: str, folder: Path) -> bool:
    """Whether a package's `__init__` sets the variable `name` on import, as it does `__version__`.

    Anything else may run code that imports more when it is used: a function, or what a lazy `__getattr__` offers.
    """
    path = _find(module, folder)
    if path is None or path.name != "__init__.py":
        return False
    for node in _nodes(_parse(path), lazily=False):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id == name:
            return True
    return False
