"""A GGUF file (llama.cpp's format) as plain weights, with transformers' tables of names, entries and layouts.

transformers loads such a file as a whole; here its parts of that (`get_gguf_hf_weights_map`, TENSOR_PROCESSORS) are
called for one tensor at a time. The package `gguf` reads the file and unpacks its blocks.
"""

import functools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaceme.core.errors import ReplaceMeError, in_one_line, printable
from replaceme.core.quiet import quiet_transformers
from replaceme.models.checkpoints import check_gguf, checked
from replaceme.models.config_defaults import accepted, with_defaults
from replaceme.models.plain_view import STORED_AS, USUAL, PlainView

if TYPE_CHECKING:
    from gguf import GGUFReader, ReaderTensor

PACKAGE = "a GGUF file needs the package gguf: pip install 'replaceme[gguf]'"
# values rather than blocks of integers: the type of the weights, where a file has no other
WHOLE = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def open_gguf(path: Path) -> PlainView:
    """Return the plain weights of a GGUF file; raises ReplaceMeError for architectures that are not read."""
    check_gguf(path)
    reader, parameters = _read(path)
    kinds = {tensor.tensor_type.name for tensor in reader.tensors}
    dtype = _dtype(kinds)
    config, model = _model(parameters["config"], dtype, path)
    names, processor = _names(model, reader, parameters["config"], path)
    shapes = {name: tuple(one.shape) for name, one in model.state_dict().items()}
    tensors = {name: (path.name, shapes[name], STORED_AS[dtype]) for name in names}
    return PlainView(
        folder=path.parent,
        checkpoint=checked(path, with_defaults(config, str(path)), tensors),
        description=f"gguf, {', '.join(sorted(kinds))}",
        dtype=dtype,
        config=config,
        files=[path.name],
        read=functools.partial(_tensor, path, names, processor, dtype, shapes),
        write_beside=functools.partial(_write_beside, path, model),
    )


def _read(path: Path) -> "tuple[GGUFReader, dict[str, Any]]":
    """Return a file's reader, and what transformers makes of its metadata."""
    try:
        from gguf import GGUFReader
    except ImportError:
        raise ReplaceMeError(f"{path}: {PACKAGE}") from None
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    try:
        with quiet_transformers():
            return GGUFReader(path), load_gguf_checkpoint(str(path))
    except Exception as error:  # of both packages, for whatever stands in the file
        raise ReplaceMeError(f"{path}: transformers does not read it ({in_one_line(error)}); take another") from error


def _dtype(kinds: Iterable[str]) -> str:
    """Return the type of the weights: that of a file's matrices, where these are not quantised."""
    found = set(kinds)
    if not found <= WHOLE.keys():
        return USUAL
    return next(WHOLE[kind] for kind in ("BF16", "F16", "F32") if kind in found)


def _model(entries: dict[str, Any], dtype: str, path: Path) -> "tuple[dict[str, Any], Any]":
    """Return config.json and the model without weights; raises ReplaceMeError for an unsupported `model_type`."""
    import torch
    from transformers import AutoModelForCausalLM

    config = accepted(entries, str(path))
    with torch.device("meta"), quiet_transformers():
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    config.architectures, config.dtype = [type(model).__name__], dtype
    # as it would be saved, without the file's name of the model, which need not be one of the Hub
    written = {key: value for key, value in json.loads(config.to_json_string()).items() if key[0] != "_"}
    return written, model


def _names(model: Any, reader: "GGUFReader", entries: dict[str, Any], path: Path) -> "tuple[dict[str, list[str]], Any]":
    """Return for each plain tensor the names of those that it is made of, and what changes their layout."""
    from transformers.modeling_gguf_pytorch_utils import (
        TENSOR_PROCESSORS,
        TensorProcessor,
        get_gguf_hf_weights_map,
        read_field,
    )

    architecture = read_field(reader, "general.architecture")[0]
    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=entries)
    known = get_gguf_hf_weights_map(model, processor)
    found: dict[str, list[str]] = {}
    for tensor in reader.tensors:
        if tensor.name in known:
            found.setdefault(known[tensor.name], []).append(tensor.name)
    unknown = [tensor.name for tensor in reader.tensors if tensor.name not in known and ".weight" in tensor.name]
    if unknown:
        raise ReplaceMeError(
            f"{path}: tensor {printable(unknown[0])} has no place in a {model.config.model_type} of transformers; take "
            "another file"
        )
    return {name: found[name] for name in model.state_dict() if name in found}, (processor, known)


def _tensor(path: Path, names: dict[str, list[str]], processing: Any, dtype: str, shapes: Any, name: str):
    """Return one plain tensor, made of one or several of the file, as transformers makes it."""
    import torch
    from gguf import dequantize

    processor, known = processing
    made: dict[str, Any] = {"tensors": {}}
    for tensor in (_by_name(path)[one] for one in names[name]):
        values = dequantize(tensor.data, tensor.tensor_type)
        result = processor.process(weights=values, name=tensor.name, tensor_key_mapping=known, parsed_parameters=made)
        if result.name is not None:
            made["tensors"][name] = torch.from_numpy(result.weights.copy())
    found = made["tensors"].get(name)
    if found is None or tuple(found.shape) != shapes[name]:
        raise ReplaceMeError(f"{path}: {printable(name)} has another shape than its class; take another file")
    return found.to(getattr(torch, dtype)).contiguous()


@functools.lru_cache(1)
def _by_name(path: Path) -> "dict[str, ReaderTensor]":
    from gguf import GGUFReader

    return {tensor.name: tensor for tensor in GGUFReader(path).tensors}


def _write_beside(path: Path, model: Any, folder: Path) -> None:
    """Write the tokenizer and the special tokens that the file holds."""
    from transformers import AutoTokenizer

    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, trust_remote_code=False)
            tokenizer.save_pretrained(folder)
            model.generation_config.save_pretrained(folder)
    except Exception as error:
        raise ReplaceMeError(f"{path}: no usable tokenizer in it ({in_one_line(error)}); take another file") from error
