"""Linear layers of their own: plain transformers runs the folder without this package, which runs no code but its own.

That they give the logits of the model with hooks is also shown, with this package's loader, in surgery/test_fold.py.
"""

import ast
import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from given import cut_of, evaluation_of
from safetensors import safe_open
from transformers import AutoModelForCausalLM

import replaceme
from replaceme.config.cuts import CutConfig
from replaceme.config.evaluations import SpeedConfig, TaskConfig
from replaceme.config.fits import FitConfig
from replaceme.evaluation.evaluate import evaluate
from replaceme.evaluation.speed import speed
from replaceme.models.custom_code import CODE
from replaceme.models.loading import load_base_model, load_causal_model, load_tokenizer
from replaceme.models.model_config import family_of
from replaceme.surgery.fold import merge
from replaceme.surgery.shortened_model import shortened
from replaceme.transforms.closed_form import fit_identity
from replaceme.transforms.transform import Transform

prune = partial(replaceme.prune, verify=False)
SIZES = {
    "vocab_size": 66, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 6, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 128, "initializer_range": 0.3, "pad_token_id": 0,
    "bos_token_id": 2, "eos_token_id": 3,
}  # fmt: skip
STARTUP = Path(__file__).with_name("startup")
ONE, THREE = [(2, 4)], [(1, 2), (3, 4), (5, 6)]
PLAIN = """# warm
import json, sys
sys.modules["replaceme"] = None  # an installed one is not found either
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

def complete(report):
    return not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))

ids = torch.tensor(json.loads(sys.argv[1]))
options = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
found = {}
for folder in sys.argv[2:]:
    given = {"trust_remote_code": True, "output_loading_info": True}
    model, report = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **given)
    assert complete(report), report
    cached, plain = (model.generate(ids, use_cache=use, **options) for use in (True, False))
    model.save_pretrained(folder + "-again")
    again, report = AutoModelForCausalLM.from_pretrained(folder + "-again", dtype=torch.float32, **given)
    assert complete(report), report
    stored = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    base = AutoModel.from_pretrained(folder, dtype=torch.float32, trust_remote_code=True)
    made = AutoModelForCausalLM.from_config(model.config, trust_remote_code=True)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    with torch.no_grad():
        logits = model(ids).logits
        found[folder] = {
            "logits": logits.tolist(),
            "again": torch.equal(again(ids).logits, logits),
            "head of base": torch.equal(model.lm_head(base(ids).last_hidden_state), logits),
            "cache": torch.equal(cached, plain),
            "shape": list(cached.shape),
            "stored": str(stored.dtype),
            "tokens": AutoTokenizer.from_pretrained(folder, trust_remote_code=True)("w1 w2")["input_ids"],
            "layers": sorted(name for name in made.state_dict() if "replacement" in name),
            "tied": tied,
            "blocks": len(model.model.layers),
        }
    try:
        AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
        found[folder]["refused"] = "no"
    except ValueError as error:
        found[folder]["refused"] = str(error)
print(json.dumps(found))
"""


def layer(seed):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(16, 16, generator=generator, dtype=torch.float64) / 3
    return Transform(matrix, {"solver": "by hand"}, placement="block")


CASES = {
    "one": ("llama", ONE, [layer(1)]),
    "sharded": ("sharded", THREE, [layer(1), layer(2), fit_identity(hidden_size=16)]),
    "norm": ("gemma", THREE, [layer(1), layer(2), layer(3)]),
    "bfloat16": ("small", [(1, 3), (4, 5)], [layer(1), layer(2)]),
}


@pytest.fixture(scope="module")
def small(make_llama):
    return make_llama("bfloat16")


