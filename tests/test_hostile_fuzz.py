"""Anything at all in place of a config, a header, an index or a config.json: read, or refused in one line each.

More examples, other ones each time: `REPLACEME_FUZZ=5000 pytest tests/test_hostile_fuzz.py`.
"""

import json
import os
import shutil
import struct

import numpy as np
import pytest
import yaml
from hostile.stage import CONFIG
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from replaceme.config.schema import Config, load
from replaceme.core.errors import ReplaceMeError
from replaceme.models.checkpoints import resolve

COUNT = os.environ.get("REPLACEME_FUZZ")
fuzz = settings(
    max_examples=int(COUNT or 60),
    derandomize=COUNT is None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner))
SPLICED = [
    "&a",
    "*a",
    "<<: *a",
    "!!python/object:os.system ",
    "!!set ",
    "!!omap ",
    "!!binary ",
    "- ",
    "? ",
    ": ",
    "{",
    "}",
    "[",
    "]",
    "|",
    ">",
    "'",
    '"',
    "\\0",
    "\\ud800",
    "\t",
    "\n",
    "\x00",
    "\ufeff",
    "\u2028",
    "---",
    "...",
    "%YAML 9",
    "1e999",
    "0x" + "f" * 400,
    "1:1:1",
    "../",
    "include: [config.yaml]",
    "include: [b.yaml, b.yaml]",
    "include: [/dev/zero]",
]
GOOD = yaml.safe_dump(CONFIG, sort_keys=False)


def reads_or_refuses(read, folder):
    """Return the result of reading, or None for a refusal in lines of plain text; any other exception fails the
    test.
    """
    before = sorted(path.name for path in folder.iterdir())
    try:
        found = read()
    except ReplaceMeError as error:
        found = None
        assert str(error) and len(str(error)) < 100_000
    assert sorted(path.name for path in folder.iterdir()) == before
    return found


# ---- config


@given(st.lists(st.tuples(st.integers(0, len(GOOD)), st.sampled_from(SPLICED), st.integers(0, 9)), max_size=4))
@fuzz
def test_a_config_with_other_text_in_it(tmp_path, splices):
    text = GOOD
    for place, part, dropped in splices:
        text = text[:place] + part + text[place + dropped :]
    path = tmp_path / "config.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    found = reads_or_refuses(lambda: load(path), tmp_path)
    assert found is None or isinstance(found, Config)


@given(st.lists(st.lists(st.integers(0, 5), max_size=5), min_size=6, max_size=6))
@example([[1, 2], [2, 3], [3, 4], [4, 5], [5], [0]])
@example([[1, 1], [2, 2], [3, 3], [4, 4], [5, 5], []])
@fuzz
def test_configs_that_include_each_other_anyhow(tmp_path, graph):
    for number, others in enumerate(graph):
        content = {"include": [f"{other}.yaml" for other in others], **(CONFIG if number == 5 else {})}
        (tmp_path / f"{number}.yaml").write_text(yaml.safe_dump(content))
    reads_or_refuses(lambda: load(tmp_path / "0.yaml"), tmp_path)


def test_includes_of_two_by_two_are_read_once_each(tmp_path):
    """Of 2^30 ways through these files."""
    for level in range(15):
        for side in "ab":
            below = [f"{level + 1}{one}.yaml" for one in "ab"] if level < 14 else []
            (tmp_path / f"{level}{side}.yaml").write_text(yaml.safe_dump({"include": below, **CONFIG}))
    assert load(tmp_path / "0a.yaml").default_names == ["main"]


# ---- checkpoints


def small_weights():
    """Return a Llama of two blocks, as small as headers allow."""
    rows = {"input_layernorm": (4,), "mlp.down_proj": (4, 6), "mlp.up_proj": (6, 4), "mlp.gate_proj": (6, 4)}
    tensors = {
        f"model.layers.{block}.{name}.weight": np.zeros(shape, np.float32)
        for block in range(2)
        for name, shape in rows.items()
    }
    return save({**tensors, "model.embed_tokens.weight": np.zeros((8, 4), np.float32)}, {"format": "pt"})


