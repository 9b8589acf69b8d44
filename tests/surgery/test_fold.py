"""The folded checkpoint is the original with T applied by hand, and nothing else in it changes."""

import json
import warnings

import pytest
import torch
from given import cut_of
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from replaceme.activations.recycled_neurons import Recycled
from replaceme.models.checkpoints import check_merged, open_checkpoint
from replaceme.models.loading import load_causal_model
from replaceme.models.model_config import family_of
from replaceme.placements.mlp import fold
from replaceme.surgery.fold import merge
from replaceme.surgery.old_spellings import with_old_spellings
from replaceme.surgery.shortened_model import shortened
from replaceme.transforms.closed_form import fit_identity
from replaceme.transforms.collapse import fit_collapse
from replaceme.transforms.transform import Transform

CUT = cut_of([[2, 4]], 6)
CUTS = [(1, 2), (2, 4), (4, 6), (1, 6)]


def transform(size=16, seed=3):
    return torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def given(matrix, **more):
    """A transform of a matrix, or the identity."""
    if matrix is None:
        return fit_identity(hidden_size=16)
    return Transform(matrix, {"solver": "by hand"}, **more)


def prune(source, out, start=2, end=4, matrix=None):
    cut = cut_of([[start, end]], 6)
    merge(source, cut, [given(matrix)], out, {"note": "test"}, "a card")
    return out


def tensors_of(folder):
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return found