@pytest.fixture(scope="module")
def ids():
    return torch.randint(6, 66, (3, 17), generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def folders(request, tmp_path_factory):
    """A checkpoint for each case."""
    root = tmp_path_factory.mktemp("block")
    for name, (source, groups, transforms) in CASES.items():
        cut = cut_of(groups, 6)
        merge(request.getfixturevalue(source), cut, transforms, root / name, {"note": "test"})
    return {name: root / name for name in CASES}


@pytest.fixture(scope="module")
def plainly(folders, ids, tmp_path_factory):
    """What transformers finds in each of them, in a process that has no replaceme."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    environment = os.environ | {"PYTHONPATH": str(STARTUP), "OMP_NUM_THREADS": "1"}
    environment |= {"HF_MODULES_CACHE": str(elsewhere / "modules")}
    copies = {name: shutil.copytree(folder, elsewhere / name) for name, folder in folders.items()}
    arguments = [sys.executable, "-c", PLAIN, json.dumps(ids.tolist()), *map(str, copies.values())]
    done = subprocess.run(arguments, cwd=elsewhere, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    return {name: found[str(copy)] for name, copy in copies.items()} | {"stderr": done.stderr}


def stored(transform, dtype):
    """The transform as a checkpoint of this type holds it."""
    if transform.is_identity:
        return transform
    return Transform(transform.matrix.to(dtype).double(), transform.report, "block")


@pytest.mark.parametrize("case", CASES)
def test_plain_transformers_gives_the_logits_of_the_model_with_hooks(case, folders, plainly, ids, request):
    source, groups, transforms = CASES[case]
    model = load_causal_model(request.getfixturevalue(source), "float32", "cpu")
    given = [stored(one, torch.bfloat16 if case == "bfloat16" else torch.float32) for one in transforms]
    with shortened(model.base_model, family_of(model.config.to_dict(), case), groups, given):
        expected = model(ids).logits
    found = plainly[case]
    difference = float((torch.tensor(found["logits"]) - expected).abs().max() / expected.abs().max())
    print(f"{case}: max |logit difference| / max |logit| = {difference:.2e}")
    assert difference <= 1e-5
    ours = load_causal_model(folders[case], "float32", "cpu")(ids).logits
    assert torch.equal(ours, torch.tensor(found["logits"])), "this package's own loader gives the same bits"


@pytest.mark.parametrize("case", CASES)
def test_plain_transformers_does_all_else_with_it(case, plainly):
    found = plainly[case]
    assert found["cache"] and found["shape"] == [3, 37], "generation with and without the cache"
    assert found["again"], "saved by transformers and loaded again"
    assert found["head of base"], "AutoModel"
    assert found["tied"] == (case == "norm")
    assert found["stored"] == ("torch.bfloat16" if case == "bfloat16" else "torch.float32")
    assert found["tokens"] == [7, 8]
    _, groups, transforms = CASES[case]
    assert found["blocks"] == 6 - sum(end - start for start, end in groups)
    assert len(found["layers"]) == sum(len(one.tensors()) for one in transforms if not one.is_identity)
    assert "custom code" in found["refused"], "without the layers it would be another model"
    assert "replaceme_" not in plainly["stderr"] and "newly initialized" not in plainly["stderr"]


def test_what_is_written(folders, sharded):
    out = folders["sharded"]
    config = json.loads((out / "config.json").read_text())
    assert config["model_type"] == "replaceme_llama" and config["architectures"] == ["ReplaceMeForCausalLM"]
    assert config["replacements"] == {"model.layers.0": {"bias": False}, "model.layers.1": {"bias": False}}
    assert config["num_hidden_layers"] == 3 and not config.get("mlp_bias")
    assert (out / CODE.name).read_bytes() == CODE.read_bytes()
    record = json.loads((out / "replaceme.json").read_text())
    assert record["files"].keys() == {path.name for path in out.iterdir()} - {"replaceme.json"}
    index = json.loads((out / "model.safetensors.index.json").read_text())
    name = "model.layers.1.replacement.weight"
    with safe_open(out / index["weight_map"][name], framework="pt") as file:
        assert torch.equal(file.get_tensor(name), layer(2).matrix.T.float())
    source = json.loads((sharded / "model.safetensors.index.json").read_text())["weight_map"]
    blocks = [name for name in index["weight_map"] if name not in source]
    assert sorted(blocks) == ["model.layers.0.replacement.weight", name]


def test_the_code_imports_nothing_but_torch_and_transformers():
    lines = [line for line in CODE.read_text().splitlines() if line.startswith(("import ", "from "))]
    assert {line.split()[1].split(".")[0] for line in lines} == {"functools", "typing", "torch", "transformers"}


def test_dropped_blocks_need_no_layer_and_no_code(llama, tmp_path):
    merge(llama, cut_of(ONE, 6), [fit_identity(hidden_size=16)], tmp_path / "out", {})
    assert not (tmp_path / "out" / CODE.name).exists()
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.model_type == "llama"


def test_code_that_is_not_ours_is_never_run(folders, tmp_path, refuses):
    out = shutil.copytree(folders["one"], tmp_path / "out")
    (out / CODE.name).write_text(CODE.read_text() + "raise SystemExit\n")
    for load in (load_causal_model, load_base_model):
        with refuses(CODE.name, "runs no other"):
            load(out, "float32", "cpu")
    (out / CODE.name).unlink()
    with refuses(CODE.name, "missing"):
        load_causal_model(out, "float32", "cpu")
    shutil.copyfile(CODE, out / CODE.name)
    config = json.loads((out / "config.json").read_text())
    for changes, message in (
        ({"auto_map": {"AutoModel": "other.Model"}}, "auto_map"),
        ({"model_type": "replaceme_t5"}, "model_type 't5' is not supported"),
    ):
        (out / "config.json").write_text(json.dumps(config | changes))
        with refuses(message):
            load_causal_model(out, "float32", "cpu")


def test_a_model_with_layers_of_its_own_is_not_shortened_again(folders, texts, tmp_path, refuses):
    with refuses("already made smaller", "give the original model"):
        prune(folders["one"], texts=texts, blocks=1, out=tmp_path / "out")


def test_a_model_that_transformers_takes_for_another_is_refused(ids, tmp_path, refuses):
    """A `mistral` with `layer_types` runs as `ministral`, whose blocks differ in their attention."""
    from transformers import MistralConfig, MistralForCausalLM

    MistralForCausalLM(MistralConfig(**SIZES)).save_pretrained(tmp_path / "source")
    path = tmp_path / "source" / "config.json"
    kinds = ["sliding_attention", "full_attention"] * 3
    path.write_text(json.dumps({**json.loads(path.read_text()), "layer_types": kinds, "sliding_window": 8}))
    with refuses("'ministral'", "placement block"):
        merge(tmp_path / "source", cut_of(ONE, 6), [layer(1)], tmp_path / "out", {})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("estimation", ["parallel", "sequential"])
def test_pruning_fits_the_residual_stream(llama, texts, tokenizer, tmp_path, brute_rows, estimation):
    """Least squares of hidden_states[end-1] on hidden_states[start-1]: the Ghosted Layers' closed form."""
    from replaceme.calibration.tokens import tokens_from_texts

    fit = FitConfig(placement="block", estimation=estimation)
    cut = CutConfig(blocks=2, start=3)
    record = prune(llama, texts=texts, cut=cut, fit=fit, out=tmp_path / "out", device="cpu")
    hidden, _, _ = brute_rows(llama, tokens_from_texts(texts, tokenizer, None, 128))
    best = torch.linalg.lstsq(hidden[2], hidden[4]).solution
    layer = load_causal_model(tmp_path / "out", "float32", "cpu").model.layers[2].replacement
    assert (layer.weight.T.double() - best).norm() < 1e-4 * best.norm()
    assert layer.bias is None
    residual = float((hidden[4] - hidden[2] @ best).square().sum() / hidden[4].square().sum())
    assert record["fit"]["residual"] == pytest.approx(residual, rel=1e-4)
    assert record["placement"] == "block" and "trust_remote_code=True" in (tmp_path / "out/README.md").read_text()


STRUCTURES = {
    "scalar": {},
    "hadamard": {"ridge_relative": 0.01, "towards": "identity"},
    "orthogonal": {},
    "low_rank": {"rank": 2, "towards": "identity"},
}


@pytest.mark.parametrize("transform", STRUCTURES)
def test_a_norm_after_the_mlp_is_no_obstacle(gemma, texts, tmp_path, transform):
    fit = FitConfig(placement="block", transform=transform, **STRUCTURES[transform])
    record = prune(gemma, texts=texts, cut=CutConfig(blocks=2, start=3), fit=fit, out=tmp_path / "out")
    assert 0 < record["fit"]["residual"] < 1 and "gain" not in record["fit"]
    assert load_causal_model(tmp_path / "out", "float32", "cpu").model.layers[2].replacement.bias is None


TASK = """task: tiny_choice
dataset_path: json
dataset_kwargs: {data_files: {test: choice.jsonl}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{context}}"
doc_to_choice: choices
doc_to_target: gold
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""


@pytest.mark.parametrize("case", ["sharded", "norm"])
def test_it_is_evaluated_and_timed_like_any_other(case, folders, tmp_path):
    (tmp_path / "task.yaml").write_text(TASK)
    items = [{"context": f"w{k} w{k + 1}", "choices": [f"w{k + 2}", "w3 w4"], "gold": k % 2} for k in range(8)]
    (tmp_path / "choice.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    found = evaluate(folders[case], evaluation_of({"tiny_choice": TaskConfig()}, include=tmp_path))
    assert found["tasks"]["tiny_choice"]["n"] == 8
    sizes = {"prompt_tokens": 8, "new_tokens": 2, "repeats": 1, "warmup": 0}
    timed = speed(folders[case], SpeedConfig(**sizes))
    plain = load_causal_model(folders[case], "float32", "cpu")
    assert timed["parameters"] == plain.num_parameters()
    assert timed["decode_tokens_per_s"]["median"] > 0


def test_the_tokenizer_is_that_of_the_original(folders, llama):
    ours, theirs = (load_tokenizer(folder) for folder in (folders["one"], llama))
    assert type(ours) is type(theirs) and ours("w1 w2")["input_ids"] == theirs("w1 w2")["input_ids"]


def test_its_code_imports_what_transformers_4_has_too():
    """`PreTrainedConfig` for example is a name of 5 alone."""
    [names] = [
        [alias.name for alias in node.names]
        for node in ast.walk(ast.parse(CODE.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module.startswith("transformers")
    ]
    assert set(names) <= {"CONFIG_MAPPING", "MODEL_FOR_CAUSAL_LM_MAPPING", "MODEL_MAPPING", "PretrainedConfig"}
