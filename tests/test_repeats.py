"""The same inputs give the same bytes in other processes, with other hash seeds."""

import json
import shutil
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def check_repeats():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import check_repeats
    finally:
        sys.path.remove(str(BENCHMARKS))
    return check_repeats


def test_the_chain_gives_the_same_bytes_in_another_process(check_repeats, make_llama, tmp_path, monkeypatch):
    """One repeat in this process, which other tests have used, one in a fresh process with a hash seed of its own.

    Of a tiny model with the tokenizer of the embedded world.
    """
    model = make_llama(num_hidden_layers=9, vocab_size=960)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(check_repeats.MODEL / file, model)
    there = check_repeats.all_repeats

    def repeats(arguments):
        here = check_repeats.one_repeat(arguments)
        arguments.repeats = 1
        return [here, *there(arguments)]

    out = tmp_path / "repeats.json"
    options = ["--repeats", "2", "--processes", "2", "--samples", "8", "--tokens", "32", "--out", str(out)]
    options += ["--model", str(model)]
    monkeypatch.setattr(check_repeats, "all_repeats", repeats)
    monkeypatch.setattr(sys, "argv", ["check_repeats.py", *options])
    assert check_repeats.main() == 0
    report = json.loads(out.read_text())
    assert report["repeats"] == 2 and report["differ"] == []
    assert report["files"] > 40
    assert len(report["table"]) == 9


def test_a_file_that_differs_or_is_missing_in_one_repeat_is_named(check_repeats):
    same, other = {"a": "1", "b": "2"}, {"a": "1", "b": "3"}
    repeats = [{"files": files} for files in (same, same, other)]
    assert check_repeats.compared(repeats[:2]) == {"repeats": 2, "files": 2, "differ": []}
    assert check_repeats.compared(repeats)["differ"] == ["b"]
    assert check_repeats.compared([{"files": {"a": "1"}}, repeats[0]])["differ"] == ["b"]


@pytest.mark.parametrize(
    ("column", "within", "beyond"),
    [
        ("removed", "[[2, 8]]", "[[3, 9]]"),
        ("parameters", 100, 101),
        ("loss", 1.00009, 1.00011),
        ("loss", 1.0, float("nan")),
        ("residual", 0.01, None),
    ],
)
def test_columns_of_two_devices_are_held_to_their_tolerances(check_repeats, column, within, beyond):
    reference = {"removed": "[[2, 8]]", "parameters": 100, "loss": 1.0, "residual": 0.01}

    def verdict(value):
        found = check_repeats.apart_from([reference], [reference | {column: value}])
        return {one["column"]: one["beyond"] for one in found}

    assert not any(verdict(within).values())
    assert verdict(beyond)[column] and sum(verdict(beyond).values()) == 1
