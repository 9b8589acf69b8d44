"""Evaluation: values as lm-eval's own, standard errors by hand, no network, clear errors."""

import json
import math
import re
import shutil
import socket

import pytest
from given import cut_of, evaluation_of

from replaceme.config.evaluations import TaskConfig
from replaceme.core import uncertainty
from replaceme.core.errors import ReplaceMeError
from replaceme.evaluation.evaluate import evaluate

WORDS = [f"w{i}" for i in range(40)]
CHOICE = """task: tiny_choice
dataset_path: json
dataset_kwargs: {data_files: {test: data/choice.jsonl}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{context}}"
doc_to_choice: choices
doc_to_target: gold
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
metadata: {version: 2.0}
"""
LAST = """task: tiny_last
dataset_path: json
dataset_kwargs: {data_files: {test: data/choice.jsonl}}
output_type: loglikelihood
test_split: test
doc_to_text: "{{context}}"
doc_to_target: " {{choices[0]}}"
target_delimiter: ""
metric_list:
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""
ROLLING = """task: tiny_rolling
dataset_path: json
dataset_kwargs: {data_files: {test: data/choice.jsonl}}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{context}}"
metric_list:
  - {metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}
"""
TASKS = {"tiny_choice": TaskConfig(), "tiny_last": TaskConfig(in_average=False)}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("model")
    vocabulary = {word: index for index, word in enumerate(["<pad>", "<unk>", "<s>", "</s>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        max_position_embeddings=64,
        initializer_range=0.5,
        bos_token_id=2,
        eos_token_id=3,
        **sizes,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def include(tmp_path_factory):
    import random

    folder = tmp_path_factory.mktemp("tasks")
    random_words = random.Random(0)
    (folder / "data").mkdir()
    with (folder / "data/choice.jsonl").open("w") as file:
        for _ in range(12):
            words = random_words.sample(WORDS, 9)
            choices = [words[6], f"{words[7]} {words[8]}", "w1"]
            file.write(json.dumps({"context": " ".join(words[:6]), "choices": choices, "gold": 1}) + "\n")
    for name, text in (("choice", CHOICE), ("last", LAST), ("rolling", ROLLING)):
        (folder / f"{name}.yaml").write_text(text)
    return folder


@pytest.fixture
def no_network(monkeypatch):
    tried = []

    def refuse(*arguments, **_):
        tried.append(arguments)
        raise OSError("the network was tried")

    for owner, name in (
        (socket.socket, "connect"),
        (socket.socket, "connect_ex"),
        (socket, "create_connection"),
        (socket, "getaddrinfo"),
    ):
        monkeypatch.setattr(owner, name, refuse)
    return tried


@pytest.fixture(scope="module")
def record(model, include):
    return evaluate(model, evaluation_of(TASKS, include=include, perplexity="tiny_last", batch_size=4))


def test_nothing_tries_the_network(model, include, no_network, record):
    again = evaluate(model, evaluation_of(TASKS, include=include, perplexity="tiny_last", batch_size=4))
    assert no_network == []
    for key in ("tasks", "average", "perplexity"):
        assert again[key] == record[key], "two evaluations of one model differ"


def test_offline_flags_are_restored(model, include, record):
    import datasets.config
    import huggingface_hub.constants

    from replaceme.core.offline import offline

    before = huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    with offline():
        assert huggingface_hub.constants.HF_HUB_OFFLINE and datasets.config.HF_HUB_OFFLINE
    after = huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    assert after == before


def by_lm_eval(model, include, tasks, bootstrap, monkeypatch):
    """Return the results of lm-eval's own evaluator; `simple_evaluate` around it looks at the machine for seconds."""
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    monkeypatch.chdir(include)  # lm-eval reads data files relative to the working directory
    monkeypatch.setenv("DISABLE_MULTIPROC", "1")
    manager = TaskManager(include_path=str(include), include_defaults=False)
    lm = HFLM(pretrained=str(model), device="cpu", dtype="float32", batch_size=4)
    return evaluate(lm=lm, task_dict=manager.load(tasks), bootstrap_iters=bootstrap)["results"]


