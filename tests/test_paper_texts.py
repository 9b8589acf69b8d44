"""The entries of config/calibrations.yaml as they stand, the Hub replaced by files of the same columns."""

import json
from collections import Counter
from pathlib import Path

import pytest

from replaceme.calibration.tokens import calibrate
from replaceme.config.schema import load

ROOT = Path(__file__).resolve().parents[1]
PAPER = load(ROOT / "config/calibrations.yaml").calibrations
ORCA = {
    "conversations": [
        {"from": "system", "value": "w1 w2", "weight": None},
        {"from": "human", "value": "w3", "weight": 0.0},
        {"from": "gpt", "value": "w4 w5", "weight": 1.0},
    ]
}


FILES = {
    "slim-orca": ("parquet", [ORCA] * 3, "<unk> w1 w2 </s> user w3 </s> assistant w4 w5 </s>"),
    "fineweb": ("parquet", [{"text": "w1 w2", "id": "x", "url": "y", "language_score": 0.9}] * 3, "w1 w2"),
    "c4": ("jsonl", [{"text": "w1 w2", "timestamp": "2019-04-25T12:57:54Z", "url": "y"}] * 3, "w1 w2"),
    "wikitext": ("parquet", [{"text": ""}, {"text": " w1 w2 \n"}, {"text": ""}] * 2, "w1 w2 </s> w1 w2 </s>"),
    "sec-data": ("parquet", [{"text": "w1 w2"}] * 3, "w1 w2"),
    "aya": (
        "parquet",
        [{"inputs": "w1", "targets": "w2 w3", "language": "Tamil", "language_code": "tam", "user_id": "y"}] * 3,
        "w1 w2 w3",
    ),
    "sciq": (
        "parquet",
        [{"question": "w1", "distractor1": "w8", "correct_answer": "w2", "support": s} for s in ("w3 w4", "")],
        None,
    ),
}  # fmt: skip


def words(tokens):
    """Return the unmasked ids of each sequence, as words of the tiny tokenizer."""
    names = {0: "<pad>", 2: "<s>", 3: "</s>", 4: "user", 5: "assistant"}
    rows = [ids[mask].tolist() for ids, mask in zip(tokens.input_ids, tokens.mask, strict=True)]
    return [" ".join(names.get(token, f"w{token - 6}") for token in row) for row in rows]


@pytest.fixture(autouse=True)
def no_long_sleep(monkeypatch):
    """`datasets` sleeps for 5 s after each shuffled Parquet stream, to let Arrow's threads end."""
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.1)


@pytest.mark.parametrize("name", FILES)
def test_the_texts_of_the_paper(name, tokenizer, tmp_path, monkeypatch):
    """Each entry of config/calibrations.yaml as it stands, the Hub's answer replaced by a file of the same columns."""
    import datasets
    import pyarrow
    from pyarrow import parquet

    kind, rows, expected = FILES[name]
    path, calls, real = tmp_path / f"text.{kind}", [], datasets.load_dataset
    if kind == "parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def load_dataset(*args, **kwargs):
        calls.append((*args, kwargs.get("revision"), kwargs.get("split")))
        reader = "parquet" if kind == "parquet" else "json"
        return real(reader, data_files=str(path), split="train", streaming=True)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    tokens, record = calibrate(PAPER[name], tokenizer)
    assert calls == [(PAPER[name].dataset, PAPER[name].name, "main", "train")]
    if expected is None:
        question = "<unk> w1 <unk> w2".replace("<unk>", "w-5")
        assert sorted(words(tokens)) == sorted([f"w3 w4 {question}", question])
    else:
        assert set(words(tokens)) == {expected.replace("<unk>", "w-5")}
    assert record["template"] == PAPER[name].template and record["dataset"] == PAPER[name].dataset


def test_every_text_of_the_paper_is_there():
    kinds = Counter(
        next(kind for kind in ("mix", "prompts", "images", "dataset") if getattr(one, kind)) for one in PAPER.values()
    )
    assert kinds == {"dataset": 7, "mix": 1, "prompts": 1, "images": 1}
    assert set(FILES) == {name for name, one in PAPER.items() if one.dataset}
    assert all(one.revision for one in PAPER.values() if one.dataset)
