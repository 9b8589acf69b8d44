"""Configs of several files, what plain `snakemake` makes of them, and targets by name."""

import copy
import re
from pathlib import Path

import pytest
import yaml
from test_config import GOOD, changed

from replaceme.config.including import OWN, SETTINGS
from replaceme.config.schema import Config, load, parse
from replaceme.config.targets import RULES
from replaceme.core.errors import ReplaceMeError
from replaceme.planning.check_local import check_inputs

ROOT = Path(__file__).parents[1]


def write(folder, **files):
    """Return YAML files by their stems; returns the path of the first."""
    paths = []
    for stem, content in files.items():
        paths.append(folder / f"{stem}.yaml")
        paths[-1].write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
    return paths[0]


def without(*names):
    return {key: value for key, value in GOOD.items() if key not in names}


def lines_of(path):
    with pytest.raises(ReplaceMeError) as caught:
        load(path)
    return str(caught.value).split("\n")


def test_sections_are_added(tmp_path):
    (tmp_path / "parts").mkdir()
    write(tmp_path, main={**without("fits", "tables"), "include": ["parts/more.yaml"], "default": ["more"]})
    table = {**GOOD["tables"]["main"], "cuts": ["n4", "n5"]}
    more = {
        "include": ["../fits.yaml"],
        "default": ["not-here"],
        "cuts": {"n4": GOOD["cuts"]["n4"], "n5": {"blocks": 5}},
        "tables": {"more": table},
        "targets": {"both": ["more"]},
    }
    write(tmp_path / "parts", more=more)
    write(tmp_path, fits={"fits": GOOD["fits"], "include": ["models.yaml"]}, models={"models": GOOD["models"]})
    found = load(tmp_path / "main.yaml")
    expected = {**GOOD, "cuts": {**GOOD["cuts"], "n5": {"blocks": 5}}, "tables": {"more": table}}
    assert found == parse({**expected, "default": ["more"], "targets": {"both": ["more"]}})


def test_what_two_files_define_otherwise(tmp_path):
    """The file that includes has the last word, but for settings of the whole run."""
    other = changed("cuts/n4/blocks", 5) | {"speed": {"repeats": 1}}
    path = write(tmp_path, main={**GOOD, "include": ["other.yaml"], "modles": {}}, other=other)
    found, files = lines_of(path), f"{path} + {tmp_path / 'other.yaml'}: "
    assert all(line.startswith(files) for line in found) and len(found) == 2
    for end in ("speed: {} sets it for itself", "modles: unknown key"):
        assert [line for line in found if line.startswith(files + end.format(tmp_path / "other.yaml"))]


def test_plain_snakemake_makes_what_the_first_file_itself_defines(tmp_path):
    other = {"cuts": {"n4": {"blocks": 5}}, "tables": {"other": GOOD["tables"]["main"]}}
    found = load(write(tmp_path, main={**GOOD, "include": ["other.yaml"]}, other=other))
    assert (found.default_names, list(found.tables)) == (["main"], ["main", "other"])
    assert found.cuts["n4"].blocks == GOOD["cuts"]["n4"]["blocks"], "and not the included file's"
    bare = write(tmp_path, bare={**without("tables"), "include": ["other.yaml"]})
    assert load(bare).default_names == ["other"]


UNREADABLE = {
    "no such file": ({"main": {**GOOD, "include": ["none.yaml"]}}, "main.yaml: include: {}/none.yaml: no such file"),
    "not a list": ({"main": {**GOOD, "include": "a.yaml"}}, "main.yaml: include: a list of files is needed"),
    "not sections": ({"main": {**GOOD, "include": ["a.yaml"]}, "a": "- 1"}, "a.yaml: expected a mapping of sections"),
    "a key twice": ({"main": {**GOOD, "include": ["a.yaml"]}, "a": "cuts: {n: 1, n: 2}"}, "key 'n' again"),
    "itself": ({"main": {**GOOD, "include": ["main.yaml"]}}, "main.yaml: include: includes itself ("),
    "a circle": (
        {"main": {**GOOD, "include": ["a.yaml"]}, "a": {"include": ["main.yaml"]}},
        "a.yaml: include: includes itself ({0}/main.yaml -> {0}/a.yaml -> {0}/main.yaml); break the circle",
    ),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_files_that_cannot_be_included(tmp_path, case):
    files, message = UNREADABLE[case]
    [line] = lines_of(write(tmp_path, **files))
    assert message.format(tmp_path) in line


def test_all_unreadable_files_at_once(tmp_path):
    assert len(lines_of(write(tmp_path, main={"include": ["a.yaml", "b.yaml"]}))) == 2


def test_only_files_include():
    with pytest.raises(ReplaceMeError, match="include: only a file can include others"):
        parse({**GOOD, "include": ["a.yaml"]})


BAD = {
    "default/0": (("default", ["mian"]), "default: 'mian' is not defined under tables or figures; defined: main"),
    "default twice": (("default", ["main", "main"]), "default: 'main' is listed twice"),
    "no default": (("default", []), "default: List should have at least 1 item"),
    "target of nothing": (("targets", {"all_of_it": []}), "targets.all_of_it: List should have at least 1 item"),
    "dangling": (("targets", {"paper": ["table1"]}), "targets.paper: 'table1' is not defined under tables or figures"),
    "a rule": (("targets", {"merge": ["main"]}), "targets.merge: a rule of the workflow has this name"),
    "a table": (("targets", {"main": ["main"]}), "targets.main: a table has this name; choose another"),
    "not a name": (("targets", {"a.b": ["main"]}), "targets.a.b: not a name for a target; use letters"),
}


@pytest.mark.parametrize("case", BAD)
def test_defaults_and_targets_that_cannot_be(case):
    change, message = BAD[case]
    with pytest.raises(ReplaceMeError) as caught:
        parse(changed(*change), "x")
    assert [line for line in str(caught.value).split("\n") if line.startswith(f"x: {message}")], str(caught.value)


def test_what_is_made_without_a_target():
    config = copy.deepcopy(GOOD)
    config["tables"]["other"] = config["tables"]["main"]
    assert parse(config).default_names == ["main", "other"]
    assert parse({**config, "default": ["other"]}).default_names == ["other"]


def test_the_lists_of_settings_and_rules_are_whole():
    sections = {name for name, field in Config.model_fields.items() if str(field.annotation).startswith("dict")}
    assert sections | {*SETTINGS, *OWN} >= set(Config.model_fields) and not sections & {*SETTINGS, *OWN}
    files = [ROOT / "Snakefile", *(ROOT / "rules").glob("*.smk")]
    named = re.compile(r"^ *(?:rule|use rule \w+ as) (\w+)\b", re.MULTILINE)
    found = {name for file in files for name in named.findall(file.read_text())}
    assert found == RULES


def test_targets_of_the_paper_are_whole(monkeypatch):
    """Each table of the shipped configs has the rows of its reference; all are made, by default, by a target, alone."""
    monkeypatch.chdir(ROOT)
    for path, name, alone in (
        ("config.yaml", "micro_paper", {"baselines", "width"}),
        ("config/paper.yaml", "paper", set()),
    ):
        config = load(path)
        check_inputs(config, path)
        drawn = {table for figure in config.figures.values() for table in figure.tables}
        made = {*config.targets[name], *(config.default or []), *alone, *drawn}
        assert made == {*config.tables, *config.figures}