def test_values_are_those_of_lm_eval(model, include, record, monkeypatch):
    answer = by_lm_eval(model, include, list(TASKS), 2000, monkeypatch)
    choice, last = record["tasks"]["tiny_choice"], record["perplexity"]
    assert choice["metric"] == "acc_norm" and choice["version"] == 2.0 and choice["n"] == 12
    assert 0 < choice["value"] < 1, "the task must be able to tell right from wrong"
    for metric in ("acc", "acc_norm"):
        assert choice["metrics"][metric]["value"] == answer["tiny_choice"][f"{metric},none"]
        assert choice["metrics"][metric]["stderr"] == pytest.approx(answer["tiny_choice"][f"{metric}_stderr,none"])
    assert last["value"] == pytest.approx(answer["tiny_last"]["perplexity,none"], rel=1e-6)
    # the bootstrap and the delta method estimate the same quantity
    assert last["stderr"] == pytest.approx(answer["tiny_last"]["perplexity_stderr,none"], rel=0.4)


def test_items_explain_the_numbers(record):
    choice, last = record["tasks"]["tiny_choice"], record["perplexity"]
    items, n = choice["items"], 12
    mean = sum(items) / n
    assert choice["value"] == mean
    assert choice["stderr"] == pytest.approx(math.sqrt(sum((x - mean) ** 2 for x in items) / (n - 1) / n))
    assert record["average"] == {"value": choice["value"], "stderr": choice["stderr"]}, "only one task is in it"
    assert last["value"] == pytest.approx(math.exp(-sum(last["items"]) / n))
    json.dumps(record, allow_nan=False)


def test_limit_takes_the_first_items(model, include, record):
    few = evaluate(model, evaluation_of({"tiny_choice": TaskConfig(metric="acc")}, include=include, limit=5))
    full = evaluate(model, evaluation_of({"tiny_choice": TaskConfig(metric="acc")}, include=include))
    assert few["tasks"]["tiny_choice"]["items"] == full["tasks"]["tiny_choice"]["items"][:5]
    assert few["perplexity"] is None and few["tasks"]["tiny_choice"]["metric"] == "acc"


def test_one_bar_on_a_terminal_and_none_in_a_file(model, include, capsys, monkeypatch):
    evaluate(model, evaluation_of(TASKS, include=include, limit=2))
    assert "\r" not in capsys.readouterr().err
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    evaluate(model, evaluation_of(TASKS, include=include, limit=2))
    assert set(re.findall(r"\r([A-Z][a-z -]+):", capsys.readouterr().err)) == {"Log-likelihoods"}


def test_fewshot_is_applied(model, tmp_path, include):
    shutil.copytree(include, tmp_path / "tasks")
    yaml = tmp_path / "tasks/choice.yaml"
    yaml.write_text(CHOICE + "fewshot_split: test\n")
    shots = evaluate(model, evaluation_of({"tiny_choice": TaskConfig(fewshot=2)}, include=tmp_path / "tasks"))["tasks"][
        "tiny_choice"
    ]
    plain = evaluate(model, evaluation_of({"tiny_choice": TaskConfig()}, include=tmp_path / "tasks"))["tasks"][
        "tiny_choice"
    ]
    assert (shots["fewshot"], plain["fewshot"]) == (2, 0)
    assert shots["documents"] != plain["documents"], "the prompts must differ"


def test_rolling_perplexity_is_per_word(model, include):
    tasks = {"tiny_choice": TaskConfig(), "tiny_rolling": TaskConfig(in_average=False)}
    found = evaluate(model, evaluation_of(tasks, include=include, perplexity="tiny_rolling"))
    items = found["perplexity"]["items"]
    assert found["perplexity"]["metric"] == "word_perplexity" and all(words == 6 for _, words in items)
    assert found["perplexity"]["value"] == pytest.approx(math.exp(-sum(ll for ll, _ in items) / (6 * 12)))


def test_unknown_task_names_folder_and_close_matches(model, include, monkeypatch):
    import lm_eval.tasks

    real = lm_eval.tasks.TaskManager
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", lambda **options: real(**options | {"include_defaults": False}))
    with pytest.raises(ReplaceMeError, match="'tiny_choise'") as caught:
        evaluate(model, evaluation_of({"tiny_choise": TaskConfig()}, include=include))
    assert str(include) in str(caught.value) and "close: tiny_choice" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "perplexity", "message"),
    [
        (TaskConfig(metric="f1"), None, "no metric 'f1'; it has acc, acc_norm"),
        (TaskConfig(), "tiny_choice", "reports no perplexity"),
    ],
)
def test_wrong_metric_is_refused(model, include, options, perplexity, message):
    with pytest.raises(ReplaceMeError, match=message):
        evaluate(model, evaluation_of({"tiny_choice": options}, include=include, perplexity=perplexity))


