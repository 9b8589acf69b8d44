"""The gate after a merge: right exports pass, and what is wrong with the others is told in one line."""

import importlib
import json
import shutil
import sys
from dataclasses import replace

import pytest
import torch
from given import cut_of
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from replaceme.activations.recycled_neurons import Recycled
from replaceme.cli import main
from replaceme.core.files import read_json, sha256, write_json
from replaceme.models.checkpoints import resolve
from replaceme.surgery.fold import merge
from replaceme.transforms.closed_form import fit_identity
from replaceme.transforms.transform import Transform
from replaceme.verification import reload as module_reload
from replaceme.verification import verify as module
from replaceme.verification.outcome import NotChecked, not_checked, outcome
from replaceme.verification.reload import fixed_tokens, run_alone
from replaceme.verification.verify import require_passed, tolerance, verify

ONE, TWO = [(2, 4)], [(1, 2), (3, 5)]


def given(rows=16, seed=3, **more):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(rows, 16, generator=generator, dtype=torch.float64) / 3
    return Transform(matrix, {"solver": "by hand"}, **more)


def recycled():
    generator = torch.Generator().manual_seed(8)
    up = torch.randn(3, 16, generator=generator)
    return Recycled(torch.tensor([1, 7, 20]), torch.randn(1, 16, generator=generator), up, "silu")


def drop():
    return fit_identity(hidden_size=16)


WAYS = {
    "mlp": ("llama", ONE, [given()]),
    "shards, two groups": ("sharded", TWO, [given(), given(seed=4)]),
    "down projection, recycled": ("llama", ONE, [given(24, placement="down_proj", recycled=recycled())]),
    "block, and dropped": ("gemma", TWO, [given(placement="block"), drop()]),
    "norm": ("gemma", ONE, [given(gain=1.7)]),
    "identity": ("gemma", TWO, [drop(), drop()]),
    "bfloat16": ("small", ONE, [given()]),
    "bfloat16, identity": ("small", ONE, [drop()]),
}


@pytest.fixture
def at_once(monkeypatch):
    """The folder is loaded in this process: what is judged is the same, without the imports of another."""
    for name in (*module_reload.QUIET, "HF_MODULES_CACHE"):
        monkeypatch.setenv(name, "")  # so that it is put back
    monkeypatch.setattr(module, "Fresh", lambda kind: module_reload.Fresh(kind, here=True))


@pytest.fixture(scope="module")
def small(make_llama):
    return make_llama("bfloat16")


def merged(folder, out, groups=ONE, transforms=None):
    """(what `verify` takes) of a checkpoint merged to `out`."""
    cut, transforms = cut_of(groups, 6), transforms or [given()]
    merge(folder, cut, transforms, out, {"note": "test"})
    return resolve(str(folder)), cut, transforms, out


@pytest.mark.parametrize("case", WAYS)
def test_what_is_merged_passes(case, request, tmp_path):
    if "block" not in case:  # which has code of its own
        request.getfixturevalue("at_once")
    source, groups, transforms = WAYS[case]
    out = tmp_path / "model"
    before = merged(request.getfixturevalue(source), out, groups, transforms)
    names = sorted(path.name for path in out.iterdir())
    report = verify(*before)
    require_passed(report)
    checks = report["checks"]
    assert {check["outcome"] for check in checks.values()} == {"passed"} and len(checks) == 7
    difference = checks["logits"]["relative_difference"]
    print(f"{case}: relative difference {difference:.2g}, allowed {checks['logits']['allowed']:.2g}")
    limits = {"bfloat16": 0.02, "identity": 1e-6, "bfloat16, identity": 1e-6}
    assert difference <= limits.get(case, 1e-5) < checks["logits"]["allowed"]
    assert sorted(path.name for path in out.iterdir()) == names, "nothing is left in the folder"
    json.dumps(report, allow_nan=False)


@pytest.fixture(scope="module")
def right(sharded, tmp_path_factory):
    return merged(sharded, tmp_path_factory.mktemp("right") / "model")


@pytest.fixture(scope="module")
def listed(gemma, tmp_path_factory):
    """A model with a per-block list."""
    return merged(gemma, tmp_path_factory.mktemp("listed") / "model", transforms=[given(gain=1.7)])