def same_bytes(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def origin_of(name, start=2, end=4):
    """The name in the source of a tensor of the pruned checkpoint: the oracle of renumbering."""
    parts = name.split(".")
    if parts[:2] == ["model", "layers"] and int(parts[2]) >= start:
        parts[2] = str(int(parts[2]) + end - start)
    return ".".join(parts)


def by_hand(model, start, end, matrix):
    """The original model with T on the carrier's MLP output and the removed blocks skipped."""

    def apply(module, inputs, output):
        return (output.double() @ matrix).to(output.dtype)

    def skip(module, args, kwargs, output):
        return args[0] if args else kwargs["hidden_states"]

    layers = model.model.layers
    if matrix is not None:
        layers[start - 1].mlp.register_forward_hook(apply)
    for block in range(start, end):
        layers[block].register_forward_hook(skip, with_kwargs=True)
    return model


@pytest.fixture
def ids():
    return torch.randint(6, 66, (3, 17), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("matrix", [transform(), None], ids=["fitted", "identity"])
@pytest.mark.parametrize(("start", "end"), CUTS, ids=lambda value: str(value))
def test_folded_model_is_the_original_with_T_applied(llama, tmp_path, ids, start, end, matrix):
    folded = load_causal_model(prune(llama, tmp_path / "out", start, end, matrix), "float32", "cpu")
    expected = by_hand(load_causal_model(llama, "float32", "cpu"), start, end, matrix)(ids).logits
    original = load_causal_model(llama, "float32", "cpu")(ids).logits
    found = folded(ids).logits
    difference = float((found - expected).abs().max() / expected.abs().max())
    print(f"cut [{start}, {end}): max |logit difference| / max |logit| = {difference:.2e}")
    assert difference <= 1e-5
    assert float((found - original).abs().max() / expected.abs().max()) > 1e-2, "the cut changes the model"


def test_folded_gemma_is_the_original_with_blocks_skipped(gemma, tmp_path, ids):
    folded = load_causal_model(prune(gemma, tmp_path / "out"), "float32", "cpu")
    expected = by_hand(load_causal_model(gemma, "float32", "cpu"), 2, 4, None)(ids).logits
    assert float((folded(ids).logits - expected).abs().max() / expected.abs().max()) <= 1e-5
    assert [layer.self_attn.is_sliding for layer in folded.model.layers] == [True, True, True, False]


@pytest.mark.parametrize("source", ["llama", "sharded", "gemma"])
def test_identity_keeps_every_tensor(source, request, tmp_path):
    folder = request.getfixturevalue(source)
    before, after = tensors_of(folder), tensors_of(prune(folder, tmp_path / "out"))
    kept = {name for name in before if not name.startswith(("model.layers.2.", "model.layers.3."))}
    assert {origin_of(name) for name in after} == kept
    assert all(same_bytes(tensor, before[origin_of(name)]) for name, tensor in after.items())


@pytest.mark.parametrize("matrix", [None, torch.eye(16, dtype=torch.float64)], ids=["identity", "T = I"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_empty_cut_with_T_the_identity_changes_no_byte(make_llama, tmp_path, matrix, dtype):
    source = make_llama(dtype)
    before, after = tensors_of(source), tensors_of(prune(source, tmp_path / "out", 3, 3, matrix))
    assert before.keys() == after.keys()
    assert all(same_bytes(after[name], before[name]) for name in before)
    old, new = (json.loads((folder / "config.json").read_text()) for folder in (source, tmp_path / "out"))
    assert with_old_spellings(old) == new


def test_only_the_carriers_down_projection_is_folded(sharded, tmp_path):
    before, after = tensors_of(sharded), tensors_of(prune(sharded, tmp_path / "out", matrix=transform()))
    changed = {name for name, tensor in after.items() if not same_bytes(tensor, before[origin_of(name)])}
    assert changed == {"model.layers.1.mlp.down_proj.weight"}


def test_bfloat16_is_folded_in_float64_and_rounded_once(make_llama, tmp_path):
    source, matrix = make_llama("bfloat16"), transform()
    name = "model.layers.1.mlp.down_proj.weight"
    before, after = tensors_of(source)[name], tensors_of(prune(source, tmp_path / "out", matrix=matrix))[name]
    exact = torch.tensor(
        [[sum(matrix[k, i] * before[k, j].double() for k in range(16)) for j in range(24)] for i in range(16)]
    ).double()
    half_a_step = exact.abs().log2().floor().exp2() * 2**-8  # 8 bits of significand
    assert after.dtype == torch.bfloat16
    assert ((after.double() - exact).abs() <= half_a_step * (1 + 1e-6)).all()


def test_fold_multiplies_by_the_transpose_on_the_left():
    weight, matrix = torch.randn(5, 9, dtype=torch.float64), torch.randn(5, 5, dtype=torch.float64)
    a = torch.randn(7, 9, dtype=torch.float64)
    assert torch.allclose(a @ fold(weight, matrix).T, (a @ weight.T) @ matrix, rtol=1e-13, atol=1e-13)


def test_shards_and_index(sharded, tmp_path):
    assert len(list(sharded.glob("*.safetensors"))) >= 3
    out = prune(sharded, tmp_path / "out", matrix=transform())
    index = json.loads((out / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in out.glob("*.safetensors"))
    assert sorted(set(index["weight_map"].values())) == files
    assert files == [f"model-{k + 1:05d}-of-{len(files):05d}.safetensors" for k in range(len(files))]
    for name, file in index["weight_map"].items():
        with safe_open(out / file, framework="pt") as shard:
            assert name in shard.keys()  # noqa: SIM118
    tensors = tensors_of(out)
    assert tensors.keys() == index["weight_map"].keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())


def test_one_file_and_shards_give_the_same_tensors(llama, sharded, tmp_path):
    one, many = (tensors_of(prune(s, tmp_path / s.name, matrix=transform())) for s in (llama, sharded))
    assert one.keys() == many.keys() and all(same_bytes(one[name], many[name]) for name in one)
    assert not (tmp_path / llama.name / "model.safetensors.index.json").exists()


@pytest.mark.parametrize("source", ["llama", "sharded", "gemma"])
def test_plain_transformers_loads_it_silently(source, request, tmp_path, capfd):
    out = prune(request.getfixturevalue(source), tmp_path / "out")
    verbosity = logging.get_verbosity()
    logging.set_verbosity_warning()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model, report = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    finally:
        logging.set_verbosity(verbosity)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    assert "MISSING" not in capfd.readouterr().err
    assert model.config.num_hidden_layers == len(model.model.layers) == 4
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert tied == (source == "gemma") == ("lm_head.weight" not in tensors_of(out))


@pytest.mark.parametrize("source", ["llama", "gemma"])
def test_generation_with_the_cache_equals_generation_without(source, request, tmp_path, ids):
    out = prune(request.getfixturevalue(source), tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(out)
    options = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    cached, plain = (model.generate(ids, use_cache=use, **options) for use in (True, False))
    assert cached.shape == (3, 37) and torch.equal(cached, plain)


def test_config_keeps_all_but_the_blocks(gemma, tmp_path):
    old, new = (json.loads((f / "config.json").read_text()) for f in (gemma, prune(gemma, tmp_path / "out")))
    assert new["num_hidden_layers"] == 4
    assert new["layer_types"] == [*old["layer_types"][:2], *old["layer_types"][4:]]
    same = with_old_spellings(old) | {key: new[key] for key in ("num_hidden_layers", "layer_types")}
    assert new == same


def test_lists_derived_from_block_numbers_are_spelt_out(gemma, tmp_path):
    """Without `layer_types` transformers makes every sixth block a full one, counting from the new block 0."""
    import shutil

    source = shutil.copytree(gemma, tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    del config["layer_types"]
    (source / "config.json").write_text(json.dumps({**config, "sliding_window_pattern": 3}))
    derived = list(load_causal_model(source, "float32", "cpu").config.layer_types)
    assert len(set(derived)) == 2
    out = prune(source, tmp_path / "out", 1, 3)
    assert json.loads((out / "config.json").read_text())["layer_types"] == [derived[0], *derived[3:]]


def test_companions_are_copied_and_pickles_are_not(llama, tmp_path):
    import shutil

    source = shutil.copytree(llama, tmp_path / "source")
    (source / "pytorch_model.bin").write_bytes(b"pickle")
    (source / "modeling_custom.py").write_text("raise SystemExit")
    (source / "LICENSE").write_text("terms")
    out = prune(source, tmp_path / "out")
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json", "LICENSE"):
        assert (out / name).read_bytes() == (source / name).read_bytes(), name
    assert not (out / "pytorch_model.bin").exists() and not (out / "modeling_custom.py").exists()
    assert AutoTokenizer.from_pretrained(out)("w1 w2")["input_ids"] == [7, 8]
    assert AutoModelForCausalLM.from_pretrained(out).generation_config.temperature == 0.7


def test_provenance_lists_the_hash_of_every_file(llama, tmp_path):
    import hashlib

    out = prune(llama, tmp_path / "out", matrix=transform())
    record = json.loads((out / "replaceme.json").read_text())
    names = {path.name for path in out.iterdir()} - {"replaceme.json"}
    assert record["note"] == "test" and record["files"].keys() == names and "README.md" in names
    for name, digest in record["files"].items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest


def test_two_runs_give_the_same_bytes(sharded, tmp_path):
    one, two = (prune(sharded, tmp_path / name, matrix=transform()) for name in ("one", "two"))
    files = sorted(path.name for path in one.iterdir())
    assert files == sorted(path.name for path in two.iterdir())
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in files)


def test_merging_again_replaces_the_whole_folder(llama, sharded, tmp_path):
    prune(sharded, tmp_path / "out")
    prune(llama, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").glob("*.safetensors*")] == ["model.safetensors"]


def test_a_folder_left_by_a_killed_job_is_replaced(llama, tmp_path):
    """Snakemake removes the outputs it knows of (config.json, replaceme.json, README.md) and leaves the rest."""
    out = prune(llama, tmp_path / "out")
    for name in ("config.json", "replaceme.json", "README.md"):
        (out / name).unlink()
    assert check_merged(prune(llama, out))["note"] == "test"


@pytest.mark.parametrize("what", ["file", "folder", "checkpoint"])
def test_somebody_elses_folder_is_not_replaced(llama, tmp_path, refuses, what):
    out = tmp_path / "out"
    if what == "checkpoint":
        import shutil

        shutil.copytree(llama, out)
    else:
        out.mkdir()
        (out / "thesis.txt").write_text("years of work") if what == "file" else (out / "thesis").mkdir()
    before = sorted(out.iterdir())
    with refuses(str(out), "is not empty"):
        prune(llama, out)
    assert sorted(out.iterdir()) == before


def test_own_files_beside_an_earlier_result_are_not_lost(llama, tmp_path, refuses):
    out = tmp_path / "out"
    prune(llama, out)
    prune(llama, out)  # a result alone is replaced
    (out / "thesis.txt").write_text("years of work")
    with refuses("holds thesis.txt"):
        prune(llama, out)
    assert (out / "thesis.txt").is_file()


def test_the_source_is_not_replaced(llama, tmp_path, refuses):
    import shutil

    source = shutil.copytree(llama, tmp_path / "models" / "source")
    for out in (source, source.parent, source / ".." / "source"):
        with refuses("holds the source model"):
            prune(source, out)
    assert open_checkpoint(source).num_blocks == 6


BAD = {
    "start 0": (cut_of([[0, 2]], 6), None, "does not lie in blocks 1 .. 5"),
    "past the end": (cut_of([[5, 7]], 6), None, "does not lie in blocks 1 .. 5"),
    "reversed": (cut_of([[4, 2]], 6), None, "does not lie in blocks 1 .. 5"),
    "adjacent groups": (cut_of([[1, 2], [2, 3]], 6), None, "with a block between its groups"),
    "too many groups": (cut_of([[1, 2], [3, 4]], 6), None, "1 transforms for 2 groups"),
    "another depth": (cut_of([[2, 4]], 9), None, "9 blocks"),
    "another width": (CUT, torch.eye(8), "transform is 8 x 8, the model's hidden size is 16"),
    "NaN": (CUT, torch.full((16, 16), float("nan")), "NaN or infinity"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_cut_or_transform_of_another_model_is_refused(llama, tmp_path, refuses, case):
    cut, matrix, message = BAD[case]
    with refuses(message):
        merge(llama, cut, [given(matrix)], tmp_path / "out", {})
    assert list(tmp_path.iterdir()) == []


def test_a_transform_without_a_gain_cannot_pass_a_norm(gemma, tmp_path, refuses):
    with refuses("without regard to this model's norms"):
        prune(gemma, tmp_path / "out", matrix=transform())
    assert list(tmp_path.iterdir()) == []


def wide(seed=3):
    return torch.randn(24, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def changed(activation="silu"):
    generator = torch.Generator().manual_seed(8)
    up = torch.randn(3, 16, generator=generator)
    return Recycled(torch.tensor([1, 7, 20]), torch.randn(1, 16, generator=generator), up, activation)


def factor(alpha):
    return given(alpha * torch.eye(16, dtype=torch.float64), placement="upstream")


ONE, THREE = [(2, 4)], [(1, 2), (3, 4), (5, 6)]
BLOCK = given(transform(seed=4), placement="block")
WAYS = {
    "one group": ("llama", ONE, [given(transform())]),
    "three groups": ("llama", THREE, [given(transform(seed=k)) for k in range(3)]),
    "three groups, one dropped": ("llama", THREE, [given(transform()), given(None), given(transform(seed=4))]),
    "a group of two and one of one": ("llama", [(1, 3), (4, 5)], [given(transform(seed=k)) for k in range(2)]),
    "sharded": ("sharded", THREE, [given(transform(seed=k)) for k in range(3)]),
    "biases before": ("biased", ONE, [given(transform())]),
    "down projection": ("llama", ONE, [given(wide(), placement="down_proj")]),
    "down projection, biases": ("biased", ONE, [given(wide(), placement="down_proj")]),
    "recycled": ("llama", ONE, [given(wide(), placement="down_proj", recycled=changed())]),
    "recycled, biases before": ("biased", ONE, [given(wide(), placement="down_proj", recycled=changed())]),
    "norm, recycled": (
        "gemma",
        ONE,
        [given(wide(), placement="down_proj", gain=1.7, recycled=changed("gelu_pytorch_tanh"))],
    ),
    "norm": ("gemma", ONE, [given(transform(), gain=1.7)]),
    "norm, three groups": ("gemma", THREE, [given(transform(seed=k), gain=0.5 + k) for k in range(3)]),
    "norm, down projection": ("gemma", ONE, [given(wide(), placement="down_proj", gain=1.7)]),
    "block": ("llama", ONE, [given(transform(), placement="block")]),
    "block, shards": ("sharded", THREE, [BLOCK, given(transform(seed=5), placement="block"), BLOCK]),
    "block, dropped, block": ("llama", THREE, [BLOCK, given(None), BLOCK]),
    "block, mlp": ("llama", [(1, 3), (4, 5)], [BLOCK, given(transform())]),
    "collapse": ("llama", ONE, [fit_collapse(16)]),
    "collapse, three groups, shards": ("sharded", THREE, [fit_collapse(16)] * 3),
    "collapse, biases": ("biased", [(1, 4)], [fit_collapse(16)]),
    "collapse, norms": ("gemma", [(2, 5)], [fit_collapse(16)]),
    "collapse, upstream": ("llama", [(1, 3), (4, 5)], [fit_collapse(16), factor(1.4)]),
    "upstream": ("llama", ONE, [factor(1.7)]),
    "upstream, three groups, shards": ("sharded", THREE, [factor(1.7), factor(0.6), factor(1.3)]),
    "upstream, dropped, upstream": ("llama", THREE, [factor(1.7), given(None), factor(0.6)]),
    "upstream, mlp before it": ("llama", [(1, 3), (4, 5)], [given(transform()), factor(1.4)]),
    "upstream, biases": ("biased", ONE, [factor(1.7)]),
    "upstream, norms, one head and embedding": ("gemma", THREE, [factor(1.7), factor(0.6), factor(1.3)]),
    "block, norm": ("gemma", THREE, [BLOCK, given(None), given(transform(seed=5), placement="block")]),
}


@pytest.fixture(scope="session")
def biased(make_llama):
    def edit(model):
        for name, parameter in model.named_parameters():
            if "mlp" in name and name.endswith("bias"):
                torch.nn.init.uniform_(parameter, -0.5, 0.5)

    return make_llama(edit=edit, mlp_bias=True)


@pytest.mark.parametrize("case", WAYS)
def test_what_is_folded_is_what_the_model_with_hooks_computes(case, request, tmp_path, ids):
    source, groups, transforms = WAYS[case]
    folder = request.getfixturevalue(source)
    merge(folder, cut_of(groups, 6), transforms, tmp_path / "out", {})
    model = load_causal_model(folder, "float32", "cpu")
    original = model(ids).logits
    with shortened(model.base_model, family_of(model.config.to_dict(), case), groups, transforms):
        expected = model(ids).logits
    folded = load_causal_model(tmp_path / "out", "float32", "cpu")
    assert len(folded.model.layers) == 6 - sum(end - start for start, end in groups)
    difference = float((folded(ids).logits - expected).abs().max() / expected.abs().max())
    print(f"{case}: max |logit difference| / max |logit| = {difference:.2e}")
    assert difference <= 1e-5
    assert float((expected - original).abs().max() / original.abs().max()) > 1e-2
    assert torch.equal(model(ids).logits, original), "the hooks are gone"


def test_a_file_is_no_folder_for_a_model(llama, tmp_path, refuses):
    """Refused before any work, and kept."""
    (tmp_path / "notes.txt").write_text("years of work")
    with refuses("notes.txt: is a file; give a folder"):
        prune(llama, tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "years of work"