def test_missing_data_file_is_named(model, tmp_path, include):
    shutil.copytree(include, tmp_path / "tasks")
    (tmp_path / "tasks/data/choice.jsonl").unlink()
    with pytest.raises(ReplaceMeError, match=r"'tiny_choice': data file data/choice\.jsonl"):
        evaluate(model, evaluation_of({"tiny_choice": TaskConfig()}, include=tmp_path / "tasks"))


def test_missing_include_folder(model, tmp_path):
    with pytest.raises(ReplaceMeError, match="no such folder of evaluation tasks"):
        evaluate(model, evaluation_of({"tiny_choice": TaskConfig()}, include=tmp_path / "none"))


@pytest.mark.parametrize("damage", ["truncated", "no weights", "no tokenizer", "missing tensor", "nan"])
def test_broken_model_gives_one_line(model, include, tmp_path, damage):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "broken"
    shutil.copytree(model, folder)
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif damage == "no weights":
        weights.unlink()
    elif damage == "no tokenizer":
        for path in folder.glob("tokenizer*"):
            path.unlink()
    elif damage == "missing tensor":
        del tensors["model.layers.1.mlp.down_proj.weight"]
        save_file(tensors, weights, metadata={"format": "pt"})
    else:
        tensors["model.norm.weight"][0] = math.nan
        save_file(tensors, weights, metadata={"format": "pt"})
    section = evaluation_of({"tiny_choice": TaskConfig()}, include=include)
    with pytest.raises(ReplaceMeError) as caught:
        evaluate(folder, section)
    assert "\n" not in str(caught.value)

    def checked():
        raise ReplaceMeError("the check says what is wrong")

    with pytest.raises(ReplaceMeError, match="the check says"):  # first, and before a model answers
        evaluate(folder, section, checked=checked)
    if damage == "missing tensor":
        assert "model.layers.1.mlp.down_proj.weight" in str(caught.value)
    if damage == "nan":
        assert "nan" in str(caught.value)


def test_a_group_is_the_pool_of_its_tasks(model, tmp_path, include):
    shutil.copytree(include, tmp_path / "tasks")
    (tmp_path / "tasks/second.yaml").write_text(CHOICE.replace("tiny_choice", "tiny_second"))
    (tmp_path / "tasks/group.yaml").write_text("group: tiny_group\ntask: [tiny_choice, tiny_second]\n")
    found = evaluate(model, evaluation_of({"tiny_group": TaskConfig()}, include=tmp_path / "tasks"))["tasks"][
        "tiny_group"
    ]
    assert found["n"] == 24 and found["items"][:12] == found["items"][12:]
    with pytest.raises(ReplaceMeError, match="'tiny_choice' is asked for twice"):
        evaluate(
            model, evaluation_of({"tiny_group": TaskConfig(), "tiny_choice": TaskConfig()}, include=tmp_path / "tasks")
        )


@pytest.fixture(scope="module")
def grouped(tmp_path_factory, include):
    """Task files with a group in a group, of 12, 5 and 12 items."""
    folder = shutil.copytree(include, tmp_path_factory.mktemp("grouped") / "tasks")
    lines = (folder / "data/choice.jsonl").read_text().splitlines(keepends=True)
    (folder / "data/few.jsonl").write_text("".join(lines[5:10]).replace('"gold": 1', '"gold": 0'))
    few = CHOICE.replace("tiny_choice", "tiny_few").replace("choice.jsonl", "few.jsonl")
    (folder / "few.yaml").write_text(few)
    third = CHOICE.replace("tiny_choice", "tiny_third").replace("doc_to_target: gold", 'doc_to_target: "2"')
    (folder / "third.yaml").write_text(third)
    pair = "group: tiny_pair\ntask: [tiny_choice, tiny_few]\naggregate_metric_list: [{metric: acc_norm}]\n"
    (folder / "pair.yaml").write_text(pair)
    rule = "aggregate_metric_list: [{metric: acc_norm, weight_by_size: true}]"
    (folder / "all.yaml").write_text(f"group: tiny_all\ntask: [tiny_pair, tiny_third]\n{rule}\n")
    return folder


