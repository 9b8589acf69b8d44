"""Bad model folders: missing, truncated, of other types and sizes, with links, code, or without what they need."""

import json
import os
import pickle
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from hostile.stage import CHECK, Case, edit_json
from safetensors.numpy import load_file, save_file

MODEL = Path("model")
WEIGHTS = MODEL / "model.safetensors"
INDEX = MODEL / "model.safetensors.index.json"
OUT = ("--out", "out")
RECORD = ("model", "model", *OUT)
TOKENS = ("tokens", "model", "--dataset", "text.jsonl", *OUT)
DISTANCES = ("distances", "made/model.json", "made/tokens.safetensors", *OUT)
SPEED = ("speed", "model", "--prompt-tokens", "4", "--new-tokens", "1", "--repeats", "1", "--warmup", "0", *OUT)
AGAIN = "download or copy"
BELONGS = "take the config.json that belongs to the weights"


def config(key: str, value: Any, remedy: str, says: str | None = None) -> Case:
    """Return an entry of config.json."""
    return Case(lambda: edit_json("model/config.json", **{key: value}), "model", says or key, remedy)


def case(spoil: Callable[[], Any], key: str, remedy: str, command: Sequence[str] = CHECK, file: str = "model") -> Case:
    """Return a case with this change of the folder."""
    return Case(spoil, file, key, remedy, command)


def remove(*names: str) -> Callable[[], None]:
    """Take files of the model away."""
    return lambda: [(MODEL / name).unlink() for name in names]


def as_file() -> None:
    """Put a file in place of the folder."""
    MODEL.rename("was")
    MODEL.write_bytes(Path("was/model.safetensors").read_bytes())


def cut_to(size: int) -> Callable[[], None]:
    """Return the first bytes of the weights."""
    return lambda: WEIGHTS.write_bytes(WEIGHTS.read_bytes()[:size])


def header_of(length: int) -> Callable[[], None]:
    """Return weights that say that their header is as long as this."""
    return lambda: WEIGHTS.write_bytes(struct.pack("<Q", length) + WEIGHTS.read_bytes()[8:])


def tensors(change: Callable[[dict[str, np.ndarray]], Any]) -> Callable[[], None]:
    """Return other weights."""

    def spoil() -> None:
        loaded = load_file(WEIGHTS)
        change(loaded)
        save_file(loaded, WEIGHTS, {"format": "pt"})

    return spoil


def as_integers(loaded: dict[str, np.ndarray]) -> None:
    """Round a weight to whole numbers."""
    name = "model.layers.1.mlp.down_proj.weight"
    loaded[name] = loaded[name].astype(np.int8)


def index_of(shard: str) -> Callable[[], None]:
    """Return an index that names another shard."""

    def spoil() -> None:
        names = load_file(WEIGHTS).keys()
        WEIGHTS.unlink()
        INDEX.write_text(json.dumps({"weight_map": dict.fromkeys(names, shard)}))

    return spoil


def link(name: str, to: str) -> Callable[[], None]:
    """Return a link out of the folder; what it points to is there."""

    def spoil() -> None:
        Path("../secret").write_text("{}")
        (MODEL / name).unlink(missing_ok=True)
        (MODEL / name).symlink_to(to)

    return spoil


def moved_out(name: str) -> Callable[[], None]:
    """Return a file of the model that is a link to where it now lies."""

    def spoil() -> None:
        (MODEL / name).rename(f"../{name}")
        (MODEL / name).symlink_to(f"../../{name}")

    return spoil


def pickle_only() -> None:
    """Store the weights as a pickle, which makes a file where it is loaded."""

    class Runs:
        def __reduce__(self):
            return os.system, ("touch ran",)

    (MODEL / "pytorch_model.bin").write_bytes(pickle.dumps(Runs()))
    WEIGHTS.unlink()


def tokenizer_code() -> None:
    """Give the tokenizer code of its own."""
    edit_json("model/tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenizer_own.Own", None]})
    (MODEL / "tokenizer_own.py").write_text("open('ran', 'w')\nclass Own: pass\n")


def chat_template() -> None:
    """Write a chat template that tries to leave its sandbox."""
    Path("chat.jsonl").write_text(json.dumps({"chat": [{"role": "user", "content": "w1"}]}) + "\n")
    for path in (MODEL / "chat_template.jinja", MODEL / "tokenizer_config.json"):
        if path.suffix == ".json":
            edit_json(str(path), chat_template=OUT_OF_SANDBOX)
        else:
            path.write_text(OUT_OF_SANDBOX)


