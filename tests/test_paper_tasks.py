"""The tasks of Table 1 that lm-eval lacks: prompts, choices and scores on rows of the same columns as the Hub's."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from replaceme.cli import main

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "resources/tasks/paper"
RACE = {"article": "He ran.", "question": "Who ran?", "options": ["He", "She", "It", "We"], "example_id": "x.txt"}
RACE_PROMPT = "Article:\nHe ran.\nQuestion:\nWho ran?\nA. He\nB. She\nC. It\nD. We\nAnswer:"
WSC = {"span1_text": "the old man", "span2_text": "he", "text": "Bob saw the old man before he left."}
CHID = {"candidates": ["一心一意", "三心二意", "四面八方"], "idx": 0}
# for each task its rows, and for each row the prompt, the continuations and the right one
ROWS = {
    "c3": [
        {"id": 1, "context": ["男：好。", "好。"], "question": "做什么？", "choice": ["吃", "问好"], "answer": "问好"},
        {"id": 2, "context": ["天黑了。"], "question": "现在？", "choice": ["早上", "中午", "晚上"], "answer": "晚上"},
    ],
    "cmnli": [{"sentence1": "他走了。", "sentence2": "他在。", "label": label, "idx": label} for label in (0, 1, 2)],
    "chid": [
        {
            **CHID,
            "content": ["他#idiom000001#地学习。", "别的#idiom000002#。"],
            "answers": {"text": ["一心一意", "四面八方"], "candidate_id": [0, 2]},
        },
        {
            **CHID,
            "content": ["#idiom7#，来自#idiom8#的人。"],
            "answers": {"text": ["三心二意", "四面八方"], "candidate_id": [1, 2]},
        },
    ],
    "superglue_wsc": [
        {**WSC, "span1_index": 2, "span2_index": 6, "idx": 0, "label": 1},
        {**WSC, "span1_text": "Bob", "span1_index": 0, "span2_index": 6, "idx": 1, "label": 0},
    ],
    "race_middle": [{**RACE, "answer": answer} for answer in "AD"],
    "race_high": [{**RACE, "answer": answer} for answer in "BCA"],
}  # fmt: skip
WSC_PROMPT = "Passage: {}\nDoes the pronoun # he # refer to * {} *?\nA. Yes\nB. No\nAnswer:"
CMNLI_PROMPT = "语句一：“他走了。”\n语句二：“他在。”\n请问这两句话是什么关系？"
END = "\n这个句子是通顺的。"
EXPECTED = {
    "c3": [
        ("文章：男：好。 好。\n问题：做什么？\n答案：", ["吃", "问好"], 1),
        ("文章：天黑了。\n问题：现在？\n答案：", ["早上", "中午", "晚上"], 2),
    ],
    "cmnli": [(CMNLI_PROMPT, ["\n无关", "\n蕴含", "\n矛盾"], label) for label in (0, 1, 2)],
    "chid": [
        ("以下句子是否通顺？\n他", [f"{idiom}地学习。{END}" for idiom in CHID["candidates"]], 0),
        ("以下句子是否通顺？\n", [f"{idiom}，来自四面八方的人。{END}" for idiom in CHID["candidates"]], 1),
    ],
    "superglue_wsc": [
        (WSC_PROMPT.format("Bob saw * the old man * before # he # left.", "the old man"), [" A", " B"], 0),
        (WSC_PROMPT.format("* Bob * saw the old man before # he # left.", "Bob"), [" A", " B"], 1),
    ],
    "race_middle": [(RACE_PROMPT, [" A", " B", " C", " D"], "ABCD".index(answer)) for answer in "AD"],
    "race_high": [(RACE_PROMPT, [" A", " B", " C", " D"], "ABCD".index(answer)) for answer in "BCA"],
}  # fmt: skip


@pytest.fixture(scope="module")
def byte_model(tmp_path_factory):
    """A random Llama whose tokens are bytes, so that it reads any script."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("bytes")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({"</s>": 0} | {letter: k + 1 for k, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>").save_pretrained(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=257, max_position_embeddings=512, initializer_range=0.5, eos_token_id=0, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def include(tmp_path_factory):
    """The task files with nothing but the source of their data changed."""
    folder = tmp_path_factory.mktemp("tasks")
    for path in FOLDER.glob("*.yaml"):
        task = yaml.safe_load(path.read_text())
        assert task["dataset_path"] in ("clue/clue", "aps/super_glue", "ehovy/race")
        split = task.get("test_split") or task["validation_split"]
        task |= {"dataset_path": "json", "dataset_kwargs": {"data_files": {split: f"{path.stem}.jsonl"}}}
        del task["dataset_name"]
        (folder / path.name).write_text(yaml.safe_dump(task, allow_unicode=True))
        rows = ROWS[path.stem]
        (folder / f"{path.stem}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_every_task_is_shown_here_and_holds_no_code():
    assert {path.stem for path in FOLDER.iterdir()} == set(ROWS) == set(EXPECTED)
    for path in FOLDER.iterdir():
        assert path.suffix == ".yaml" and "!function" not in path.read_text()
        assert yaml.safe_load(path.read_text())["task"] == path.stem


@pytest.mark.parametrize("name", EXPECTED)
def test_prompts_and_choices(name, include, tmp_path):
    from replaceme.evaluation import lm_eval as harness
    from replaceme.evaluation import task_index

    manager = task_index.find_tasks([name], include)
    [task] = harness.load_tasks(manager, {name: 0}, include, tmp_path, 0)[name]
    found = [
        (task.doc_to_text(doc), [task.config.target_delimiter + one for one in task.doc_to_choice(doc)],
         task.doc_to_target(doc))
        for doc in task.eval_docs
    ]  # fmt: skip
    assert found == EXPECTED[name]


def test_the_step_scores_them(include, byte_model, tmp_path):
    """Every item against the log-likelihoods of the expected texts, taken from the model by hand."""
    from replaceme.models.loading import load_causal_model, load_tokenizer

    out = tmp_path / "evaluation.json"
    tasks = [word for name in EXPECTED for word in ("--task", f'{name}={{"metric": "acc"}}')]
    command = ["evaluate", str(byte_model), *tasks, "--include", str(include), "--device", "cpu", "--out", str(out)]
    assert main(command) == 0
    record = json.loads(out.read_text())
    model, tokenizer = load_causal_model(byte_model, "float32", "cpu"), load_tokenizer(byte_model)

    def loglikelihood(prompt, choice):
        ids = torch.tensor(tokenizer(prompt + choice)["input_ids"])
        start = len(tokenizer(prompt)["input_ids"])
        scores = model(ids[None]).logits[0].log_softmax(-1)
        return float(scores[start - 1 : -1].gather(1, ids[start:, None]).sum())

    for name, rows in EXPECTED.items():
        right = []
        for prompt, choices, gold in rows:
            scores = [loglikelihood(prompt, choice) for choice in choices]
            right.append(float(scores.index(max(scores)) == gold))
        assert record["tasks"][name]["items"] == right and record["tasks"][name]["n"] == len(rows), name
    everything = [one for name in EXPECTED for one in record["tasks"][name]["items"]]
    assert 0 < sum(everything) < len(everything), "a model that is always right or wrong would test nothing"
    assert record["average"]["value"] == pytest.approx(
        sum(record["tasks"][name]["value"] for name in EXPECTED) / len(EXPECTED)
    )


# every name that config uses for the paper, as lm-eval 0.4.13 has it; the number of its tasks
OF_LM_EVAL = {
    "winogrande": 1, "boolq": 1, "race": 1, "openbookqa": 1, "piqa": 1, "sciq": 1, "lambada_openai": 1, "hellaswag": 1,
    "gsm8k": 1, "mmlu": 57, "cmmlu": 67, "leaderboard_bbh": 24, "leaderboard_math_hard": 7, "leaderboard_gpqa": 3,
    "leaderboard_musr": 3, "leaderboard_mmlu_pro": 1,
}  # fmt: skip


# where they lie in it: the whole index takes ten seconds and more
FOLDERS = (
    "winogrande", "super_glue", "race", "openbookqa", "piqa", "sciq", "lambada", "hellaswag", "gsm8k", "mmlu", "cmmlu",
    "leaderboard",
)  # fmt: skip


def test_lm_eval_knows_the_other_tasks_of_the_paper():
    import lm_eval

    from replaceme.evaluation import task_index

    manager = task_index.find_tasks(
        list(OF_LM_EVAL), [Path(lm_eval.__file__).parent / "tasks" / one for one in FOLDERS]
    )
    assert {name: len(task_index.leaves(manager, name)) for name in OF_LM_EVAL} == OF_LM_EVAL
    assert not set(ROWS) & set(manager.task_index)
    for name in ("mmlu", "cmmlu", *(name for name in OF_LM_EVAL if name.startswith("leaderboard_"))):
        assert not task_index.weighs_tasks_alike(manager, name), "or our number is not lm-eval's"
