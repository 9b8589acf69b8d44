"""The plain weights of a quantised checkpoint: the right numbers, an ordinary folder, whole or not there at all."""

import json
import shutil

import packers
import pytest
import torch
from safetensors.torch import load_file, save_file

from replaceme.api import prune
from replaceme.core.files import RECORD
from replaceme.models.checkpoints import load_record, open_checkpoint, resolve
from replaceme.models.loading import load_causal_model
from replaceme.surgery import plain_copy
from replaceme.surgery.plain_copy import dequantise, shards_of
from replaceme.verification.audit import audit


@pytest.fixture(scope="module")
def plain(make_llama):
    return make_llama("bfloat16", intermediate_size=32, num_hidden_layers=4)


@pytest.fixture(scope="module")
def pack_model(plain, tmp_path_factory):
    """A function that packs the blocks' matrices of a tiny Llama; returns the folder and the plain tensors."""

    def make(form):
        folder = tmp_path_factory.mktemp("packed") / "model"
        expected = packers.pack_checkpoint(plain, folder, form)
        return folder, expected

    return make


@pytest.fixture(scope="module")
def packed(pack_model):
    return pack_model("gptq")


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("form", packers.FORMATS)
def test_plain_weights(form, pack_model, tmp_path):
    source, expected = pack_model(form)
    dequantise(str(source), None, tmp_path / "plain")
    found = load_file(tmp_path / "plain/model.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == torch.bfloat16
        torch.testing.assert_close(found[name], tensor, rtol=2**-7, atol=0)  # a last digit, by the order of products
        assert (found[name] == tensor).float().mean() > 0.99
    config = json.loads((tmp_path / "plain/config.json").read_text())
    before = json.loads((source / "config.json").read_text())
    assert config == {key: value for key, value in before.items() if key != "quantization_config"}
    assert (tmp_path / "plain/tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    assert open_checkpoint(tmp_path / "plain").unloaded == {}


def test_fp8_weights_are_those_that_transformers_loads(pack_model, tmp_path):
    from transformers import AutoModelForCausalLM

    source, _ = pack_model("fp8")
    dequantise(str(source), None, tmp_path / "plain")
    theirs = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16).state_dict()
    ours = load_causal_model(tmp_path / "plain", "bfloat16", "cpu").state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("bits", [4, 8])
def test_weights_are_those_of_a_model_saved_by_bitsandbytes(bits, make_llama, tmp_path):
    """Of rows of whole blocks: shorter ones it dequantises wrongly on CPUs with AVX512-BF16."""
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    plain = make_llama("bfloat16", hidden_size=64, intermediate_size=128)
    options = {"load_in_8bit": True}
    if bits == 4:
        options = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    theirs = AutoModelForCausalLM.from_pretrained(
        plain, dtype=torch.bfloat16, quantization_config=BitsAndBytesConfig(**options)
    )
    theirs.save_pretrained(tmp_path / "packed")
    dequantise(str(tmp_path / "packed"), None, tmp_path / "plain")
    found = theirs.dequantize(torch.bfloat16).state_dict()
    ours = load_causal_model(tmp_path / "plain", "bfloat16", "cpu").state_dict()
    for name in ours:
        torch.testing.assert_close(ours[name], found[name].to(torch.bfloat16), rtol=2**-7, atol=1e-6)


def test_a_record_and_a_card_say_what_was_dequantised(packed, tmp_path):
    source, _ = packed
    dequantise(str(source), None, tmp_path / "plain")
    record = resolve(str(tmp_path / "plain"))
    assert record.dequantised["format"] == "gptq, 4 bits"
    assert record.dequantised["files"] == resolve_files(source)
    record.save(tmp_path / "model.json")
    assert load_record(tmp_path / "model.json") == record
    wanted = {"texts": ["w1 w2 w3 w4 w5 w6"] * 4, "blocks": 1, "verify": False}
    of_plain = prune(tmp_path / "plain", out=tmp_path / "of-plain", **wanted)
    found = prune(source, out=tmp_path / "short", dequantise=True, **wanted)
    short = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("of-plain", "short")]
    assert short[0] == short[1]
    assert found["source"]["dequantised"] == of_plain["source"]["dequantised"] == record.dequantised
    assert found["source"]["source"] == source.name and of_plain["source"]["source"] == "plain"
    assert "dequantised first, from gptq, 4 bits" in (tmp_path / "short/README.md").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "of-plain", "plain", "short"]
    for name in ("plain", "of-plain"):
        assert audit(tmp_path / name).lines == []


def resolve_files(source):
    from replaceme.core.files import sha256_of_all

    return sha256_of_all(source, [path.name for path in source.iterdir() if path.name != "README.md"])


