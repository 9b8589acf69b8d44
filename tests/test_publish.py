"""The copies of record: what is copied, what a README shows of them, and that ours are those of the shipped README."""

import json
import re
from pathlib import Path

import pytest

from replaceme.cli import main

ROOT = Path(__file__).resolve().parents[1]
HARDWARE = {"cores": 2, "memory_bytes": 10**9, "gpus": [], "gpu_driver": None}
TABLE = "A caption.\n\n**Summary**\n\n| fit |\n| --- |\n| ls  |\n\n**Tasks, %**\n\n| other |\n"


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "results"
    files = {
        "tables/t.md": TABLE,
        "tables/t.csv": "fit\nls\n",
        "m/c/n1/cut.svg": "<svg/>",
        "tables/t.published.md": "A caption.\n\n**Beside**\n\n| other |\n| --- |\n| 5 (6) |\n",
        "tables/t10.csv": "fit\nls\n",
        "tables/t10.md": "Ten.\n",
        "tables/t2.csv": "fit\nls\n",
        "tables/t2.md": "Two.\n",
        "figures/f.svg": "<svg><dc:description>What &amp; why.</dc:description></svg>",
        "provenance.md": "sources",
        "report.html": "everything",
        "m/c/n1/ls/model/README.md": "card",
    }
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_tables_and_figures_are_kept_and_the_readme_renewed(results, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- table: t -->\nold\n<!-- end of table -->\nafter\n")
    out = results / "published"
    for _ in range(2):  # a second time changes nothing: copies of record are not results
        assert main(["publish", str(results), "--out", str(out), "--command", "make run", "--readme", str(readme)]) == 0
    kept = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    tables = [f"tables/{name}" for name in ("t.csv", "t.md", "t.published.md", "t10.csv", "t10.md", "t2.csv", "t2.md")]
    assert kept == ["README.md", "figures/f.svg", "provenance.md", "record.json", *tables]
    assert json.loads((out / "record.json").read_text())["command"] == "make run"
    shown = readme.read_text()
    assert shown.startswith("before\n<!-- table: t -->\n\nA caption.") and shown.endswith(
        "<!-- end of table -->\nafter\n"
    )
    assert "| ls  |" in shown and "old" not in shown and "other" not in shown


def test_one_page_shows_all(results, tmp_path):
    out = tmp_path / "figures"  # a name that results have too
    (results / "tables/t.html").write_text("not kept")
    assert main(["publish", str(results), "--out", str(out), "--command", "make run"]) == 0
    page = (out / "README.md").read_text()
    order = ["`make run`", "### t\n", "### t2\n\nTwo.", "### t10\n\nTen.", "### f\n"]
    assert [page.index(part) for part in order] == sorted(page.index(part) for part in order)
    assert "| ls  |" in page and "other |" in page and "Tasks" not in page and page.count("A caption.") == 1
    assert "![f](figures/f.svg)\n\nWhat & why." in page
    for link in re.findall(r"\]\((.*?)\)", page):
        assert (out / link).is_file() or link == "figures/f.csv"


def test_the_machine_is_the_one_that_measured(results, tmp_path, caplog):
    def measured(name, step, cpu):
        path = results / "records" / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"step": step, "hardware": {**HARDWARE, "cpu": cpu}, "versions": {"torch": "1"}}))

    def published():
        assert main(["publish", str(results), "--out", str(tmp_path / "out"), "--command", "make run"]) == 0
        return json.loads((tmp_path / "out/record.json").read_text())

    assert published()["versions"]["python"], "of here, where nothing says more"
    measured("a", "table", "here")
    measured("b", "evaluate", "there")
    found = published()
    assert found["hardware"]["cpu"] == "there" and found["versions"] == {"torch": "1"}
    assert "there" in (tmp_path / "out/README.md").read_text() and not caplog.records
    measured("c", "evaluate", "elsewhere")
    assert published()["hardware"]["cpu"] == "there" and "on 2 kinds of machines" in caplog.text


def test_names_of_tables_may_hold_dots(results, tmp_path):
    """Also such as end in .cost, where they are not of another table."""
    for name in ("main.1", "main.1.published", "of.cost"):
        for kind in ("csv", "md", "svg"):
            (results / f"tables/{name}.{kind}").write_text(f"**{name}**\n")
    assert main(["publish", str(results), "--out", str(tmp_path / "out"), "--command", "make run"]) == 0
    page = (tmp_path / "out/README.md").read_text()
    assert re.findall(r"^### (.*)$", page, re.MULTILINE) == ["main.1", "of.cost", "t", "t2", "t10", "f"]
    section = page[page.index("### main.1") : page.index("### of.cost")]
    assert section.count("**main.1**") == 1 and "**main.1.published**" in section
    for link in ("main.1.md", "main.1.published.md", "main.1.csv", "main.1.svg"):
        assert f"(tables/{link})" in section


def test_somebody_elses_page_is_not_replaced(results, tmp_path, capsys):
    (tmp_path / "README.md").write_text("mine")
    assert main(["publish", str(results), "--out", str(tmp_path), "--command", "x"]) == 1
    assert "a README.md that `publish` did not write" in capsys.readouterr().err
    assert (tmp_path / "README.md").read_text() == "mine" and not (tmp_path / "tables").exists()


def test_an_unfinished_run_is_refused(tmp_path, capsys):
    assert main(["publish", str(tmp_path), "--out", str(tmp_path / "out"), "--command", "x"]) == 1
    assert "no tables" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_the_readme_shows_the_published_table():
    summary = (ROOT / "results/published/tables/micro.md").read_text().split("\n**Tasks")[0].strip()
    assert summary in (ROOT / "README.md").read_text()
