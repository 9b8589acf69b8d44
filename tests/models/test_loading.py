"""How weights are held: in 4 bits, and over several GPUs."""

import pytest
import torch
from safetensors.torch import load_file

import replaceme
from replaceme.activations.gather import gather_groups
from replaceme.config.calibrations import CalibrationConfig
from replaceme.config.cuts import CutConfig
from replaceme.config.fits import FitConfig
from replaceme.cuts.distances import measure
from replaceme.models.checkpoints import read_config
from replaceme.models.loading import Held, load_base_model, load_causal_model
from replaceme.models.model_config import family_of

CUT = CutConfig(blocks=2, start=2)


def calibration(texts, tmp_path, **options):
    path = tmp_path / "texts.txt"
    path.write_text("\n\n".join(texts))
    return CalibrationConfig(dataset=str(path), samples=8, tokens=20, **options)


@pytest.fixture
def packs(monkeypatch):
    """bitsandbytes as on a CPU with AVX512-BF16, whatever this one has: it packs weights at a forward pass."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_in_4_bits_the_linear_layers_are_rounded_and_the_rest_is_not(make_llama, device):
    folder = make_llama(hidden_size=64, intermediate_size=128)
    whole, rounded = (load_base_model(folder, "float32", device, held) for held in (Held(), Held(load_in_4bit=True)))
    layers = [model.layers[0].mlp.down_proj for model in (whole, rounded)]
    exact, found = (layer(torch.eye(layer.in_features, device=device)) for layer in layers)
    assert 0.01 < float((found - exact).norm() / exact.norm()) < 0.15, "16 levels"
    assert torch.equal(whole.embed_tokens.weight, rounded.embed_tokens.weight)
    assert rounded.layers[0].mlp.down_proj.weight.dtype == torch.uint8


def by_definition(weight):
    """Return weights as 4 bits make them: levels times the largest magnitude of each block of 64, itself rounded."""
    # imported here, as it takes seconds, of each worker that collects this file
    from bitsandbytes.functional import dequantize_blockwise, get_4bit_type, quantize_4bit

    data, state = quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")
    levels = get_4bit_type("nf4", device="cpu")[torch.stack([data.ravel() >> 4, data.ravel() & 15], 1).int()].ravel()
    scales = dequantize_blockwise(state.absmax, state.state2) + state.offset
    return (levels[: weight.numel()] * scales.repeat_interleave(64)[: weight.numel()]).reshape(weight.shape)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("sizes", [(20, 25), (48, 80), (64, 128)], ids=str)
def test_weights_in_4_bits_are_the_same_numbers_on_every_cpu(make_llama, packs, sizes, dtype):
    """Also of layers that the packed way does not take, and of rows that are no multiple of a block."""
    folder = make_llama(dtype, hidden_size=sizes[0], intermediate_size=sizes[1])
    whole, model = (load_base_model(folder, dtype, "cpu", held) for held in (Held(), Held(load_in_4bit=True)))
    for name in ("up_proj", "down_proj"):
        layer = model.layers[0].mlp.get_submodule(name)
        rows = torch.eye(layer.in_features, dtype=getattr(torch, dtype))
        expected = by_definition(whole.layers[0].mlp.get_submodule(name).weight).to(rows.dtype).T
        assert torch.allclose(layer(rows), expected, rtol=2e-6 if dtype == "float32" else 2**-7, atol=0)
        assert layer.in_features % 64 or layer.weight.dtype == torch.uint8, "held in 4 bits"
        assert not getattr(getattr(layer.weight, "quant_state", None), "packing_format_for_cpu", False)


def test_a_layer_in_4_bits_is_as_wide_as_its_input(llama):
    """What the rows of a fit with recycled neurons go by."""
    model, family = load_base_model(llama, "float32", "cpu", Held(load_in_4bit=True)), family_of(read_config(llama), "")
    assert family.intermediate_size(model.layers[0]) == 24


def test_calibrated_in_4_bits_the_fold_is_of_the_stored_weights(llama, texts, tmp_path, packs):
    records = [
        replaceme.prune(
            llama, calibration(texts, tmp_path, load_in_4bit=bits), cut=CUT, out=tmp_path / str(bits), verify=False
        )
        for bits in (False, True)
    ]
    assert records[1]["origin"]["dtype"] == "float32, weights in 4 bits"
    folders = (llama, tmp_path / "False", tmp_path / "True")
    stored, exact, found = (load_file(folder / "model.safetensors") for folder in folders)
    folded = "model.layers.1.mlp.down_proj.weight"
    for name, tensor in found.items():
        assert torch.equal(tensor, exact[name]) == (name != folded)
    difference = (found[folded] - exact[folded]).norm() / (exact[folded] - stored[folded]).norm()
    assert difference < 1, "the map fitted in 4 bits is nearer to the exact one than no map"


def test_4_bits_are_not_streamed(refuses):
    with pytest.raises(ValueError, match="not streamed"):
        CalibrationConfig(dataset="micro", load_in_4bit=True, streaming="always")


def test_4_bits_without_the_package(llama, monkeypatch, refuses):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with refuses("load_in_4bit: needs the package bitsandbytes", "pip install 'replaceme[4bit]'"):
        load_base_model(llama, "float32", "cpu", Held(load_in_4bit=True))


def test_more_gpus_than_there_are(llama, refuses):
    with refuses(f"gpus: 99 asked for, torch sees {torch.cuda.device_count()}"):
        load_base_model(llama, "float32", "cuda", Held(gpus=99))


def test_without_a_gpu_their_number_makes_no_difference(llama, texts, tmp_path):
    for gpus in (1, 2):
        out = tmp_path / str(gpus)
        replaceme.prune(llama, calibration(texts, tmp_path), cut=CUT, out=out, gpus=gpus, device="cpu", verify=False)
    assert (tmp_path / "1/model.safetensors").read_bytes() == (tmp_path / "2/model.safetensors").read_bytes()


@pytest.fixture
def two_gpus(monkeypatch):
    """A model spread over two devices, however small: transformers would leave it on the first."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    monkeypatch.setattr("replaceme.models.loading._free", lambda gpu: 150_000)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["llama", "gemma"])