def test_shards_are_small_and_a_repeat_gives_the_same_bytes(packed, tmp_path, monkeypatch):
    source, expected = packed
    split = shutil.copytree(source, tmp_path / "split")
    tensors = load_file(split / "model.safetensors")
    (split / "model.safetensors").unlink()
    # every second tensor in a shard of its own, so that parts of a weight are apart
    names = {"model-1.safetensors": sorted(tensors)[0::2], "model-2.safetensors": sorted(tensors)[1::2]}
    for file, held in names.items():
        save_file({name: tensors[name] for name in held}, split / file, {"format": "pt"})
    weight_map = {name: file for file, held in names.items() for name in held}
    (split / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    monkeypatch.setattr(plain_copy, "SHARD", 3000)
    written = []
    for name in ("one", "two", "two"):  # the second time in place of what is there
        dequantise(str(split), None, tmp_path / name)
        written.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert written[0] == written[1] == written[2]
    shards = sorted((tmp_path / "one").glob("*.safetensors"))
    assert len(shards) > 3 and open_checkpoint(tmp_path / "one").shards == [path.name for path in shards]
    found = {name: tensor for path in shards for name, tensor in load_file(path).items()}
    assert max(sum(one.nbytes for one in load_file(path).values()) for path in shards) <= 3000
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items() if "_proj" not in name)
    assert found.keys() == expected.keys()


def test_shards_hold_at_least_one_tensor():
    assert list(shards_of({"a": 5, "b": 9, "c": 2, "d": 2, "e": 1}, 4)) == [["a"], ["b"], ["c", "d"], ["e"]]


def test_nothing_is_left_of_a_crash_and_of_a_full_disk(packed, tmp_path, monkeypatch, refuses):
    source, _ = packed

    def crash(*_):
        raise RuntimeError

    with monkeypatch.context() as patched:
        patched.setattr(plain_copy, "write_safetensors", crash)
        with pytest.raises(RuntimeError):
            dequantise(str(source), None, tmp_path / "plain")
        patched.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6, 1000))
        with refuses(str(tmp_path / "plain"), "its plain weights need", "free some"):
            dequantise(str(source), None, tmp_path / "plain")
    assert list(tmp_path.iterdir()) == []


def broken(folder, **changes):
    tensors = load_file(folder / "model.safetensors")
    save_file({name: one for name, one in (tensors | changes).items() if one is not None}, folder / "model.safetensors")


NAME = "model.layers.0.mlp.down_proj"
BROKEN = {
    "no quantisation": (lambda f: edit(f / "config.json", quantization_config=None), "names no quantisation"),
    "unknown": (lambda f: edit(f / "config.json", quantization_config={"quant_method": "hqq"}), "says hqq"),
    "unknown model": (lambda f: edit(f / "config.json", model_type="t5"), "'t5' is not supported"),
    "own code": (lambda f: edit(f / "config.json", auto_map={"AutoModel": "x.Y"}), "auto_map"),
    "another depth": (lambda f: edit(f / "config.json", num_hidden_layers=5), "config.json says 5 blocks"),
    "no scales": (lambda f: broken(f, **{f"{NAME}.scales": None}), f"{NAME}.weight: no part '.scales'"),
    "no words": (lambda f: broken(f, **{f"{NAME}.qweight": None}), f"{NAME}.weight: only"),
    "packed without scales": (
        lambda f: broken(f, **{"model.norm.weight": torch.ones(16).to(torch.float8_e4m3fn)}),
        "model.norm.weight is stored as F8_E4M3 without its scales",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_sources_that_are_refused(what, packed, tmp_path, refuses):
    source = shutil.copytree(packed[0], tmp_path / "copy")
    breaks, words = BROKEN[what]
    breaks(source)
    with refuses(str(source), words):
        dequantise(str(source), None, tmp_path / "plain")
    assert not (tmp_path / "plain").exists()


def test_what_is_quantised_is_refused_with_the_remedy(packed, tmp_path, refuses):
    with refuses(str(packed[0]), "config.json says gptq, 4 bits", "set `dequantise: true`"):
        resolve(str(packed[0]))
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    with refuses("a.gguf: a GGUF file", "set `dequantise: true`"):
        resolve(str(tmp_path / "a.gguf"))
    with refuses("no config.json, but GGUF files", "a.gguf", "set `dequantise: true`"):
        resolve(str(tmp_path))
    with refuses("no such folder or file"):
        dequantise(str(tmp_path / "b"), None, tmp_path / "plain")


def test_what_is_not_shortened_is_not_healed(packed, tmp_path, refuses):
    from replaceme.api import heal
    from replaceme.config.healings import TrainingConfig

    dequantise(str(packed[0]), None, tmp_path / "plain")
    assert (tmp_path / "plain" / RECORD).is_file()
    with refuses("not shortened yet"):
        heal(
            tmp_path / "plain",
            texts=["w1 w2"] * 20,
            out=tmp_path / "x",
            training=TrainingConfig(train="lora", steps=1, learning_rate=1),
        )
