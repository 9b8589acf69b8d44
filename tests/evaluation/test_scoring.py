"""Metrics of tasks with code of their own: whatever it returns or raises, the value of the metric asked for is kept."""

import json
import logging
import math
from decimal import Decimal

import numpy
import pytest
from given import evaluation_of

from replaceme.config.evaluations import TaskConfig
from replaceme.core.files import json_text
from replaceme.evaluation import scoring
from replaceme.evaluation.evaluate import evaluate, ready
from replaceme.evaluation.items import rehearse
from replaceme.evaluation.task_index import index

ODD = """task: odd
dataset_path: json
dataset_kwargs: {data_files: {test: odd.jsonl}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{question}}"
doc_to_choice: [w1, w2]
doc_to_target: right
process_results: !function own.score
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""
OWN = """import numpy
from fractions import Fraction

class Strange:
    def __str__(self): return "one\\ntwo"

def score(doc, results):
    k = int(doc["question"].split()[0][1:])
    scores = {name: float(k) for name in globals() if name.startswith("by_")}
    odd = {"pairs": (k, k), "texts": "x", "objects": Strange(), "sets": {1, 2}, "nan": float("nan") if k else 1.0}
    odd |= {"of_numpy": numpy.float32(k), "of_fractions": Fraction(k, 2), 7: k, "without_aggregation": k, "flag": k > 5}
    odd["by_own_mean"] = k
    if k > 3:
        scores["sometimes"] = k
    return {"acc": float(k % 2), **scores, **odd}

def by_ratio(items): return sum(items) / (max(items) - min(items[:1]) if len(set(items)) < 12 else 4)
def by_zero(items): return 1 / 0
def by_nan(items): return float("nan")
def by_infinity(items): return float("-inf")
def by_nothing(items): return None
def by_text(items): return "0.5"
def by_list(items): return [0.5, 0.25]
def by_dict(items): return {"f1": 0.5, "n": numpy.int64(3), "name": "x", "bad": float("nan")}
def by_words(items): return {"name": "x"}
def by_float32(items): return numpy.float32(0.5)
def by_array(items): return numpy.array([0.25])
def by_exit(items): raise SystemExit("leave")
def by_emptying(items):
    return float(sum(items.pop() for _ in range(len(items))))
def mean(items): return 7.0
"""
METRICS = (
    "by_ratio", "by_zero", "by_nan", "by_infinity", "by_nothing", "by_text", "by_list", "by_dict", "by_words",
    "by_float32", "by_array", "by_exit", "by_emptying",
)  # fmt: skip
NAMED_MEAN = ("sometimes", "pairs", "texts", "objects", "sets", "nan", "of_numpy", "of_fractions", "flag")
VALUES = {
    "by_float32": 0.5, "by_array": 0.25, "by_dict.f1": 0.5, "by_dict.n": 3.0, "by_own_mean": 7.0, "by_emptying": 66.0,
    "of_numpy": 5.5, "of_fractions": 2.75, "7": 5.5, "without_aggregation": 5.5, "flag": 0.5, "sometimes": 7.5,
}  # fmt: skip


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """A folder with a task of 12 items whose scoring gives values of every kind."""
    folder = tmp_path_factory.mktemp("odd")
    items = [{"question": f"w{k} w3", "right": k % 2} for k in range(12)]
    (folder / "odd.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    lines = [f"  - {{metric: {name}, aggregation: !function own.{name}, higher_is_better: true}}\n" for name in METRICS]
    lines += [f"  - {{metric: {name}, aggregation: mean, higher_is_better: true}}\n" for name in NAMED_MEAN]
    lines += ["  - {metric: by_own_mean, aggregation: !function own.mean, higher_is_better: true}\n"]
    (folder / "odd.yaml").write_text(ODD + "".join(lines))
    (folder / "own.py").write_text(OWN)
    return folder


@pytest.fixture(scope="module")
def told():
    """The warnings of this file's package, as they come."""
    lines, handler = [], logging.Handler()
    handler.emit = lambda entry: lines.append(entry.getMessage())
    logging.getLogger("replaceme").addHandler(handler)
    yield lines
    logging.getLogger("replaceme").removeHandler(handler)


