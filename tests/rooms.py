"""The rooms of the package in layers, and who imports whom: `python tests/rooms.py` draws docs/rooms.svg.

A room imports rooms before it in ROOMS, never one behind it. What stands under TYPE_CHECKING is no import.
"""

import ast
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "replaceme"
ROOMS = (
    "core", "placements", "config", "provenance", "kernels", "micro", "dequantising", "models", "calibration",
    "activations", "transforms", "probing", "surgery", "proving", "cuts", "fitting", "evaluation", "reports", "methods",
    "verification", "exports", "healing", "planning", "workflow", "arguments", "pruning", "api", "steps", "cli",
)  # fmt: skip


def modules() -> dict[str, Path]:
    """All modules of the package, by their names without `replaceme.`; kernels lie beside the package."""
    files = {path.relative_to(PACKAGE): path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"}
    files |= {Path("kernels") / path.name: path for path in (ROOT / "kernels").glob("*.py")}
    return {".".join(name.with_suffix("").parts).removesuffix(".__init__"): path for name, path in files.items()}


@cache
def imports() -> list[tuple[str, str]]:
    """Pairs of modules: one that imports, wherever in its text, and one that is imported."""
    return list(_imports())


def _imports() -> Iterator[tuple[str, str]]:
    known = modules()
    for module, path in known.items():
        for node in _statements(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("replaceme."):
                base = node.module.removeprefix("replaceme.")
                inner = {f"{base}.{alias.name}" for alias in node.names} & known.keys()
                yield from ((module, other) for other in (inner or {base} & known.keys()) if other != module)


def _statements(tree: ast.AST) -> Iterator[ast.AST]:
    pending = [tree]
    while pending:
        node = pending.pop()
        yield node
        if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
            pending += ast.iter_child_nodes(node)


def room_of(module: str) -> str:
    """The room that a module lies in, or its own name where it lies in none."""
    return module.partition(".")[0]


def draw(out: Path) -> None:
    """Draw a square for each room (row) that imports another (column), darker the more imports."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "rooms"
    from matplotlib import pyplot

    counts = Counter((room_of(one), room_of(other)) for one, other in imports())
    table = [[counts[row, column] for column in ROOMS] for row in ROOMS]
    figure, axes = pyplot.subplots(figsize=(9, 8.5), layout="constrained")
    axes.imshow([[min(count, 30) for count in row] for row in table], cmap="Blues", vmin=0, vmax=30)
    for y, row in enumerate(table):
        for x, count in enumerate(row):
            if count:
                axes.text(x, y, count, ha="center", va="center", fontsize=8, color="white" if count > 18 else "black")
    axes.set_xticks(range(len(ROOMS)), ROOMS, rotation=60, ha="left", rotation_mode="anchor")
    axes.set_yticks(range(len(ROOMS)), ROOMS)
    axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False)
    axes.set_ylabel("this room imports (number of imports) ...")
    axes.set_title("... from this one; nothing right of the diagonal", fontsize=10)
    figure.savefig(out, metadata={"Date": None})


if __name__ == "__main__":
    draw(ROOT / "docs/rooms.svg")
