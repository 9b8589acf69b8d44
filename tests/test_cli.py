"""The command line: exit codes, one line for each error, and a whole run step by step."""

import json
import logging
import os
import subprocess
import sys

import pytest

from replaceme import __version__
from replaceme.cli import _LogFormatter, main
from replaceme.core.files import read_json, write_json
from replaceme.steps.index import STEPS


def fails(capsys, *words, lines=1):
    """Run a step that must fail with exit code 1, and return what it printed on stderr."""
    assert main([str(word) for word in words]) == 1
    shown = capsys.readouterr().err.splitlines()
    errors = [line for line in shown if line.startswith("replaceme: error: ")]
    assert len(errors) == lines and not any("Traceback" in line for line in shown), shown
    return "\n".join(errors)


def test_version(capsys):
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert left.value.code == 0 and capsys.readouterr().out == f"replaceme {__version__}\n"


def test_help_lists_every_step(capsys):
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    shown = capsys.readouterr().out
    assert left.value.code == 0 and all(f"\n  {step} " in shown for step in STEPS)


@pytest.mark.parametrize("words", [["prume"], [], ["cut"], ["tokens", "x", "--colour", "red"]], ids=" ".join)
def test_wrong_usage(capsys, words):
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 2 and "usage: replaceme" in capsys.readouterr().err


