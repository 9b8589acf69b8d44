"""Each fault of a task is one line, before a model answers, and is reported once."""

import json

import pytest
import yaml
from given import evaluation_of

from replaceme.config.evaluations import TaskConfig
from replaceme.evaluation.evaluate import ready
from replaceme.evaluation.lm_eval import _remembered
from replaceme.evaluation.task_checks import Declared, chosen_metric, declared_in, perplexity_metric
from replaceme.evaluation.task_index import index

TASK = {
    "task": "quiz",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "quiz.jsonl", "train": "train.jsonl"}},
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "answer",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}
ITEMS = [{"question": f"w{k}", "choices": ["w1", "w2"], "answer": k % 2} for k in range(6)]
OWN = """def fails_later(doc): return doc["question"] if doc["question"] != "w4" else 1 / 0
def none(docs): return docs.filter(lambda doc: False)
def renamed(doc, results): return {"accuracy": 1.0}
def broken(doc, results): raise ValueError("only of real answers")
"""
FILTERS = [{"name": "first", "filter": [{"function": "take_first"}]}]
LETTERS = [{"name": "letters", "filter": [{"function": "regex", "regex_pattern": "A"}, {"function": "take_first"}]}]


class Function(str):
    """The value behind `!function`."""


yaml.SafeDumper.add_representer(Function, lambda dumper, value: dumper.represent_scalar("!function", str(value)))


@pytest.fixture
def quiz(tmp_path):
    """A function that makes the task, changed (None removes a key), ready: its metric, or what is wrong with it."""

    def make(options=None, items=ITEMS, perplexity=None, limit=None, **changes):
        task = {key: value for key, value in {**TASK, **changes}.items() if value is not None}
        (tmp_path / "quiz.yaml").write_text(yaml.safe_dump(task))
        (tmp_path / "own.py").write_text(OWN)
        for name in ("quiz", "train"):
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
        options = {"quiz": TaskConfig(**options or {})}
        with ready(
            index(["quiz"], tmp_path), evaluation_of(options, tmp_path, perplexity=perplexity, limit=limit, seed=0)
        ) as tasks:
            assert all(not request.resps for request in tasks.asked["quiz"][0].task.instances)
            return tasks.metrics["quiz"]

    return make


def item(number, **changes):
    """Return the items with one changed."""
    return [{**one, **changes} if k == number else one for k, one in enumerate(ITEMS)]


