"""What a fit is of: its text, its statistics, and the state that an interrupted one left."""

import json

import pytest

from replaceme.cli import main
from replaceme.core.cut_record import Cut
from replaceme.core.files import load_metadata
from replaceme.models.checkpoints import resolve

SHORT = ["--objective", "kl", "--kl-steps", "4", "--device", "cpu"]


@pytest.fixture
def made(llama, tmp_path, texts):
    """A cut of two groups, the tokens of two texts, and the statistics of the first; returns their paths."""
    Cut([(1, 2), (4, 5)], 2, 6, "given", model_sha256=resolve(str(llama)).sha256).save(tmp_path / "cut.json")
    words = " ".join(texts).split()
    for name, ordered in (("one", words), ("other", words[::-1])):
        lines = [json.dumps({"text": " ".join(ordered[k:] + ordered[:k])}) for k in range(0, 24, 3)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
        given = ["--dataset", str(tmp_path / f"{name}.jsonl"), "--tokens", "32", "--samples", "8"]
        assert main(["tokens", str(llama), *given, "--out", str(tmp_path / name)]) == 0
    gram = ["gram", str(llama), str(tmp_path / "one"), str(tmp_path / "cut.json"), "--shard", "0", "--shards", "1"]
    assert main([*gram, "--out", str(tmp_path / "sums")]) == 0
    return tmp_path


def fit(llama, made, out, *more):
    return main(["fit", str(llama), str(made / "cut.json"), *map(str, more), "--out", str(made / out)])


def test_a_sequential_fit_says_which_text_it_is_of(llama, made):
    """So the divergence refuses that text, and a killed training goes on with no other one."""
    assert fit(llama, made, "fit", "--tokens", made / "one", "--estimation", "sequential", "--device", "cpu") == 0
    found = load_metadata(made / "fit/transform.safetensors")["metadata"]
    assert found["tokens_sha256"] == load_metadata(made / "one")["sha256"] and found["dtype"] == "float32"


def test_statistics_and_tokens_are_of_one_text(llama, made, capsys):
    given = ("--statistics", made / "sums", "--tokens", made / "other", *SHORT)
    assert fit(llama, made, "fit", *given) == 1
    assert f"{made / 'other'}: not the text of {made / 'sums'}, or it ran otherwise" in capsys.readouterr().err


def test_states_of_other_options_go_with_the_fit(llama, made):
    (made / "fit").mkdir()
    (made / "fit/.fit-state-kl.safetensors").write_bytes(b"of a killed training")
    assert fit(llama, made, "fit", "--statistics", made / "sums") == 0
    assert sorted(path.name for path in (made / "fit").iterdir()) == ["fit.json", "transform.safetensors"]