@pytest.fixture(scope="module")
def task(odd, llama, told):
    """The task's part of a record, which can be stored."""
    found = evaluate(llama, evaluation_of({"odd": TaskConfig()}, include=odd))
    json_text(found)
    return found["tasks"]["odd"]


@pytest.fixture(scope="module")
def scored(odd):
    """The items of the task with answers that are made up."""
    with ready(index(["odd"], odd), evaluation_of({"odd": TaskConfig()}, odd, seed=0)) as tasks:
        return [rehearse(tasks.asked["odd"][0])]


def test_the_metric_asked_for_is_kept_whatever_others_do(task):
    assert (task["metric"], task["value"], task["n"]) == ("acc", 0.5, 12)
    assert task["stderr"] == pytest.approx(math.sqrt(0.25 / 11))


def test_numbers_of_any_type_are_values(task):
    """Of numpy, exact, alone in an array, in a dict, of an aggregation that is called `mean` or empties its list."""
    assert {name: task["metrics"][name]["value"] for name in VALUES} == VALUES


def test_what_is_no_number_is_left_out_and_told(task, told):
    for name in ("by_zero", "by_nan", "by_infinity", "by_nothing", "by_text", "by_list", "by_words", "by_exit"):
        assert name not in task["metrics"] and [line for line in told if f"{name!r} is left out (" in line], name
    for name in ("pairs", "texts", "objects", "sets", "nan"):
        assert name not in task["metrics"] and [line for line in told if f"{name!r} is left out (" in line], name
    assert "evaluation task 'odd': metric 'by_zero' is left out (ZeroDivisionError: division by zero)" in told


def test_no_standard_error_where_a_resample_has_no_value(task, told):
    assert task["metrics"]["by_ratio"] == {"value": 16.5, "stderr": None}
    assert sum("'by_ratio' has no standard error" in line for line in told) == 1


def test_items_without_the_metric_do_not_count_and_keep_their_place(odd, scored, caplog):
    pools = scoring.pools_of(scored)
    found = scoring.estimates("odd", scored, pools, 0)
    scoring.check_value("odd", "sometimes", pools, found)
    assert "8 of 12 items have metric 'sometimes'" in caplog.text
    assert [scoring.stored(item) for item in pools["sometimes"].values] == [None] * 4 + [float(k) for k in range(4, 12)]


@pytest.mark.parametrize(("metric", "reason"), [
    ("by_zero", "ZeroDivisionError: division by zero"), ("by_dict", "its aggregation gives a dict, not a number"),
    ("elsewhere", "none of its items has it"),
])  # fmt: skip
def test_the_metric_asked_for_has_to_have_a_value(scored, refuses, metric, reason):
    pools = scoring.pools_of(scored)
    with refuses("evaluation task 'odd'", f"metric {metric!r} has no value ({reason})"):
        scoring.check_value("odd", metric, pools, scoring.estimates("odd", scored, pools, 0))


def test_what_is_stored_of_an_item_is_plain():
    item = {"a": numpy.float32(0.5), 2: (True, {3}), "c": float("nan"), "d": Decimal("1.5"), "e": 10**400, "f": None}
    assert scoring.stored(item) == {"a": 0.5, "2": [1.0, [3.0]], "c": None, "d": 1.5, "e": None, "f": None}


def test_a_perplexity_that_is_none(refuses):
    for items in ([-800.0, -900.0], ["x"], [], [[-1.0, 0.0]]):
        with refuses("evaluation task 'odd': perplexity overflows, or its items are no log-likelihoods"):
            scoring.perplexity_of("odd", "perplexity", items)
