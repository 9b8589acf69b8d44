"""Sources that are no checkpoint folders are called what they are."""

import json

import pytest

from replaceme.models.checkpoints import names_folder, resolve


def gguf_file(folder):
    (folder / "model.Q4_K_M.gguf").touch()
    return folder / "model.Q4_K_M.gguf"


def gguf_folder(folder):
    return gguf_file(folder).parent


def adapter(folder):
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base"}))
    (folder / "adapter_model.safetensors").touch()
    return folder


def broken_adapter(folder):
    (folder / "adapter_config.json").write_text("{")
    return folder


def weights(folder):
    (folder / "model.safetensors").touch()
    return folder / "model.safetensors"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (gguf_file, ("model.Q4_K_M.gguf: a GGUF file, into which nothing can be folded", "dequantise: true")),
        (gguf_folder, ("no config.json, but GGUF files; give one of them", "model.Q4_K_M.gguf")),
        (adapter, ("an adapter for org/base", "merge_and_unload")),
        (broken_adapter, ("an adapter, not a model",)),
        (weights, ("a file; give a folder",)),
        (lambda folder: folder, ("no config.json",)),
        (lambda folder: folder / "none", ("no such folder",)),
    ],
)
def test_what_a_source_is(make, said, tmp_path, refuses):
    source = str(make(tmp_path))
    assert names_folder(source)
    with refuses(*said):
        resolve(source)