def spoilt(given, tmp_path, spoil):
    """A copy of an export with something done to it, whose list of hashes is put right again."""
    folder = shutil.copytree(given[3], tmp_path / "spoilt")
    spoil(folder)
    record = read_json(folder / "replaceme.json")
    record["files"] = {path.name: sha256(path) for path in folder.iterdir() if path.name != "replaceme.json"}
    write_json(folder / "replaceme.json", record)
    return *given[:3], folder


def edit_tensor(name, change):
    def spoil(folder):
        path = next(path for path in folder.glob("*.safetensors") if name in load_file(path))
        tensors = load_file(path)
        tensors[name] = change(tensors[name])
        save_file({key: value for key, value in tensors.items() if value is not None}, path, metadata={"format": "pt"})

    return spoil


def edit_json(file, change):
    def spoil(folder):
        path = folder / file
        path.write_text(json.dumps(change(json.loads(path.read_text()))))

    return spoil


def forget_one(index):
    names = sorted(index["weight_map"])
    return {**index, "weight_map": {name: index["weight_map"][name] for name in names[1:]}}


def take_away(name):
    """A tensor that is in no shard any more, nor in the index."""

    def spoil(folder):
        edit_tensor(name, lambda _: None)(folder)
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        del index["weight_map"][name]
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return spoil


