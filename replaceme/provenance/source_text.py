"""Parse the text of a module into its definitions, their names and imports, for the code hash.

The hash of a definition counts neither comments, docstrings and layout nor the annotations of functions; what stands
under TYPE_CHECKING is left out.
"""

import ast
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
BRANCHES = ("body", "orelse", "finalbody", "handlers")
FULL_NAME = re.compile(r"\w+(\.\w+){2,}")

Name = tuple[str, ...]  # a dotted name, part by part
Target = tuple[str, str | None]  # what an import binds: a module, and the name of it that is meant


@dataclass
class Code:
    """The statements of a definition, or of a module's import: their text, the names they use, the imports inside.

    `spelt` are the texts in them that may be the full name of something, `said` the names of attributes, and the texts,
    by which a method may be called. Of a class, `bases` are the names of its bases, None for one that is no name, and
    `methods` those that count apart from it.
    """

    text: list[str] = field(default_factory=list)
    uses: set[Name] = field(default_factory=set)
    spelt: set[str] = field(default_factory=set)
    imports: dict[str, Target] = field(default_factory=dict)
    said: set[str] = field(default_factory=set)
    bases: list[Name | None] = field(default_factory=list)
    methods: list[str] = field(default_factory=list)


@dataclass
class Module:
    """The definitions of a module, its imports at the top, and the code that runs when it is imported.

    Methods are definitions too, `Class.method`, but for those that Python or a decorator may call by themselves.
    """

    definitions: dict[str, Code] = field(default_factory=dict)
    imports: dict[str, Target] = field(default_factory=dict)
    on_import: Code = field(default_factory=Code)


def read_module(text: str, package: str) -> Module:
    """Parse the text of a module; relative imports are relative to `package`."""
    module = Module()
    for statement in _statements(_without_docstring(ast.parse(text))):
        if isinstance(statement, ast.Import | ast.ImportFrom):
            module.imports.update(_bound(statement, package))
            continue
        methods = _methods(statement) if isinstance(statement, ast.ClassDef) else []
        if methods:
            statement.body = [one for one in statement.body if one not in methods]
        for code in [module.definitions.setdefault(name, Code()) for name in _defined(statement)] or [module.on_import]:
            _add_whole(code, statement, package)
            if isinstance(statement, ast.ClassDef):
                code.bases += map(_dotted, statement.bases)
                code.methods += [f"{statement.name}.{one.name}" for one in methods]
        for one in methods:
            _add_whole(module.definitions.setdefault(f"{statement.name}.{one.name}", Code()), one, package)
    return module


def _methods(node: ast.ClassDef) -> list[ast.stmt]:
    """Return the methods and properties of a class that run only where their names are used."""
    return [
        one
        for one in node.body
        if isinstance(one, FUNCTIONS)
        and not (one.name.startswith("__") and one.name.endswith("__"))
        and all(_dotted(decorator) == ("property",) for decorator in one.decorator_list)
    ]


def _add_whole(code: Code, node: ast.AST, package: str) -> None:
    said: list[str] = []
    _add(code, node, package, said)
    code.text.append(hashlib.sha256(" ".join(said).encode()).hexdigest())


def _statements(body: list[ast.stmt]) -> Iterator[ast.AST]:
    """Yield the statements of a module, those in branches of `if` and `try` one by one, without type-checking
    blocks.
    """
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
    """Yield the names of functions, classes and values that a statement defines."""
    if isinstance(statement, (*FUNCTIONS, ast.ClassDef)):
        yield statement.name
    elif isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        yield from (node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name))


def _add(code: Code, node: ast.AST, package: str, said: list[str]) -> None:
    """Add the text, names and imports of a syntax tree to `code`, in the order of its text."""
    said.append(type(node).__name__)
    if isinstance(node, ast.Import | ast.ImportFrom):
        code.imports.update(_bound(node, package))
    if isinstance(node, ast.Attribute):
        code.said.add(node.attr)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        code.said.add(node.value)
    name = _dotted(node)
    if name is not None:
        code.uses.add(name)
        code.said.update(name[1:])
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
                if isinstance(one, str) and FULL_NAME.fullmatch(one):
                    code.spelt.add(one)
    said.append(";")


def _without_docstring(node: ast.AST) -> list[ast.stmt]:
    """Return the body of a module, a class or a function without its docstring."""
    first = node.body[0] if node.body else None
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        return node.body[1:] or [ast.Pass()]
    return node.body


def _dotted(node: ast.AST) -> Name | None:
    """Return the parts of `a.b.c`, None for anything else."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return (node.id, *reversed(parts)) if isinstance(node, ast.Name) else None


def _bound(node: ast.Import | ast.ImportFrom, package: str) -> Iterator[tuple[str, Target]]:
    """Yield the names that an import binds, each with its target."""
    for alias in node.names:
        if isinstance(node, ast.Import):
            bound = alias.asname or alias.name.partition(".")[0]
            yield bound, (alias.name if alias.asname else bound, None)
        else:
            parts = package.split(".")
            above = parts[: len(parts) - node.level + 1] if node.level else []
            yield alias.asname or alias.name, (".".join([*above, *([node.module] if node.module else [])]), alias.name)
