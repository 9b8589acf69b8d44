"""The words: links lead somewhere, lines are short, the rule graph is the workflow's, docstrings name their object."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
OPENINGS = {"What", "Whether", "Those", "That", "Such", "How", "Where", "Which"}
ARTICLES = {"The", "A", "An"}  # of a property, a class or a module
COPIED = "modeling_replaceme.py"  # byte for byte into checkpoints, where another text would count as another code
LINK = re.compile(r"\]\(([^)\s]+)\)")


def each(pages):
    """Return parametrise a test over pages."""
    return pytest.mark.parametrize("page", pages, ids=lambda page: str(page.relative_to(ROOT)))


def anchors(page):
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each(PAGES)
def test_links_lead_somewhere(page):
    dead = []
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        if "://" not in link and not (target.exists() and (not anchor or anchor in anchors(target))):
            dead.append(link)
    assert dead == []


@each(PAGES)
def test_lines_of_prose_are_short(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    prose = [line for line in text.splitlines() if not line.startswith("|") and "](" not in line]
    assert [line for line in prose if len(line) > 120] == []


def test_pages_are_short():
    lines = {page.name: len(page.read_text(encoding="utf-8").splitlines()) for page in PAGES}
    assert lines.pop("config.md") and lines.pop("model-types.md") and max(lines.values()) <= 210


def test_pages_that_the_code_names_exist():
    sources = [path for folder in ("replaceme", "kernels", "rules", "config") for path in (ROOT / folder).rglob("*.*")]
    texts = [path.read_text(encoding="utf-8") for path in sources if path.suffix in (".py", ".smk", ".yaml")]
    named = {name for text in texts for name in re.findall(r"docs/[\w/-]+\.md", text)}
    assert named and [name for name in sorted(named) if not (ROOT / name).is_file()] == []


def test_the_rule_graph_of_the_readme_is_of_rules():
    graph = re.search(r"```mermaid\nflowchart LR\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    rules = {name for path in ROOT.glob("rules/*.smk") for name in re.findall(r"^rule (\w+):", path.read_text(), re.M)}
    assert set(re.findall(r"\w+", graph)) <= rules


def docstrings(path):
    """Yield (definition, opening word) of each docstring of a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            words = (ast.get_docstring(node) or "").split()
            yield from ((node, word.strip(",.:;")) for word in words[:1])


def is_odd(node, word):
    """Return whether a docstring opens without a verb or a noun; functions other than properties need a verb."""
    decorators = [ast.unparse(one) for one in getattr(node, "decorator_list", [])]
    is_noun = isinstance(node, (ast.Module, ast.ClassDef)) or any("property" in one for one in decorators)
    return word in OPENINGS or (word in ARTICLES and not is_noun)


@pytest.mark.parametrize("folder", ["replaceme", "kernels", "benchmarks"])
def test_docstrings_open_with_a_verb_or_a_noun(folder):
    paths = [path for path in sorted((ROOT / folder).rglob("*.py")) if path.name != COPIED]
    found = [(path, node, word) for path in paths for node, word in docstrings(path) if is_odd(node, word)]
    assert [f"{path}:{getattr(node, 'lineno', 1)}: {word}" for path, node, word in found] == []
