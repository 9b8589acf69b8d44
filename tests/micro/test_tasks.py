"""The tasks: fair items, and committed files that are exactly what the code writes."""

import collections
import json
import re
from pathlib import Path

import pytest
from lm_eval.tasks._yaml_loader import load_yaml

from replaceme.micro import tasks

ROOT = Path(__file__).parents[2]
RESOURCES = ROOT / "resources" / "tasks"


def test_committed_files_are_what_the_code_writes():
    written = dict(tasks.files())
    for path, content in written.items():
        assert (RESOURCES / path).read_bytes() == content.encode(), f"{path}: run python -m replaceme.micro.tasks"
    found = (path for path in RESOURCES.rglob("micro*") if path.is_file() and path.parent.name != "__pycache__")
    committed = {str(path.relative_to(RESOURCES)) for path in found}
    committed |= {f"micro/{path.name}" for path in (RESOURCES / "micro").iterdir()}
    assert committed == set(written)


def test_main_writes_the_files(tmp_path, capsys):
    tasks.main(["--out", str(tmp_path), "--seed", "7"])
    assert sorted(path.name for path in (tmp_path / "micro").iterdir()) == sorted(
        f"{name}.jsonl" for name in [*tasks.MULTIPLE_CHOICE, "lastword", "text"]
    )
    assert str(tmp_path) in capsys.readouterr().out


@pytest.mark.parametrize("name", tasks.MULTIPLE_CHOICE)
def test_items_are_fair(name):
    rows = [json.loads(line) for line in (RESOURCES / "micro" / f"{name}.jsonl").read_text().splitlines()]
    assert len(rows) == tasks.ITEMS
    assert len({row["context"] for row in rows}) == len(rows)
    for row in rows:
        assert len(set(row["choices"])) == 4
        assert all(re.fullmatch(r"\w+", choice) for choice in row["choices"])
        assert row["gold"] in range(4)
        assert row["context"].endswith(" Answer:")
    positions = collections.Counter(row["gold"] for row in rows)
    assert min(positions.values()) > 0.15 * len(rows) and max(positions.values()) < 0.36 * len(rows)


@pytest.mark.parametrize("name", tasks.MULTIPLE_CHOICE)
def test_other_seeds_give_other_items(name):
    shipped = {item.context for item in tasks.items(name, tasks.SHIPPED_SEED, 100)}
    others = {item.context for item in tasks.items(name, 11, 100)}
    assert len(shipped & others) <= 2


def test_no_answer_is_a_constant():
    """Always the same word must not score well: the commonest answer of a task stays under a third."""
    for name in tasks.MULTIPLE_CHOICE:
        answers = collections.Counter(item.choices[item.gold] for item in tasks.items(name, 11, 200))
        assert answers.most_common(1)[0][1] < 67, name


def test_last_words_are_told_before():
    """The last word can be known: it occurs in the story itself."""
    texts = tasks.last_words(tasks.SHIPPED_SEED)
    told = sum(text.rsplit(" ", 1)[1] in re.findall(r"\w+", text.rsplit(" ", 1)[0]) for text in texts)
    assert told == len(texts)


@pytest.mark.parametrize("path", sorted(RESOURCES.glob("micro_*.yaml")), ids=lambda path: path.stem)
def test_yaml_files_name_their_data(path):
    """Wherever lm-eval is started, as that reads them."""
    task = load_yaml(path, resolve_func=True)
    assert task["task"] == path.stem
    data = Path(task["dataset_kwargs"]["data_files"]["test"])
    assert data.is_absolute() and data.parent == RESOURCES / "micro" and data.stat().st_size < 400_000
    assert task["metadata"]["version"] == 1