FOLDED = "model.layers.1.mlp.down_proj.weight"
WRONG = {
    "the folded tensor altered": ("right", edit_tensor(FOLDED, lambda one: one * 1.01), "logits", "differ from"),
    "NaN": ("right", edit_tensor(FOLDED, lambda one: one * float("nan")), "logits", "by nan of their size"),
    "another block": ("right", edit_tensor("model.layers.2.mlp.up_proj.weight", lambda one: one.flip(0)), "logits", ""),
    "a list too long": (
        "listed",
        edit_json("config.json", lambda config: {**config, "layer_types": ["full_attention"] * 6}),
        "config",
        "layer_types has 6 entries for 4 blocks",
    ),
    "a tensor missing": ("right", take_away(FOLDED), "weights", f"1 missing keys, the first is {FOLDED}"),
    "in no index": ("right", edit_json("model.safetensors.index.json", forget_one), "tensors", "that the index says"),
    "a stray shard": (
        "right",
        lambda folder: shutil.copy(next(folder.glob("*.safetensors")), folder / "old.safetensors"),
        "tensors",
        "old.safetensors: a shard that the index does not name",
    ),
    "no tokenizer": ("right", lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer", ""),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_told(case, request, tmp_path, refuses, at_once):
    source, spoil, check, message = WRONG[case]
    before = spoilt(request.getfixturevalue(source), tmp_path, spoil)
    report = verify(*before)
    assert [name for name, one in report["checks"].items() if one["outcome"] == "failed"] == [check]
    with refuses(f"{before[3]}: not a usable export, {check}: ", message):
        require_passed(report)


def test_a_file_that_is_not_what_was_written(right, tmp_path, refuses):
    folder = shutil.copytree(right[3], tmp_path / "model")
    edit_tensor(FOLDED, lambda one: one * 1.0001)(folder)
    report = verify(*right[:3], folder)
    with refuses("files: ", "does not match its SHA-256"):
        require_passed(report)
    assert report["checks"]["logits"] == not_checked("a check before it failed")


@pytest.mark.parametrize("spoil", ["half", "header", "gone"])
def test_damaged_shards_are_damaged_files(right, tmp_path, spoil):
    """Whatever else cannot be read of them: whoever made them makes them again."""
    folder = shutil.copytree(right[3], tmp_path / "model")
    path = max(folder.glob("*.safetensors"))
    content = path.read_bytes()
    path.unlink()
    if spoil != "gone":
        path.write_bytes(content[: len(content) // 2] if spoil == "half" else content[:20] + b"?" + content[21:])
    report = verify(*right[:3], folder)
    assert report["checks"]["files"]["outcome"] == "failed"
    assert report["checks"]["logits"] == not_checked("a check before it failed")


def test_another_code_is_not_run(llama, tmp_path, refuses):
    before = merged(llama, tmp_path / "model", transforms=[given(placement="block")])
    touched = tmp_path / "touched"
    code = f"open({str(touched)!r}, 'w')\n"
    before = spoilt(before, tmp_path, lambda folder: (folder / "modeling_replaceme.py").write_text(code))
    with refuses("files: ", "modeling_replaceme.py: missing, or not the file of this version"):
        require_passed(verify(*before))
    assert not touched.exists()


def test_a_model_that_memory_cannot_hold_is_not_loaded(right, monkeypatch):
    monkeypatch.setattr(module, "hooked_logits", lambda *_: pytest.fail("it was loaded"))
    report = verify(replace(right[0], parameters=10**15), *right[1:])
    require_passed(report)
    outcomes = {name: check["outcome"] for name, check in report["checks"].items()}
    assert outcomes.pop("tokenizer") == outcomes.pop("files") == outcomes.pop("tensors") == "passed"
    assert outcomes.pop("config") == "passed" and set(outcomes.values()) == {"not checked"}
    assert "GB of memory" in report["checks"]["logits"]["reason"]


@pytest.fixture
def taken(right, at_once, monkeypatch):
    """Devices that the original was run on, of checks on a GPU that has room until a model is loaded to it."""
    run, hooked, question = [], module.hooked_logits, module.question
    monkeypatch.setattr(module, "free_memory", lambda device: 2**60)
    monkeypatch.setattr(module, "question", lambda folder, tokens, device: question(folder, tokens, "cpu"))

    def original(folder, running, tokens, device):
        run.append(device)
        if device == "cuda":
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return hooked(folder, running, tokens, device)

    monkeypatch.setattr(module, "hooked_logits", original)
    return run


def test_a_check_whose_room_another_job_takes_is_done_on_the_cpu(right, taken, caplog):
    require_passed(verify(*right, device="cuda"))
    assert taken == ["cuda", "cpu"]
    assert len([line for line in caplog.messages if line.endswith("checked on the CPU")]) == 1


def test_a_fresh_process_whose_room_another_job_takes_checks_on_the_cpu(right, taken, monkeypatch, caplog):
    plain, calls = module_reload.plain._model, []

    def full_at_first(*given):
        calls.append(given)
        if len(calls) == 1:
            raise RuntimeError("CUDA error: out of memory")
        return plain(*given)

    monkeypatch.setattr(module_reload.plain, "_model", full_at_first)
    require_passed(verify(*right, device="cuda"))
    assert taken == ["cpu"] and "CUDA error: out of memory" in caplog.text


def test_room_that_goes_between_two_looks_is_no_check_left_out(right, taken, monkeypatch, caplog):
    free = iter([2**60, 0])
    monkeypatch.setattr(module, "free_memory", lambda device: next(free) if device == "cuda" else 2**60)
    require_passed(report := verify(*right, device="cuda"))
    assert taken == ["cpu"] and report["checks"]["logits"]["outcome"] == "passed"


def test_a_process_that_dies_is_a_line(refuses):
    with refuses("ended with code 3 (last words)"):
        run_alone([sys.executable, "-c", "import sys; print('first\\nlast words', file=sys.stderr); sys.exit(3)"], 60)
    with refuses("no answer within 1 s"):
        run_alone([sys.executable, "-c", "import time; time.sleep(60)"], 1)


def test_the_process_has_no_replaceme(right, tmp_path):
    """The package is found by its caller alone, whatever PYTHONPATH says."""
    (tmp_path / "question.json").write_text(json.dumps({"where": {}, "inputs": None}))
    from replaceme.verification import reload_worker as plain

    code = plain.__file__
    check = (
        f"# warm\nimport io, runpy, sys; sys.argv[1:] = [{str(tmp_path)!r}, 'llama']; sys.stdin = io.StringIO('\\n');"
        f"runpy.run_path({code!r}, run_name='__main__'); assert sys.modules['replaceme'] is None"
    )
    run_alone([sys.executable, "-P", "-c", check], 600)
    assert (tmp_path / "answer.json").is_file()


def test_a_process_that_waits_ends_unasked(tmp_path):
    with module_reload.Fresh("llama") as fresh:
        process = fresh._process
        process.stdin.close()  # as when this process is killed
        process.stdin = None
        assert process.wait() == 0 and not (fresh.work / "answer.json").exists()
    assert not fresh.work.exists()


def test_the_tokens_are_fixed_and_fit_the_model():
    config = {"model_type": "llama", "vocab_size": 50, "max_position_embeddings": 20}
    one, two = fixed_tokens(config), fixed_tokens(config)
    assert one.input_ids.equal(two.input_ids) and one.input_ids.shape == (2, 12)
    assert one.mask[0].all() and not one.mask[1].all() and one.mask[1, -1], "one of them padded on the left"
    assert fixed_tokens({"model_type": "llama", "vocab_size": 50}).input_ids.shape == (2, 32)


def test_the_tolerance_follows_what_is_stored():
    assert tolerance({"F32"}, True) < 1.02e-4 and tolerance({"BF16", "F32"}, False) == tolerance({"F32"}, False)
    assert tolerance({"BF16", "F32"}, True) == pytest.approx(0.0626)


def test_outcomes():
    def raises(error):
        raise error

    assert outcome(dict, {"a": 1}) == {"outcome": "passed", "a": 1}
    assert outcome(raises, NotChecked("why")) == {"outcome": "not checked", "reason": "why"}
    with pytest.raises(KeyError):
        outcome(raises, KeyError("a defect of ours"))


def step(before, folder, tmp_path):
    """`replaceme verify` on files as the steps before it write them."""
    record, cut, transforms, _ = before
    record.save(tmp_path / "model.json")
    cut.save(tmp_path / "cut.json")
    Transform.save_all(tmp_path / "transform.safetensors", transforms)
    files = [str(tmp_path / name) for name in ("model.json", "cut.json", "transform.safetensors")]
    return main(["verify", *files, str(folder), "--threads", "1", "--out", str(tmp_path / "verify.json")])


def test_the_step(right, tmp_path, capsys):
    assert step(right, right[3], tmp_path) == 0
    report = json.loads((tmp_path / "verify.json").read_text())
    assert [*report["checks"]][-1] == "generation" and report["model"] == str(right[3])
    *_, folder = spoilt(right, tmp_path, edit_tensor(FOLDED, lambda one: one * 2))
    assert step(right, folder, tmp_path) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("replaceme: error: ")]
    assert len(errors) == 1 and "logits differ" in errors[0]
    assert json.loads((tmp_path / "verify.json").read_text())["checks"]["logits"]["outcome"] == "failed"
    assert list(tmp_path.glob(".tmp-*")) == []


def test_where_the_package_is_hidden():
    import replaceme

    with module_reload._hidden():
        for name in ("replaceme", "replaceme.models.model_config", "replaceme.models.modeling_replaceme"):
            with pytest.raises(ImportError):
                importlib.import_module(name)
    assert importlib.import_module("replaceme") is replaceme and replaceme.verification.verify is module


def test_the_report_does_not_go_into_the_folder(right, tmp_path, capsys):
    given = ["verify", "m", "c", "t", str(right[3]), "--out", str(right[3] / "verify.json")]
    assert main(given) == 1 and "lies in the folder that is checked" in capsys.readouterr().err


@pytest.mark.parametrize("model_type", ["mistral", "qwen2", "gemma2"])
def test_other_families(model_type, tmp_path, tokenizer, at_once):
    torch.manual_seed(0)
    sizes = {"vocab_size": 66, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 6, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64, "sliding_window": 8}
    heads["initializer_range"] = 0.3  # what the MLP puts out is not so small that the epsilon of a norm counts
    config = AutoConfig.for_model(model_type, **sizes, **heads, pad_token_id=0, bos_token_id=2, eos_token_id=3)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "source")
    tokenizer.save_pretrained(tmp_path / "source")
    gain = {"gain": 1.7} if model_type == "gemma2" else {}
    require_passed(verify(*merged(tmp_path / "source", tmp_path / "model", transforms=[given(**gain)])))
