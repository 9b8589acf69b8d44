"""Hash the code that a step can run, as a parameter of its rule: a job reruns when that code was edited.

The unit is a definition: a function, a class or an assignment of a module. From the definitions of the step's module
on, every name that a definition uses is looked up in its module and followed through imports, whether these stand at
the top or inside a function; other imports do not count. Of a class whose bases are this package's too, a method counts
where code that counts names an attribute so, or has its name in quotes; any other class counts whole, and so does a
module that is used other than by `module.name`. Statements that run on import count for each module of which something
is used. What calls `import_named` also uses every function that a registry which it names spells out in full. Comments,
docstrings, layout, the annotations of functions and what stands under TYPE_CHECKING do not count. Blind to imports by
computed name, which a caller adds as further modules, and to data files.

To read the whole package takes a second, at each start of Snakemake: the hashes are kept in `__pycache__` until any
file of the package changes.
"""

import contextlib
import functools
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from replaceme.core.files import noting_apart, write_text
from replaceme.provenance.source_text import Code, Module, Name, Target, read_module

PACKAGE_FOLDER = Path(__file__).parents[1]
KEPT = Path("__pycache__") / "fingerprints.json"
BY_NAME = "import_named"


def fingerprint(*modules: str, folder: Path = PACKAGE_FOLDER) -> str:
    """Return 12 hex digits that change when code changes that `modules` (such as "replaceme.surgery.fold") can run.

    `folder` is the package's, read once: `forget` makes edits since then count. Raises ModuleNotFoundError for a module
    that the package lacks.
    """
    return _package(folder).fingerprint(modules)


def forget() -> None:
    """Make `fingerprint` read the files again."""
    _package.cache_clear()


class _Package:
    """The modules of a package as they were when they were first read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paths: dict[str, Path | None] = {}
        self.modules: dict[str, Module] = {}
        self.files = self._digest_of_files()
        self.known = self._kept()

    def fingerprint(self, modules: tuple[str, ...]) -> str:
        """Return the hash for the function `fingerprint`."""
        key = " ".join(sorted(modules))
        if key not in self.known:
            self.known[key] = self._fingerprint(modules)
            content = json.dumps({"files": self.files, "known": self.known})
            # apart: it is no output of a step. An installation may not be written
            with contextlib.suppress(Exception), noting_apart():
                write_text(self.folder / KEPT, content)
        return self.known[key]

    def _digest_of_files(self) -> str:
        """Hash all files of the package and of the Python that reads them."""
        digest = hashlib.sha256(sys.version.encode())
        for folder in (self.folder, self.folder.parent / "kernels"):
            for path in sorted(folder.rglob("*.py")):
                digest.update(f"{path.relative_to(folder.parent)} ".encode() + path.read_bytes())
        return digest.hexdigest()

    def _kept(self) -> dict[str, str]:
        """Return the hashes that an earlier process stored for exactly these files."""
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
        said: set[str] = set()
        methods: set[Target] = set()  # of classes that are reached, whose names nothing has said yet
        while pending:
            place = pending.pop()
            if self.find(place[0]) is None:
                outside.add(place)  # of a library: which one is part of the code
            elif place not in reached:
                reached.add(place)
                pending += [*self.used_by(*place), *self.registered(*place)]
                code = self.code(*place)
                said |= code.said
                own = {(place[0], name) for name in code.methods}
                methods |= own
                if own and self.is_foreign(*place):
                    pending += own
            if not pending:
                pending = [one for one in methods - reached if one[1].rpartition(".")[2] in said]
        texts = [(module, name or "", self.code(module, name).text) for module, name in reached]
        names = sorted((module, name or "") for module, name in outside)
        return hashlib.sha256(repr((sorted(texts), names)).encode()).hexdigest()[:12]

    def find(self, module: str) -> Path | None:
        """Return the file of a module of the package; `kernels` lies beside it in a checkout and inside it
        installed.
        """
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
        """Parse a module's file."""
        if name not in self.modules:
            path = self.find(name)
            package = name if path.name == "__init__.py" else name.rpartition(".")[0]
            self.modules[name] = read_module(path.read_text(encoding="utf-8"), package)
        return self.modules[name]

    def code(self, module: str, name: str | None) -> Code:
        """Return the code of a definition, or the code that runs when a module is imported."""
        read = self.read(module)
        return read.on_import if name is None else read.definitions[name]

    def defined(self, module: str) -> Iterator[Target]:
        """Yield every definition of a module, and the code that runs when it is imported."""
        yield module, None
        yield from ((module, name) for name in self.read(module).definitions)

    def whole(self, module: str) -> Iterator[Target]:
        """Yield every name found in a module, its imports included."""
        yield from self.defined(module)
        for target, name in self.read(module).imports.values():
            yield from self.named(target, (name,) if name else ())

    def is_foreign(self, module: str, name: str) -> bool:
        """Return whether a class has a base that is not this package's, whose code may call any method."""
        if name not in self.read(module).definitions:
            return True
        for base in self.code(module, name).bases:
            classes = [one for one in self.meant(module, name, base) if one[1] is not None] if base else []
            if not classes or any(self.find(one) is None or self.is_foreign(one, inner) for one, inner in classes):
                return True
        return False

    def used_by(self, module: str, name: str | None) -> Iterator[Target]:
        """Yield the targets that a definition uses: definitions, code that runs on import (None), names of
        libraries.
        """
        if name is not None:
            yield module, None
        elif "." in module:
            yield module.rpartition(".")[0], None  # a package runs before what is in it
        for used in self.code(module, name).uses:
            yield from self.meant(module, name, used)

    def meant(self, module: str, name: str | None, used: Name) -> Iterator[Target]:
        """Resolve a dotted name in a definition."""
        read, (root, *rest) = self.read(module), used
        for bound in (self.code(module, name).imports, read.imports):
            if root in bound:
                target, imported = bound[root]
                yield from self.named(target, (imported, *rest) if imported else tuple(rest))
        if root in read.definitions:
            yield module, root

    def registered(self, module: str, name: str | None) -> Iterator[Target]:
        """Yield the functions named in the registries of a definition that calls `import_named`."""
        if (BY_NAME,) in self.code(module, name).uses:
            for place in self.used_by(module, name):
                if self.find(place[0]) is not None:
                    for full, _, function in (text.rpartition(".") for text in self.code(*place).spelt):
                        if self.find(full) is not None:
                            yield from self.named(full, (function,))

    def named(self, module: str, name: Name) -> Iterator[Target]:
        """Yield the targets that a dotted name stands for, seen from outside of the module."""
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


_package = functools.cache(_Package)
