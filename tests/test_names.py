"""Whatever a config names its models, texts, cuts and fits: every file of the workflow lies under results/, alone."""

import copy
import itertools
import os
import re
from pathlib import Path

import pytest
from hostile.stage import CONFIG
from hypothesis import example, given, settings
from hypothesis import strategies as st

from replaceme.config import result_paths
from replaceme.config.base import NAME
from replaceme.config.names import COLUMNS, RESERVED
from replaceme.config.schema import parse
from replaceme.core.errors import ReplaceMeError
from replaceme.workflow.table_jobs import FORMATS

RULES = Path(__file__).parents[1] / "rules"
# how the rules write paths: what is made by functions, files below the folder of a row, and plain patterns
WRITTEN = re.compile(
    r"(?:log_of|benchmark_of|formats|checkpoint_files)\([^()]*\)"
    r'|f?"[^"]*results/[^"]*"|f"{paths[^"]*"|paths\.[A-Z_]+'
)


def patterns():
    """Return all that the rules read or write under results/, with the names of wildcards in braces."""
    found = set()
    known = {
        "paths": result_paths,
        "log_of": result_paths.log_of,
        "benchmark_of": result_paths.benchmark_of,
        "checkpoint_files": lambda folder: list(result_paths.checkpoint_files(folder).values()),
        "formats": lambda path, *_, **__: [f"{path}.{ending}" for ending in FORMATS],
    }
    for file in set(RULES.glob("*.smk")) - {RULES / "common.smk"}:
        for words in WRITTEN.findall(file.read_text()):
            if "OF_" not in words or "(" in words or '"' in words:
                one = eval(words, known)
                found |= {one} if isinstance(one, str) else set(one)
    return sorted(path for path in found if path.startswith("results/"))


PATTERNS = patterns()
SECTIONS = ("models", "calibrations", "cuts", "fits", "healings", "evaluations", "tables", "figures")
WILDCARD = {section[:-1]: section for section in SECTIONS}
GIVEN = {
    "shard": "0",
    "shards": "1",
    "kind": "mlp",
    "program": "llama.cpp",
    "candidates": "1-blocks-all-samples",
    "fit_tokens": "all",
    "exact": "",
    "unit": "decode",
}
HEALING = {"train": "full", "steps": 1, "learning_rate": 0.1, "text": "plain"}
FIGURE = {"kind": "lines", "tables": ["main"]}
WORDS = [
    "model",
    "model.json",
    "tokens.safetensors",
    "gram",
    "rows",
    "baseline",
    "candidates",
    "evaluation",
    "healed",
    "logs",
    "tables",
    "figures",
    "benchmarks",
    "cost",
    "published",
    "provenance.html",
    "main.cost",
    "main.published",
    "main",
    "cut",
    "distances",
    "..",
    "../x",
    "/x",
    ".x",
    "a/b",
    "speed",
    "parts",
    "a\0",
    "\u202ea",
    "cut.json",
    "fit",
    "MAIN",
    "results",
]
USUAL = st.sampled_from(WORDS) | st.from_regex(NAME, fullmatch=True)
ANY = USUAL | st.text(max_size=12)


def test_the_patterns_are_those_of_the_rules():
    assert len(PATTERNS) > 60
    used = {name for pattern in PATTERNS for name in re.findall(r"{(\w+)}", pattern)}
    assert used == {*WILDCARD, *GIVEN}


def paths(names):
    """Return every path of the workflow, for every combination of names; `names` by section."""
    found = set()
    for pattern in PATTERNS:
        wildcards = [name for name in re.findall(r"{(\w+)}", pattern) if name in WILDCARD]
        for values in itertools.product(*(names[WILDCARD[name]] for name in wildcards)):
            known = dict(zip(wildcards, values, strict=True))
            found.add((pattern, pattern.format(**GIVEN, **known)))
    return found


@given(st.fixed_dictionaries(dict.fromkeys(SECTIONS, USUAL)))
@example(dict.fromkeys(SECTIONS, "model"))
@example(dict.fromkeys(SECTIONS, "evaluation"))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_every_file_lies_under_results_and_alone(given_names):
    config = copy.deepcopy(CONFIG) | {"healings": {"long": HEALING}, "figures": {"shown": FIGURE}}
    before = {section: config[section] for section in given_names}
    for section, name in given_names.items():
        config[section] = {**before[section], name: next(iter(before[section].values()))}
    accepted = set(SECTIONS)
    while accepted:
        try:
            parse(config)
            break
        except ReplaceMeError as error:  # which lists all that is wrong
            refused = {section for section in accepted if f": {section}" in str(error)}
            assert refused, error
            config |= {section: before[section] for section in refused}
            accepted -= refused
    # the new name, and one that is there beside it
    names = {section: list(dict.fromkeys([*config[section]][:1] + [*config[section]][-1:])) for section in SECTIONS}
    found = paths(names)
    for _, path in found:
        assert os.path.normpath(path) == path and path.startswith("results/"), path
        assert all(len(part) < 200 for part in path.split("/"))
    files = {path for pattern, path in found if "." in pattern.rpartition("/")[2]}  # others are given as folders
    folders = {str(parent) for path in files for parent in Path(path).parents}
    assert not files & folders, "a file of one job is the folder of another"


@given(ANY, st.sampled_from(SECTIONS))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_a_name_is_one_folder_or_refused(name, section):
    config = copy.deepcopy(CONFIG) | {"healings": {"long": HEALING}, "figures": {"shown": FIGURE}}
    config[section][name] = next(iter(config[section].values()))
    try:
        parse(config)
    except ReplaceMeError:
        return
    assert os.path.normpath(f"results/{name}") == f"results/{name}" and Path(name).name == name and name.isascii()


def test_words_of_the_workflow_and_of_tables_are_no_names():
    config = copy.deepcopy(CONFIG) | {"healings": {"long": HEALING}, "figures": {"shown": FIGURE}}
    names = [(section, name) for section in RESERVED for name in RESERVED[section]]
    for section, name in names:
        config[section][name] = next(iter(config[section].values()))
    lines = [f"config.yaml: {section}.{name}: this name is reserved; choose another" for section, name in names]
    with pytest.raises(ReplaceMeError) as caught:
        parse(config)
    assert set(lines) <= set(str(caught.value).splitlines())


def test_what_tables_and_figures_call_rows_is_reserved_wherever_rows_get_their_names():
    for section in ("models", "calibrations", "cuts", "fits", "healings"):
        assert {"baseline", "unpruned", "published"} <= RESERVED[section]


def test_a_task_has_a_column_to_itself(refuses):
    tasks = [*COLUMNS, "average_stderr", "mine_stderr", "average_vs_identity_stderr"]
    config = copy.deepcopy(CONFIG)
    config["evaluations"]["quiz"]["tasks"] |= {task: {} for task in ("mine", *tasks)}
    lines = [f"evaluations.quiz.tasks.{task}: a column of every table has this name" for task in tasks]
    with refuses(*lines, lines=len(lines)):
        parse(config)


def test_a_task_called_perplexity_may_be_the_perplexity():
    config = copy.deepcopy(CONFIG)
    config["evaluations"]["quiz"] |= {"tasks": {"quiz": {}, "perplexity": {}}, "perplexity": "perplexity"}
    parse(config)
