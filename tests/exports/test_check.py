"""What other programs compute from a folder: a right one passes, a wrong one fails, and one that dies says why."""

import json
import math
import os
import sys
from pathlib import Path

import pytest
import torch
from given import cut_of

from replaceme.cli import main
from replaceme.config.exports import PROGRAMS as NAMES
from replaceme.exports import by_llama_cpp
from replaceme.exports import check as module
from replaceme.exports.check import check_exports, faults
from replaceme.exports.registry import PROGRAMS, Program
from replaceme.models.checkpoints import resolve
from replaceme.surgery.fold import merge
from replaceme.transforms.transform import Transform

MICRO = Path(__file__).parents[2] / "resources/micro"
FAKE = """
import json, os, sys
def measure(folder, sequences, new_tokens, weights, work):
    answer = json.load(open({answer!r}))
    assert new_tokens == 8 and weights > 0 and sys.modules.get("replaceme") is None
    assert [len(one) for one in sequences] == [32, 22]
    {then}
    return answer | {{"version": "1.2"}}
"""


def test_the_names_in_the_config_are_those_of_the_registry():
    assert sorted(NAMES) == sorted(PROGRAMS)


@pytest.fixture(scope="module")
def right(llama):
    """The answer of a program without a fault, by the plain model."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32).eval()
    answer = {"likelihoods": [], "generated": []}
    for ids, mask in module._rows(model.config.to_dict()):
        ids = ids[mask]
        with torch.inference_mode():
            rows = model(ids[None]).logits[0].log_softmax(-1)
            longer = ids
            for _ in range(8):
                longer = torch.cat([longer, model(longer[None]).logits[0, -1].argmax()[None]])
        answer["likelihoods"].append(rows[:-1].gather(1, ids[1:, None])[:, 0].tolist())
        answer["generated"].append(longer[len(ids) :].tolist())
    return answer


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Install a program that gives an answer, or does something before it."""

    def install(answer, then="pass"):
        (tmp_path / "answer.json").write_text(json.dumps(answer))
        text = FAKE.format(answer=str(tmp_path / "answer.json"), then=then)
        (tmp_path / "fake.py").write_text(text)
        monkeypatch.setitem(PROGRAMS, "fake", Program(str(tmp_path / "fake"), "build it"))

    return install


def changed(answer, likelihood=None, token=None):
    copy = json.loads(json.dumps(answer))
    if likelihood is not None:
        copy["likelihoods"][1][3] = likelihood(copy["likelihoods"][1][3])
    if token is not None:
        copy["generated"][0][5] = token
    return copy


def test_a_right_program_passes_and_wrong_ones_fail(llama, right, fake):
    fake(right)
    found = check_exports(llama, ["fake"])["fake"]
    assert found["outcome"] == "passed" and found["tokens"] == 52 and found["version"] == "1.2"
    assert found["largest_difference"] < 1e-5 and found["allowed"] == 0.01
    least = next(token for token in range(66) if token not in right["generated"][0])
    wrong = {
        "by up to 0.03 nats, 0.01 are allowed": changed(right, likelihood=lambda one: one - 0.03),
        "by up to nan nats": changed(right, likelihood=lambda one: math.nan),
        "a greedy token is": changed(right, token=least),
        "0 new tokens, asked for 31 and 8": right | {"generated": [[], []]},
    }
    for said, answer in wrong.items():
        fake(answer)
        found = check_exports(llama, ["fake"])["fake"]
        assert found["outcome"] == "failed" and said in found["reason"], said


def test_a_program_that_dies_says_why(llama, right, fake, caplog):
    fake(right, then="raise ValueError('the reason\\nand its remedy')")
    assert check_exports(llama, ["fake"])["fake"]["reason"] == "ValueError: the reason and its remedy"
    assert "Traceback" in caplog.text
    fake(right, then="print('last words', file=sys.stderr, flush=True); os._exit(7)")
    assert "code 7 (last words)" in check_exports(llama, ["fake"])["fake"]["reason"]


def test_the_command(llama, right, fake, tmp_path, capsys, monkeypatch):
    fake(changed(right, likelihood=lambda one: one + 1))
    out = tmp_path / "out/report.json"
    assert main(["verify", str(llama), "--with", "fake", "--out", str(out)]) == 0, "what failed is in the file"
    assert json.loads(out.read_text())["programs"]["fake"]["outcome"] == "failed"
    assert main(["verify", str(llama), "--with", "fake"]) == 1
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    for variable in ("LLAMA_CPP", "VLLM_PYTHON"):
        monkeypatch.setenv(variable, str(tmp_path))
    assert main(["verify", str(llama), "--with", "ctranslate2,llama.cpp,vllm,mine"]) == 1
    assert main(["verify", str(llama), "--with", "ctranslate2,llama.cpp,vllm"]) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert len(errors) == 5
    for line, said in zip(
        errors, ("by up to 1 nats", "'mine'", "`pip install", "llama-server", "VLLM_PYTHON"), strict=True
    ):
        assert said in line