def test_the_number_of_a_group_is_that_of_lm_eval(model, grouped, monkeypatch):
    """A group in a group of unequal tasks: every item counts alike, as `weight_by_size: true` has it."""
    found = evaluate(model, evaluation_of({"tiny_all": TaskConfig()}, include=grouped))["tasks"]["tiny_all"]
    assert {name: part["n"] for name, part in found["members"].items()} == {
        "tiny_choice": 12, "tiny_few": 5, "tiny_third": 12,
    }  # fmt: skip
    assert found["n"] == len(found["items"]) == 29 and found["value"] == pytest.approx(sum(found["items"]) / 29)
    assert found["stderr"] == uncertainty.mean(found["items"])[1]
    assert len({part["value"] for part in found["members"].values()}) > 1
    answer = by_lm_eval(model, grouped, ["tiny_all"], 0, monkeypatch)
    assert found["value"] == pytest.approx(answer["tiny_all"]["acc_norm,none"])
    for name, part in found["members"].items():
        assert part["value"] == answer[name]["acc_norm,none"]


def test_a_group_in_a_table(model, grouped, tmp_path):
    """As one column; differences are paired over the items of all its tasks."""
    from replaceme.core.files import write_json
    from replaceme.reports import tables

    record = evaluate(
        model, evaluation_of({"tiny_all": TaskConfig(), "tiny_last": TaskConfig(in_average=False)}, include=grouped)
    )
    worse = json.loads(json.dumps(record))
    worse["tasks"]["tiny_all"]["items"] = [0.0] * 29
    cut = tmp_path / "m/c/n"
    cut_of([[1, 2]], 6, metric="cosine", position="all").save(cut / "cut.json")
    for folder, transform, values in (
        (tmp_path / "m/baseline", None, record), (cut / "uidl", "identity", worse), (cut / "ls", "full", record),
    ):  # fmt: skip
        write_json(folder / "evaluation/e.json", values)
        write_json(folder / "fit.json", {"transform": transform})
    frame = tables.collect([cut / "uidl", cut / "ls"], [tmp_path / "m/baseline"], "e", speed=False)
    group = record["tasks"]["tiny_all"]
    assert tables.task_columns(frame.columns) == ["tiny_all", "tiny_last"]
    assert frame["tiny_all"][0] == frame["average"][0] == group["value"]
    assert frame["tiny_all_stderr"][0] == group["stderr"]
    difference = uncertainty.paired_mean(group["items"], [0.0] * 29)
    assert (frame["average_vs_identity"][2], frame["average_vs_identity_stderr"][2]) == pytest.approx(difference)
    assert frame.attrs["tasks"]["tiny_all"] == "acc_norm, 0-shot, n = 29, v2.0"


def test_a_group_that_weighs_its_tasks_alike_is_told(model, grouped, tmp_path, caplog):
    folder = shutil.copytree(grouped, tmp_path / "tasks")
    text = (folder / "pair.yaml").read_text()
    (folder / "pair.yaml").write_text(text.replace("acc_norm", "acc_norm, weight_by_size: false"))
    evaluate(model, evaluation_of({"tiny_pair": TaskConfig()}, include=folder))
    assert "'tiny_pair': its group weighs tasks alike" in caplog.text
    caplog.clear()
    evaluate(model, evaluation_of({"tiny_pair": TaskConfig()}, include=grouped))
    assert "alike" not in caplog.text


def test_closed_forms_by_hand():
    assert uncertainty.mean([1.0, 0.0, 0.0, 1.0]) == (0.5, pytest.approx(math.sqrt(1 / 3) / 2))
    value, stderr = uncertainty.perplexity([-1.0, -2.0, -3.0])
    assert value == pytest.approx(math.exp(2)) and stderr == pytest.approx(math.exp(2) * 1 / math.sqrt(3))
    # weights 1 and 3: rate 8 / 4 = 2, e = (0, 0), and (2, -2) when the losses are 4 and 4
    assert uncertainty.rate([[-2.0, 1.0], [-6.0, 3.0]]) == (2.0, 0.0)
    assert uncertainty.rate([[-4.0, 1.0], [-4.0, 3.0]]) == (2.0, pytest.approx(math.sqrt(2 / 1 * 8) / 4))
    assert uncertainty.average([(0.5, 0.3), (0.7, 0.4)]) == (pytest.approx(0.6), pytest.approx(0.25))
    assert uncertainty.paired_mean([1.0, 1.0, 0.0], [0.0, 1.0, 0.0]) == (
        pytest.approx(1 / 3),
        pytest.approx(math.sqrt(((2 / 3) ** 2 + 2 * (1 / 3) ** 2) / 2 / 3)),
    )
    assert uncertainty.paired_log_perplexity([-1.0, -2.0], [-2.0, -5.0]) == (-2.0, pytest.approx(1.0))
    assert uncertainty.mean([1.0]) == (1.0, None) and uncertainty.average([(1.0, None)]) == (1.0, None)
