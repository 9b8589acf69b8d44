"""No prompt shows the item that it asks, wherever examples come from; where none would, they are lm-eval's own."""

import json

import pytest
import yaml
from given import evaluation_of

from replaceme.config.evaluations import TaskConfig
from replaceme.evaluation.evaluate import ready
from replaceme.evaluation.task_index import index

ITEMS = [{"question": f"w{k}", "choices": ["w1", "w2"], "answer": k % 2, "number": k} for k in range(8)]
TASK = {
    "task": "quiz",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "items.jsonl", "validation": "items.jsonl", "train": "others.jsonl"}},
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}} :",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "answer",
    "fewshot_delimiter": " / ",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}


@pytest.fixture
def prompts(tmp_path):
    """A function that gives the prompts of the items of the task, changed, with three examples each."""

    def make(items=ITEMS, shots=3, **changes):
        task = {key: value for key, value in {**TASK, **changes}.items() if value is not None}
        (tmp_path / "quiz.yaml").write_text(yaml.safe_dump(task))
        others = [{**one, "question": f"w{k + 20}"} for k, one in enumerate(ITEMS)]
        for name, rows in (("items", items), ("others", others)):
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        options = {"quiz": TaskConfig(fewshot=shots)}
        with ready(index(["quiz"], tmp_path), evaluation_of(options, tmp_path, seed=0)) as tasks:
            return [item.requests[0].arguments[0] for item in tasks.asked["quiz"][0].items]

    return make


def leaks(prompts):
    """Return items that are among the examples of their own prompt."""
    return [k for k, prompt in enumerate(prompts) if f"w{k} :" in prompt.split(" / ")[:-1] or f"w{k} : w" in prompt]


OWN = {
    "a test split alone": {},
    "the validation split is evaluated, and named": {"test_split": None, "validation_split": "validation",
                                                     "fewshot_split": "validation"},
    "the test split is named": {"fewshot_split": "test"},
    "the first of the test split": {"fewshot_config": {"sampler": "first_n", "split": "test"}},
    "the first, from a test split alone": {"fewshot_config": {"sampler": "first_n"}},
    "one file behind two splits": {"validation_split": "validation"},
    "listed in the YAML": {"fewshot_config": {"sampler": "first_n", "samples": [
        {key: one[key] for key in ("question", "choices", "answer")} for one in ITEMS[:4]]}},
}  # fmt: skip


@pytest.mark.parametrize("case", OWN)
def test_an_item_is_not_among_its_own_examples(prompts, caplog, case):
    found = prompts(**OWN[case])
    assert leaks(found) == [] and all(prompt.count(" / ") == 3 for prompt in found)
    told = [entry.getMessage() for entry in caplog.records if entry.name == "replaceme.evaluation.examples"]
    same = "drawn from the split that is evaluated"
    apart = "items are among the examples that were drawn for them"
    assert (
        len(told) == 1 and (apart if case in ("one file behind two splits", "listed in the YAML") else same) in told[0]
    )


def test_copies_of_an_item_are_left_out_with_it(prompts):
    """The same question and answer under another number; fewer examples where there are no others."""
    twice = [{**one, "number": k} for k, one in enumerate(ITEMS[:4] * 2)]
    for prompt in prompts(twice, shots=6):
        *shown, asked = prompt.split(" / ")
        assert len(shown) == 6 and not [one for one in shown if one.startswith(asked)]


def test_examples_of_another_split_are_those_of_lm_eval(prompts, caplog, monkeypatch):
    from replaceme.evaluation import examples

    ours = prompts(training_split="train")
    assert not [entry for entry in caplog.records if entry.name == "replaceme.evaluation.examples"]
    monkeypatch.setattr(examples, "keep_apart", lambda task: None)
    assert ours == prompts(training_split="train") and len(set(ours)) == len(ITEMS)


def test_without_examples_nothing_is_told(prompts, caplog):
    prompts(shots=0)
    assert not [entry for entry in caplog.records if entry.name == "replaceme.evaluation.examples"]