def test_what_is_not_installed_is_not_checked(llama, monkeypatch):
    monkeypatch.setattr(Program, "missing", lambda self: "it is not there")
    found = check_exports(llama)
    assert {one["outcome"] for one in found.values()} == {"not checked"} and found.keys() == PROGRAMS.keys()
    assert faults(found, asked=False) == [] and len(faults(found, asked=True)) == len(PROGRAMS)


def test_a_folder_with_code_of_its_own_is_not_for_others(llama, right, fake, tmp_path):
    fake(right)
    layer = Transform(torch.eye(16, dtype=torch.float64), {"solver": "by hand"}, placement="block")
    merge(llama, cut_of([(2, 4)], 6), [layer], tmp_path / "model", {})
    found = check_exports(tmp_path / "model", ["fake"])
    assert found["fake"]["outcome"] == "not checked" and "only transformers" in faults(found, asked=True)[0]


def test_a_tokenizer_that_llama_cpp_lacks_is_named():
    with pytest.raises(ValueError, match=r"of kind WordLevel .*BPE, Unigram, WordPiece"):
        by_llama_cpp._check_tokenizer(MICRO)


SERVER = """#!{python}
import json, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
if "--version" in sys.argv:
    sys.exit("version: 12 (abc)")
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
assert open(given["--model"]).read() == "f32" and given["--cache-type-k"] == "f32"
class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        found = {{"tokens": [6]}}
        if self.path == "/completion":
            length, [[drawn, _]] = len(asked["prompt"]), asked["logit_bias"]
            every = [{{"id": (length + k) % 10, "logprob": -float(k)}} for k in range(10)]
            [own] = [one for one in every if one["id"] == drawn]
            found = {{"completion_probabilities": [{{**own, "top_logprobs": every[: asked["n_probs"]]}}]}}
            if drawn % 2:
                del found["completion_probabilities"]
        self.send_response(200); self.end_headers(); self.wfile.write(json.dumps(found).encode())
    def log_message(self, *words): pass
HTTPServer(("127.0.0.1", int(given["--port"])), Answer).serve_forever()
"""


def test_the_questions_to_the_server_of_llama_cpp(llama, tmp_path, monkeypatch):
    """It reports no token, here odd ones, whose text is a part of a character."""
    monkeypatch.setenv("LLAMA_CPP", str(tmp_path))
    monkeypatch.setattr(by_llama_cpp, "_check_tokenizer", lambda folder: None)
    converter, server = tmp_path / by_llama_cpp.CONVERTER, tmp_path / "build/bin" / by_llama_cpp.SERVER
    assert "and no" in by_llama_cpp.missing()
    monkeypatch.setenv("PYTHONSAFEPATH", "1")  # as where the worker runs
    (tmp_path / "conversion.py").touch()
    converter.write_text("import conversion, sys; open(sys.argv[3], 'w').write(sys.argv[5])")
    server.parent.mkdir(parents=True)
    server.write_text(SERVER.format(python=sys.executable))
    server.chmod(0o755)
    assert by_llama_cpp.missing() is None
    work = tmp_path / "work"
    work.mkdir()
    found = by_llama_cpp.measure(str(llama), [[3, 1, 4, 5]], 2, work)
    assert found == {"likelihoods": [[0.0, -2.0, -2.0]], "generated": [[4, 5]], "version": "12 (abc)"}
    converter.write_text("raise SystemExit('Model X is not supported')")
    with pytest.raises(RuntimeError, match="code 1: Model X is not supported"):
        by_llama_cpp.measure(str(llama), [[3, 1]], 2, work)


@pytest.fixture(scope="module")
def short_micro(tmp_path_factory):
    """The embedded model without blocks 2 to 19, a map in their place: what is left is soon converted."""
    out = tmp_path_factory.mktemp("exports") / "model"
    matrix = torch.eye(192, dtype=torch.float64) + 0.01
    merge(MICRO, cut_of([(2, 20)], resolve(str(MICRO)).num_blocks), [Transform(matrix, {"solver": "by hand"})], out, {})
    return out


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_real_program(short_micro, name):
    """Runs where the program is installed."""
    missing = PROGRAMS[name].missing()
    if missing is not None:
        pytest.skip(f"{name}: {missing}")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    found = check_exports(short_micro, [name])[name]
    if name == "llama.cpp":
        assert "WordLevel" in found["reason"]
    else:
        assert found["outcome"] == "passed" and found["largest_difference"] < 1e-3, found