OUT_OF_SANDBOX = "{{ cycler.__init__.__globals__.os.popen('touch ran').read() }}"


def larger_tokenizer() -> None:
    """Give the tokenizer a word for which the model has no row."""
    content = json.loads((MODEL / "tokenizer.json").read_text())
    content["model"]["vocab"]["unheard"] = 66
    (MODEL / "tokenizer.json").write_text(json.dumps(content))
    Path("text.jsonl").write_text(json.dumps({"text": "w1 unheard"}) + "\n")


def without(*names: str) -> Callable[[dict[str, np.ndarray]], None]:
    """Return weights that lack some."""
    return lambda loaded: [loaded.pop(name) for name in names]


def poisoned(loaded: dict[str, np.ndarray]) -> None:
    """Put a NaN into a weight."""
    loaded["model.layers.2.mlp.up_proj.weight"][0, 0] = float("nan")


CASES = {
    # what is there
    "missing": case(lambda: MODEL.rename("elsewhere"), "no such folder", "give a folder with config.json"),
    "file": case(as_file, "model: a file", "give a folder with config.json"),
    "no config.json": case(remove("config.json"), "no config.json", "give the folder of a Hugging Face checkpoint"),
    "no weights": case(remove("model.safetensors"), "no model.safetensors", "give the folder of a whole checkpoint"),
    "pickle": case(pickle_only, "pytorch_model.bin: pickles are not read", "convert it to safetensors"),
    "no tokenizer": case(
        remove("tokenizer.json", "tokenizer_config.json"), "no usable tokenizer", "put tokenizer.json", TOKENS
    ),
    # safetensors
    "truncated": case(cut_to(5000), "model.safetensors: truncated or corrupted", AGAIN),
    "truncated header": case(cut_to(100), "model.safetensors: truncated or corrupted", AGAIN),
    "of no bytes": case(cut_to(0), "model.safetensors: truncated or corrupted", AGAIN),
    "header longer than the file": case(header_of(10**9), "model.safetensors: truncated or corrupted", AGAIN),
    "header of 2^64 bytes": case(header_of(2**64 - 1), "model.safetensors: truncated or corrupted", AGAIN),
    "header of no bytes": case(header_of(0), "model.safetensors: truncated or corrupted", AGAIN),
    "header cut off": case(header_of(50), "model.safetensors: truncated or corrupted", AGAIN),
    "weight of integers": case(tensors(as_integers), "down_proj.weight is stored as I8", "give weights in BF16"),
    "NaN": case(
        tensors(poisoned), "NaN or infinity in the output of block 2", "check the checkpoint's weights", DISTANCES
    ),
    "a weight is missing": case(
        tensors(without("model.layers.3.mlp.up_proj.weight")), "layers.3.mlp.up_proj.weight", "download it again", SPEED
    ),
    "a head that is not tied is missing": case(
        tensors(without("lm_head.weight")), "no tensor lm_head.weight", "download it again"
    ),
    # the index
    "shard upwards": case(index_of("../model.safetensors"), "'../model.safetensors' lies outside", "do not trust"),
    "shard elsewhere": case(index_of("/etc/passwd"), "'/etc/passwd' lies outside the folder", "do not trust this file"),
    "shard that is the parent": case(index_of(".."), "'..' lies outside the folder", "do not trust this file"),
    "shard that is a pickle": case(index_of("pytorch_model.bin"), "'pytorch_model.bin' is no .safetensors", "convert"),
    "shard that is not there": case(index_of("one.safetensors"), "one.safetensors: missing shard", AGAIN),
    "shard with a NUL": case(index_of("a\0.safetensors"), "shard 'a\\x00.safetensors'", "do not trust this file"),
    "index without tensors": case(
        lambda: (WEIGHTS.unlink(), INDEX.write_text('{"weight_map": {}}')), "`weight_map` is empty", AGAIN
    ),
    "index that is no JSON": case(
        lambda: (WEIGHTS.unlink(), INDEX.write_text("{")), "index.json: not valid JSON", AGAIN
    ),
    # links
    "weights linked from elsewhere": case(
        moved_out("model.safetensors"), "model.safetensors: a link out of the folder", "put the file itself there"
    ),
    "licence linked to a secret": case(
        link("LICENSE", "../../secret"), "LICENSE: a link out of the folder", "put the file itself there", RECORD
    ),
    "tokenizer linked to a secret": case(
        link("tokenizer_config.json", "../../secret"), "tokenizer_config.json: a link out", "put the file itself there"
    ),
    "config linked from elsewhere": case(
        moved_out("config.json"), "config.json: a link out", "put the file itself there"
    ),
    # code
    "code": config("auto_map", {"AutoModel": "own.Own"}, "remove `auto_map`", "own code (auto_map)"),
    "code of a tokenizer": case(
        tokenizer_code, "tokenizer_config.json: wants to run its own code", "remove `auto_map`"
    ),
    "code of a config of another name": config("configuration_files", ["config.5.0.0.json"], "remove the entry"),
    "code of a kernel": config("attn_implementation", "somebody/kernel", "remove the entry"),
    "an adapter": case(
        lambda: (MODEL / "adapter_config.json").write_text('{"base_model_name_or_path": "../other"}'),
        "adapter_config.json: an adapter",
        "merge it into the weights",
    ),
    "code in a chat template": case(
        chat_template,
        "chat template refuses a conversation",
        "unsafe",
        ("tokens", "model", "--dataset", "chat.jsonl", "--conversations", "chat", *OUT),
        "chat.jsonl",
    ),
    "code under the package's name": case(
        lambda: edit_json(
            "model/config.json", model_type="replaceme_llama", auto_map={"AutoModelForCausalLM": "own.O"}
        ),
        "already made smaller",
        "give the original model",
    ),
    # config.json
    "config.json is no JSON": case(
        lambda: (MODEL / "config.json").write_text("{"), "config.json: not valid JSON", AGAIN
    ),
    "config.json is a list": case(lambda: (MODEL / "config.json").write_text("[]"), "no `model_type`", "take that of"),
    "config.json nested without end": case(
        lambda: (MODEL / "config.json").write_text("[" * 100_000),
        "config.json: not valid JSON (nested too deeply)",
        AGAIN,
    ),
    "no model_type": config("model_type", ..., "take that of the checkpoint"),
    "unknown model_type": config("model_type", "t5", "docs/models.md says what can be done", "model_type 't5'"),
    "model_type is a list": config("model_type", ["llama"], BELONGS),
    "no layers": config("num_hidden_layers", 0, BELONGS),
    "negative layers": config("num_hidden_layers", -6, BELONGS),
    "no number of layers": config("num_hidden_layers", ..., "take those that belong together", "says 32 blocks"),
    "layers in quotes": config("num_hidden_layers", "6", BELONGS),
    "fewer layers than weights": config("num_hidden_layers", 5, "take those that belong together", "says 5 blocks"),
    "more layers than weights": config("num_hidden_layers", 7, "take those that belong together", "says 7 blocks"),
    "layers that fill the memory": config(
        "num_hidden_layers", 10**9, "take those that belong", "says 1000000000 blocks"
    ),
    "layers beyond integers": config("num_hidden_layers", 10**400, BELONGS),
    "width is nothing": config("hidden_size", None, BELONGS),
    "positions in quotes": config("max_position_embeddings", "128", BELONGS),
    "positions without end": config("max_position_embeddings", float("inf"), BELONGS),
    "dtype is a mapping": config("dtype", {"a": "float32"}, BELONGS),
    "quantised": config("quantization_config", {"bits": 4}, "give the full-precision checkpoint", "None, 4 bits"),
    # parts that do not belong together
    "another width than the weights": case(
        lambda: edit_json("model/config.json", hidden_size=32),
        "tensors have other shapes than config.json",
        "are config.json and weights of one model?",
        SPEED,
    ),
    "larger vocabulary of the tokenizer": case(
        larger_tokenizer, "token id 66", "take the tokenizer of this model", TOKENS
    ),
    "tokens of another tokenizer": case(
        lambda: None,
        "token id 66",
        "take the tokenizer of this model",
        ("distances", "made/model.json", "made/foreign.safetensors", *OUT),
        "made/foreign.safetensors",
    ),
    "broken tokenizer.json": case(
        lambda: (MODEL / "tokenizer.json").write_text('{"model": {}}'),
        "no usable tokenizer",
        "put tokenizer.json",
        TOKENS,
    ),
    # records
    "record that is a list": case(
        lambda: Path("made/model.json").write_text("[]"),
        "not a model record",
        "`replaceme model`",
        DISTANCES,
        "made/model.json",
    ),
    "record of less": case(
        lambda: edit_json("made/model.json", files=...),
        "not a model record",
        "`replaceme model`",
        DISTANCES,
        "made/model.json",
    ),
}
