"""Mistakes on the command line name what was probably meant; names of options may have underscores."""

import contextlib

import pytest

from replaceme.cli import main
from replaceme.steps.parser import Parser, dashed, meant


def refused(capsys, *words):
    """Return the last line on stderr of a command that is called wrongly."""
    with pytest.raises(SystemExit) as left:
        main(list(words))
    assert left.value.code == 2
    *before, line = capsys.readouterr().err.splitlines()
    assert before[0].startswith("usage: replaceme") and len(before) <= 3
    return line


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["prune", "m", "--blcks", "2"], "--blocks"),
        (["prune", "m", "--num_samples=4"], "--samples"),
        (["evaluate", "m", "--output_path", "x"], "--out"),
        (["evaluate", "m", "--include_path", "x"], "--include"),
        (["prune", "m", "--metric", "cosin", "--out", "x"], "cosine"),
        (["prume"], "prune"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_the_nearest_name_is_told(capsys, words, name):
    line = refused(capsys, *words)
    assert f"(did you mean {name}?)" in line and line.startswith("replaceme")


def test_a_word_near_to_nothing(capsys):
    line = refused(capsys, "tokens", "m", "--zzz")
    assert line == "replaceme tokens: error: no option --zzz; all of them: `replaceme tokens --help-all`"
    assert meant("zzz", ["--out"]) == ""
    assert "one of auto, cpu, cuda" in refused(capsys, "speed", "m", "--out", "x", "--device", "tpu")


def test_the_beginning_of_a_name_is_none(capsys):
    """`--fit recommended` is no number of tokens."""
    line = refused(capsys, "prune", "m", "--out", "x", "--fit", "5")
    assert line.startswith("replaceme prune: error: no option --fit ")


def test_words_that_only_look_like_options():
    parser = Parser("p", "d")
    parser.add_argument("--caption")
    parser.add_argument("rest", nargs="*")
    assert parser.parse_args(["--caption", "--a sentence", "--", "--no_option"]).rest == ["--no_option"]


def test_underscores_in_names_alone():
    given = ["prune", "my_model", "--batch_size", "4", "--template={a_b}", "--a_b c", "--x_y=p_q", "--", "--x_y"]
    expected = ["prune", "my_model", "--batch-size", "4", "--template={a_b}", "--a_b c", "--x-y=p_q", "--", "--x_y"]
    assert dashed(given) == expected


def test_the_record_keeps_the_words_that_were_given(monkeypatch):
    kept = []

    def recorded(step, out, arguments):
        kept.append(arguments)
        return contextlib.nullcontext()

    monkeypatch.setattr("replaceme.provenance.job_record.recorded", recorded)
    monkeypatch.setattr("replaceme.steps.rows.run", lambda args: kept.append(args.fit_tokens))
    words = ["rows", "m", "t", "c", "--fit_tokens", "30", "--out", "x"]
    assert main(words) == 0 and kept == [words, 30]


def test_tasks_as_lm_eval_takes_them(monkeypatch):
    from replaceme.steps import evaluate

    seen = {}

    def looked_up(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate, "weights_folder", looked_up)
    monkeypatch.setattr(evaluate, "from_options", lambda args, schema: seen.update(args.tasks))
    words = ["evaluate", "m", "--task", 'arc={"fewshot": 0}', "--tasks", "piqa,boolq", "--num_fewshot", "5"]
    assert main([*words, "--out", "x"]) == 130
    assert {name: task["fewshot"] for name, task in seen.items()} == {"arc": 0, "piqa": 5, "boolq": 5}