def test_importing_the_package_loads_no_model_library():
    code = (
        "import sys, replaceme, replaceme.config.schema, replaceme.config.command_line, replaceme.models.checkpoints,"
        " replaceme.models.model_config, replaceme.planning.check_local, replaceme.cuts.choose,"
        " replaceme.calibration.tokens, replaceme.cli\n"
        "from replaceme.steps import check, evaluate, generate, heal, parts, preflight, prune, publish, speed, verify\n"
        "print([name for name in ('torch', 'transformers', 'datasets', 'lm_eval') if name in sys.modules])\n"
        "print(callable(replaceme.prune))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "[]\nTrue\n" and done.stderr == ""


def test_a_process_ends_with_one_line_and_code_1(tmp_path):
    command = [sys.executable, "-m", "replaceme.cli", "check", str(tmp_path / "none.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"replaceme: error: {tmp_path / 'none.yaml'}: no such file; give the path of a config\n"


def test_interrupted(monkeypatch, capsys):
    def interrupt(args):
        raise KeyboardInterrupt

    monkeypatch.setattr("replaceme.steps.check.run", interrupt)
    assert main(["check"]) == 130
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("level", "line"), [(20, "x: text"), (30, "x: warning: text"), (40, "x: error: text")], ids=str
)
def test_lines_of_the_log(monkeypatch, level, line):
    record = logging.LogRecord("x", level, "x.py", 1, "%s", ("text",), None)
    assert _LogFormatter().format(record) == line
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert ("\x1b[" in _LogFormatter().format(record)) == (level > 20)


@pytest.mark.parametrize("error", ["KeyError", "OSError"])
def test_a_traceback_is_shown_without_keys(error):
    key = "sentinel-4711-0815"
    code = (
        "import os, sys, replaceme.steps.check as step, replaceme.cli\n"
        "def fail(args):\n"
        "    try:\n"
        "        raise ValueError('https://somebody:p@ss@host')\n"
        "    except ValueError:\n"
        f"        raise {error}(os.environ['PGPASSWORD'])\n"
        "step.run = fail\n"
        "sys.argv[1:] = ['check']\n"
        "sys.exit(replaceme.cli.main())"
    )
    given = os.environ | {"PGPASSWORD": key}
    done = subprocess.run([sys.executable, "-c", code], env=given, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and done.stderr.startswith("Traceback (most recent call last):\n")
    assert "cli.py" in done.stderr and "ValueError: https://***@host" in done.stderr
    assert f"{error}: " in done.stderr.splitlines()[-1] and key not in done.stderr + done.stdout


@pytest.fixture(scope="module")
def run(tmp_path_factory, make_llama, texts):
    """All steps on a tiny model, as the workflow runs them; the folder of results."""
    folder, model = tmp_path_factory.mktemp("run"), make_llama()
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    sizes = ["--blocks", "2"]

    def step(*words):
        assert main([str(word) for word in words]) == 0, words

    step("model", model, "--out", folder / "model.json")
    record, cut = folder / "model.json", folder / "cut.json"
    step("tokens", record, "--dataset", folder / "text.jsonl", "--samples", 40, "--out", folder / "tokens.safetensors")
    tokens = folder / "tokens.safetensors"
    step("distances", record, tokens, "--out", folder / "distances.safetensors")
    step("candidates", record, tokens, *sizes, "--out", folder / "candidates.json")
    step("cut", record, *sizes, "--candidates", folder / "candidates.json", "--out", cut)
    shards = [folder / f"gram-{shard}.safetensors" for shard in range(3)]
    for shard, path in enumerate(shards):
        step("gram", record, tokens, cut, "--shard", shard, "--shards", 3, "--batch-size", 4, "--out", path)
    step("sum", *shards, "--out", folder / "sum.safetensors")
    step("fit", record, cut, "--statistics", folder / "sum.safetensors", "--out", folder / "ls")
    step("merge", record, cut, folder / "ls" / "transform.safetensors", "--out", folder / "ls" / "model")
    return folder


def test_all_steps_make_a_model_that_loads(run):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(run / "ls" / "model")
    assert len(model.model.layers) == 4
    fit, cut = (json.loads((run / name).read_text()) for name in ("ls/fit.json", "cut.json"))
    best = min(cut["candidates"], key=lambda one: one["cosine_after_fit"])
    assert cut["groups"] == [[best["start"], best["end"]]]
    assert 0 < fit["residual"] < fit["residual_identity"] and fit["tokens"] > 200
    record = json.loads((run / "ls" / "model" / "replaceme.json").read_text())
    assert record["fit"]["residual"] == fit["residual"] and record["cut"]["groups"] == cut["groups"]
    assert record["origin"]["tokens_sha256"] == fit["tokens_sha256"]


def test_the_papers_metric_by_steps(run, tmp_path):
    words = ["--blocks", "2", "--metric", "angular", "--position", "last", "--out", tmp_path / "cut.json"]
    assert main(["cut", *map(str, [run / "model.json", "--distances", run / "distances.safetensors", *words])]) == 0
    assert json.loads((tmp_path / "cut.json").read_text())["metric"] == "angular"


def test_evidence_that_is_missing(run, capsys, tmp_path):
    cut = ["cut", run / "model.json", "--blocks", 2, "--out", tmp_path / "x"]
    assert "needs --candidates" in fails(capsys, *cut)
    assert "needs --distances" in fails(capsys, *cut, "--metric", "cosine")
    assert "needs --statistics" in fails(capsys, "fit", run / "model.json", run / "cut.json", "--out", tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_shards_that_do_not_belong_together(run, capsys, tmp_path):
    shards = [run / f"gram-{shard}.safetensors" for shard in range(3)]
    out = ["--out", tmp_path / "x"]
    assert "shards [0, 1] given, 0 .. 2 needed" in fails(capsys, "sum", *shards[:2], *out)
    assert "shards [0, 1, 1] given" in fails(capsys, "sum", shards[0], shards[1], shards[1], *out)
    other = ["gram", run / "model.json", run / "tokens.safetensors", run / "cut.json", "--batch-size", 4]
    assert main([str(w) for w in [*other, "--shards", 4, "--shard", 2, "--out", tmp_path / "g"]]) == 0
    assert "of another model, calibration, cut or number of shards" in fails(
        capsys, "sum", *shards[:2], tmp_path / "g", *out
    )


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--shards", 0), "options: shards: Input should be greater than or equal to 1 (found 0)"),
        (("--shard=-2", "--shards", 2), "options: --shard -2: must be at least 0, and less than --shards 2"),
        (("--shard", 2, "--shards", 2), "options: --shard 2: must be at least 0, and less than --shards 2"),
        (("--shard", 1), "options: --shard 1: must be at least 0, and less than --shards 1"),
        (("--batch-size", 0), "options: batch_size: Input should be greater than or equal to 1 (found 0)"),
    ],
)
def test_a_shard_that_is_none_of_them_is_refused_before_the_pass(run, capsys, tmp_path, monkeypatch, words, line):
    monkeypatch.setattr("replaceme.steps.forward.load_model", lambda *_: pytest.fail("loaded"))
    given = ["gram", run / "model.json", run / "tokens.safetensors", run / "cut.json", *words]
    assert line in fails(capsys, *given, "--out", tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_files_of_another_model_are_refused(run, capsys, tmp_path, make_llama):
    other = make_llama(seed=1)
    candidates = ["--candidates", run / "candidates.json"]
    line = fails(capsys, "cut", other, "--blocks", 2, *candidates, "--out", tmp_path / "x")
    assert "candidates.json: made from another model" in line
    transform = run / "ls" / "transform.safetensors"
    assert "another model" in fails(capsys, "merge", other, run / "cut.json", transform, "--out", tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_a_transform_of_another_cut_is_refused(run, capsys, tmp_path):
    assert (
        main([str(w) for w in ["cut", run / "model.json", "--blocks", 1, "--start", 5, "--out", tmp_path / "c"]]) == 0
    )
    transform = run / "ls" / "transform.safetensors"
    words = ["merge", run / "model.json", tmp_path / "c", transform, "--out", tmp_path / "x"]
    assert "fitted for another cut" in fails(capsys, *words)


def test_fewer_tokens_than_channels_are_a_warning_with_numbers(run, tmp_path, caplog):
    words = ["tokens", run / "model.json", "--dataset", run / "text.jsonl", "--samples", 1, "--tokens", 5]
    assert main([str(w) for w in [*words, "--out", tmp_path / "t.safetensors"]]) == 0
    assert "unmasked tokens for a hidden size of 16" in caplog.text


def test_check_lists_every_mistake(capsys, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("device: gpu\nmodles: {}\n")
    shown = fails(capsys, "check", path, lines=7)
    assert "modles: unknown key" in shown and "device: Input should be 'auto'" in shown


def test_threads_must_be_positive(run, capsys, tmp_path):
    words = ["distances", run / "model.json", run / "tokens.safetensors", "--threads", 0, "--out", tmp_path / "x"]
    assert "--threads 0: must be at least 1" in fails(capsys, *words)


def test_one_shard_is_not_taken_for_the_sum(run, capsys, tmp_path):
    words = [run / "model.json", run / "cut.json", "--statistics", run / "gram-0.safetensors", "--out", tmp_path / "x"]
    assert "one of 3 shards; add them with `replaceme sum`" in fails(capsys, "fit", *words)
    words = [run / "model.json", run / "gram-0.safetensors", "--placement", "down_proj", "--recycle", 0.5]
    assert "one of 3 shards; add them with `replaceme sum`" in fails(capsys, "recycle", *words, "--out", tmp_path / "x")


def test_a_ridge_chosen_over_the_shards(run, capsys, tmp_path):
    shards = [str(run / f"gram-{shard}.safetensors") for shard in range(3)]
    words = ["fit", *map(str, (run / "model.json", run / "cut.json", "--statistics", run / "sum.safetensors"))]
    words += ["--ridge", "auto", "--towards", "identity", "--out", str(tmp_path / "auto")]
    assert "ridge auto needs --shards" in fails(capsys, *words)
    assert "shards [0, 1] given, 0 .. 2 needed" in fails(capsys, *words, "--shards", *shards[:2])
    assert main([*words, "--shards", *shards]) == 0
    report = json.loads((tmp_path / "auto" / "fit.json").read_text())
    assert report["ridge"] > 0 and len(report["curve"][0]["by_shard"]) == 3


def test_a_cosine_fit_over_stored_rows(run, capsys, tmp_path):
    files = [str(run / name) for name in ("model.json", "cut.json")]
    rows = ["rows", files[0], str(run / "tokens.safetensors"), files[1], "--batch-size", "4", "--fit-tokens", "300"]
    assert main([*rows, "--out", str(tmp_path / "rows")]) == 0
    words = ["fit", *files, "--statistics", str(run / "sum.safetensors"), "--objective", "cosine", "--iterations", "3"]
    words += ["--out", str(tmp_path / "cosine")]
    assert "a cosine fit by auto needs --rows" in fails(capsys, *words)
    assert main([*words, "--rows", str(tmp_path / "rows")]) == 0
    report = json.loads((tmp_path / "cosine" / "fit.json").read_text())
    assert report["solver"] == "irls" and 2 <= len(report["history"]) <= 4
    assert 0 < report["cosine_distance"] <= report["cosine_distance_least_squares"] * 1.01
    index = tmp_path / "rows" / "0" / "index.json"
    held = read_json(index)
    write_json(index, {**held, "origin": {**held["origin"], "batch_size": 5}})
    assert "of another model, calibration or cut" in fails(capsys, *words, "--rows", str(tmp_path / "rows"))


def test_gradient_and_exact_fits_over_stored_rows(run, capsys, tmp_path):
    files = [str(run / name) for name in ("model.json", "cut.json")]
    rows = ["rows", files[0], str(run / "tokens.safetensors"), files[1], "--batch-size", "4"]
    assert main([*rows, "--out", str(tmp_path / "rows")]) == 0
    assert main([*rows, "--state", "--out", str(tmp_path / "exact")]) == 0
    words = ["fit", *files, "--statistics", str(run / "sum.safetensors"), "--out", str(tmp_path / "fit")]
    exact = [*words, "--objective", "cosine_exact"]
    assert "an l2 fit by adam needs --rows" in fails(capsys, *words, "--solver", "adam")
    assert "solver adam takes no iterations" in fails(capsys, *words, "--solver", "adam", "--iterations", "3")
    assert "rows without the residual stream" in fails(capsys, *exact, "--rows", str(tmp_path / "rows"))
    (tmp_path / "fit").mkdir(exist_ok=True)
    (tmp_path / "fit" / ".fit-state-0.safetensors").write_bytes(b"stale")
    distances = []
    for more in (["--solver", "lbfgs"], ["--solver", "adam", "--epochs", "2", "--mask-ratio", "0.5"], []):
        assert main([*exact, *more, "--rows", str(tmp_path / "exact")]) == 0
        report = json.loads((tmp_path / "fit" / "fit.json").read_text())
        distances.append(report["cosine_distance"])
        assert sorted(path.name for path in (tmp_path / "fit").iterdir()) == ["fit.json", "transform.safetensors"]
    assert distances[0] < distances[1] and distances[0] < distances[2] * 1.001


def test_an_output_of_another_step_is_told(run, capsys, tmp_path):
    words = [run / "model.json", run / "candidates.json", run / "ls/transform.safetensors", "--out", tmp_path / "x"]
    assert "candidates.json: no 'groups' in it" in fails(capsys, "merge", *words)


def test_provenance_names_calibration_and_seed(run):
    record = json.loads((run / "ls/model/replaceme.json").read_text())
    for part in (record["origin"], record["cut"]["measured_on"]):
        assert part["calibration"]["seed"] == 0 and part["dtype"] == "float32"


def test_prune_in_one_go_gives_the_same_weights_as_the_steps(run, tmp_path, capsys):
    model = json.loads((run / "model.json").read_text())["folder"]
    words = [
        "prune",
        model,
        "--dataset",
        run / "text.jsonl",
        "--samples",
        40,
        "--tokens",
        128,
        "--blocks",
        2,
        "--batch-size",
        4,
    ]
    capsys.readouterr()
    assert main([str(w) for w in [*words, "--device", "cpu", "--json", "--out", tmp_path / "out"]]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["summary"]["blocks"] == [6, 4] and record["cut"]["blocks"] == 2
    from safetensors.torch import load_file

    one, two = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", run / "ls" / "model"))
    assert one.keys() == two.keys()
    assert all((one[name] - two[name]).abs().max() <= 1e-5 * two[name].abs().max() for name in one)