WEIGHTS = small_weights()
LENGTH = struct.unpack("<Q", WEIGHTS[:8])[0]
SETTINGS = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 4,
    "intermediate_size": 6,
    "vocab_size": 8,
    "architectures": ["LlamaForCausalLM"],
    "max_position_embeddings": 16,
    "dtype": "float32",
    "tie_word_embeddings": True,
}
ENTRIES = [
    *SETTINGS,
    "auto_map",
    "quantization_config",
    "layer_types",
    "residual_multiplier",
    "torch_dtype",
    "mlp_only_layers",
    "decoder_sparse_step",
    "vision_config",
    "image_size",
    "patch_size",
    "n_layer",
    "n_embd",
    "n_positions",
    "out_indices",
]
TYPES = [
    "llama",
    "granite",
    "gpt2",
    "clip",
    "vit",
    "qwen2_moe",
    "deepseek_v2",
    "falcon",
    "opt",
    "replaceme_llama",
    "t5",
]


@pytest.fixture
def folder(tmp_path):
    """A checkpoint that `resolve` takes."""
    place = tmp_path / "model"
    place.mkdir()
    renew(place)
    assert resolve(str(place)).num_blocks == 2
    return place


def renew(place, weights=WEIGHTS, **entries):
    for path in place.iterdir():
        path.unlink()
    (place / "model.safetensors").write_bytes(weights)
    (place / "config.json").write_text(json.dumps({**SETTINGS, **entries}))


@given(
    st.lists(st.tuples(st.integers(0, LENGTH + 16), st.integers(0, 255)), max_size=4),
    st.none() | st.integers(0, len(WEIGHTS)),
)
@fuzz
def test_weights_with_other_bytes_in_their_header(folder, changes, length):
    raw = bytearray(WEIGHTS)
    for place, byte in changes:
        raw[place] = byte
    renew(folder, bytes(raw[:length]))
    reads_or_refuses(lambda: resolve(str(folder)), folder)


@given(JSON | st.dictionaries(st.sampled_from(["model.layers.0.mlp.down_proj.weight", "__metadata__", "x"]), JSON))
@example({"model.layers.0.mlp.down_proj.weight": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 4]}})
@fuzz
def test_weights_with_another_header(folder, header):
    text = json.dumps(header).encode()
    renew(folder, struct.pack("<Q", len(text)) + text + bytes(64))
    reads_or_refuses(lambda: resolve(str(folder)), folder)


@given(JSON | st.fixed_dictionaries({"weight_map": JSON | st.dictionaries(st.text(max_size=4), st.text(max_size=12))}))
@example({"weight_map": {"a": "model.safetensors/../../x.safetensors"}})
@example({"weight_map": {"a": "config.json"}})
@fuzz
def test_another_index(folder, index):
    renew(folder)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert reads_or_refuses(lambda: resolve(str(folder)), folder) is None


@given(st.sampled_from(TYPES), st.dictionaries(st.sampled_from(ENTRIES), JSON | st.sampled_from([0, -1, 2, 10**12])))
@fuzz
def test_another_config_json(folder, model_type, entries):
    renew(folder, **{"model_type": model_type, **entries})
    reads_or_refuses(lambda: resolve(str(folder)), folder)


@given(st.sampled_from(["tokenizer_config.json", "generation_config.json"]), JSON)
@fuzz
def test_other_settings_beside_the_weights(folder, name, content):
    renew(folder)
    (folder / name).write_text(json.dumps(content))
    reads_or_refuses(lambda: resolve(str(folder)), folder)


def test_nothing_is_left_of_the_folder(folder):
    """What the fuzz is about is that of a whole checkpoint."""
    shutil.rmtree(folder)
    with pytest.raises(ReplaceMeError, match="no such folder"):
        resolve(str(folder))