WRONG = {
    "a filter that is not there": ({"options": {"metric": "acc,nope"}}, "no filter 'nope'; its filters: none"),
    "a metric that is not there": ({"options": {"metric": "f1"}}, "has no metric 'f1'; it has acc"),
    "a metric that this kind of task never gives": (
        {"metric_list": [{"metric": "exact_match"}], "options": {"metric": "exact_match"}, "doc_to_choice": None,
         "output_type": "loglikelihood"}, "its items give none"),
    "a metric that its own scoring never gives": (
        {"process_results": Function("own.renamed")}, "has no metric 'acc': its items give accuracy"),
    "a metric without aggregation": (
        {"metric_list": [{"metric": "own"}], "process_results": Function("own.renamed")}, "has no `aggregation`"),
    "an aggregation that is not there": (
        {"metric_list": [{"metric": "acc", "aggregation": "meen"}]}, "does not know the aggregation of 'acc'"),
    "an empty file": ({"items": []}, "has no items"),
    "a split that is not there": ({"test_split": "tset"}, "'tset'"),
    "a split for examples that is not there": ({"fewshot_split": "dev"}, "'dev'"),
    "no items": ({"process_docs": Function("own.none")}, "cannot be loaded"),
    "more examples than there are": (
        {"options": {"fewshot": 7}, "training_split": "train"}, "7 examples asked for, 6 of split 'train'"),
    "more examples than other items": (
        {"options": {"fewshot": 6}}, "6 examples asked for, 6 of split 'test', of which one is the item itself"),
    "more examples than are listed": (
        {"num_fewshot": 2, "fewshot_config": {"sampler": "first_n", "samples": ITEMS[:1]}}, "asked for, 1 in its YAML"),
    "a right answer out of range": ({"items": item(3, answer=2)}, "item 3: the right answer 2 is none of its 2"),
    "a right answer before the first": ({"items": item(3, answer=-1)}, "item 3: the right answer -1"),
    "no right answer": ({"items": item(3, answer=None)}, "item 3: the right answer None is none of its 2 choices"),
    "a right answer that is no choice": (
        {"items": [{**one, "answer": "w9"} for one in ITEMS]}, "item 0: the right answer 'w9' is none of its 2"),
    "no choices": ({"items": item(3, choices=[])}, "item 3: nothing to choose from"),
    "a function that fails later": (
        {"doc_to_text": Function("own.fails_later")}, "its prompts cannot be made (ZeroDivisionError"),
    "a column that is not there": ({"doc_to_text": "{{nothing}}"}, "'nothing' is undefined"),
    "a filter that breaks its scoring": ({"filter_list": LETTERS}, "cannot be scored ("),
    "a filter that cannot be made": (
        {"filter_list": [{"name": "a", "filter": [{"function": "custom"}]}]}, "filter 'a' cannot be made (KeyError"),
    "code that a model writes": ({"unsafe_code": True}, "runs what a model writes"),
    "no perplexity": ({"perplexity": "quiz"}, "reports no perplexity; it reports acc"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_one_line(quiz, refuses, case):
    changes, message = WRONG[case]
    with refuses("evaluation task 'quiz'", message):
        quiz(**changes)


def test_what_is_right(quiz):
    """Filters by name and by default, examples, a limit before what is wrong, scoring that made-up answers break."""
    assert quiz({"metric": "acc,none"}) == quiz() == "acc"
    assert quiz({"metric": "acc,first"}, filter_list=FILTERS) == quiz(filter_list=FILTERS) == "acc,first"
    assert quiz({"fewshot": 5}) == quiz({"fewshot": 6}, training_split="train") == "acc"
    assert quiz(limit=3, items=item(3, answer=7)) == "acc"
    assert quiz(process_results=Function("own.broken")) == "acc"


def test_templates_are_rendered_once_for_each_document(quiz, monkeypatch):
    from lm_eval import utils

    rendered, render = [], utils.apply_template
    monkeypatch.setattr(
        utils, "apply_template", lambda template, doc: rendered.append(template) or render(template, doc)
    )
    quiz(doc_to_choice="{{choices}}", test_split="test", limit=3)
    assert rendered.count("{{choices}}") <= 3 + 1  # lm-eval tries one when it loads a task


def test_what_is_remembered_cannot_be_changed():
    made = []
    render = _remembered(lambda document, *given: made.append(document) or [document["a"], *given])
    first, second = {"a": 1}, {"a": 1}
    render(first).append(2)
    assert render(first) == render(second) == [1] and made == [first, second]
    assert [render(first, "another") for _ in range(2)] == [[1, "another"]] * 2 and len(made) == 3
    assert [render(first, print) for _ in range(2)] == [[1, print]] * 2 and len(made) == 5


def test_metrics_of_groups():
    exact = Declared(["exact_match", "f1"], ["strict", "loose"])
    other = Declared(["f1", "acc"], ["loose"])
    assert chosen_metric("g", [exact, other], TaskConfig(metric="f1")) == "f1,loose"
    assert perplexity_metric("p", [Declared(["acc", "byte_perplexity"], ["none"])]) == "byte_perplexity"


def test_groups_without_a_metric_or_a_filter_in_common(refuses):
    acc, other = Declared(["acc"], ["none"]), Declared(["exact_match"], ["none"])
    with refuses("'g' has neither acc_norm nor acc", "to one of none"):
        chosen_metric("g", [acc, other], TaskConfig())
    with refuses("'g'", "no filter in common"):
        chosen_metric("g", [acc, Declared(["acc"], ["strict"])], TaskConfig())


def test_what_a_yaml_declares():
    listed = {"metric_list": [{"metric": "exact_match"}], "filter_list": [{"name": "strict"}, {"name": "loose"}]}
    assert declared_in(listed) == Declared(["exact_match"], ["strict", "loose"])
    assert declared_in({"output_type": "multiple_choice"}) == Declared(["acc", "acc_norm"], ["none"])
    assert declared_in({"class": "x"}) is declared_in({}) is None
