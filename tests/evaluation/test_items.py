"""Errors of a task's own filters and scoring cost only their own metrics."""

import json

import pytest
from given import evaluation_of

from replaceme.config.evaluations import TaskConfig
from replaceme.evaluation import scoring
from replaceme.evaluation.evaluate import ready
from replaceme.evaluation.items import answer
from replaceme.evaluation.task_index import index

TASK = """task: quiz
dataset_path: json
dataset_kwargs: {data_files: {test: quiz.jsonl}}
output_type: generate_until
test_split: test
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["."]}
filter_list:
  - {name: first, filter: [{function: take_first}]}
  - {name: broken, filter: [{function: custom, filter_fn: !function own.broken}]}
  - {name: few, filter: [{function: custom, filter_fn: !function own.few}]}
  - {name: again, filter: [{function: take_first}]}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""
OWN = """def broken(resps, docs): raise RuntimeError("no filter")
def few(resps, docs): return [one[0] for one in resps][:2]
def score(doc, results):
    return {"exact_match": float(doc.pop("answer") == results[0])}
def divides(doc, results): return {"exact_match": 1 / (int(doc["answer"][1:]) - 3)}
def lists(doc, results): return [1.0]
"""


class Echo:
    """A model that answers w0, w1, ... as it is asked w0, w1, ..., but for w4."""

    def generate_until(self, requests):
        assert all(request.args[1]["until"] == ["."] for request in requests)
        return ["w0" if request.args[0] == "w4" else request.args[0] for request in requests]


@pytest.fixture
def answered(tmp_path):
    """A function that gives the estimates of the task, with a function of its own that scores it."""

    def make(score=None):
        own = "" if score is None else f"process_results: !function own.{score}\n"
        (tmp_path / "quiz.yaml").write_text(TASK + own)
        (tmp_path / "own.py").write_text(OWN)
        items = [{"question": f"w{k}", "answer": f"w{k}"} for k in range(6)]
        (tmp_path / "quiz.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
        with ready(
            index(["quiz"], tmp_path), evaluation_of({"quiz": TaskConfig(in_average=False)}, tmp_path, seed=0)
        ) as tasks:
            members = tasks.asked["quiz"]
            answer(Echo(), members)
            pools = scoring.pools_of(members)
            found = scoring.estimates("quiz", members, pools, 0)
            scoring.check_value("quiz", tasks.metrics["quiz"], pools, found)
            return found

    return make


@pytest.mark.parametrize("score", [None, "score"])
def test_filters_that_fail_cost_their_own_metrics(answered, caplog, score):
    """A function that changes the document that it scores has it whole for the next filter."""
    found = answered(score)
    assert {key: value for key, (value, _) in found.found.items()} == {
        "exact_match,first": pytest.approx(5 / 6), "exact_match,again": pytest.approx(5 / 6),
    }  # fmt: skip
    assert "after filter 'broken' fails (RuntimeError: no filter)" in caplog.text
    assert "after filter 'few' fails (item 2: KeyError: 'few')" in caplog.text


@pytest.mark.parametrize(("score", "reason"), [
    ("divides", "item 3: ZeroDivisionError: division by zero"), ("lists", "item 0: scored by list, not by a dict"),
])  # fmt: skip
def test_scoring_that_fails_is_one_line_with_the_item(answered, refuses, score, reason):
    with refuses("evaluation task 'quiz': metric 'exact_match,first' has no value (", reason):
        answered(score)