def test_a_model_spread_over_two_gpus_gives_what_it_gives_on_one(request, make_tokens, two_gpus, name):
    folder, tokens = request.getfixturevalue(name), make_tokens()
    family = family_of(read_config(folder), name)
    one, two = (load_base_model(folder, "float32", "cuda", Held(gpus=gpus)) for gpus in (1, 2))
    assert set(two.hf_device_map.values()) == {0, 1}
    exact, found = (gather_groups(model, family, tokens.batches(4), [(2, 4)])[0] for model in (one, two))
    assert torch.equal(exact.gram, found.gram) and torch.equal(exact.cross, found.cross)
    exact, found = (measure(model, family, tokens, 4) for model in (one, two))
    assert all(torch.equal(exact[key], found[key]) for key in exact)


@pytest.mark.gpu
@pytest.mark.parametrize("fit", [{}, {"estimation": "sequential"}, {"objective": "cosine"}])
def test_prune_over_two_gpus_gives_the_same_weights(llama, texts, tmp_path, two_gpus, fit):
    cut = CutConfig(blocks=2, groups=2, adjacency="separate", metric="loss")
    for gpus in (1, 2):
        options = {"fit": FitConfig(**fit), "device": "cuda", "gpus": gpus, "verify": False}
        replaceme.prune(llama, calibration(texts, tmp_path), cut=cut, out=tmp_path / str(gpus), **options)
    assert (tmp_path / "1/model.safetensors").read_bytes() == (tmp_path / "2/model.safetensors").read_bytes()


@pytest.mark.gpu
def test_generation_over_two_gpus(llama, two_gpus):
    ids = torch.arange(10, 20, device="cuda")[None]
    one, two = (load_causal_model(llama, "float32", "cuda", Held(gpus=gpus)) for gpus in (1, 2))
    assert torch.equal(*(model.generate(ids, max_new_tokens=8, do_sample=False) for model in (one, two)))
