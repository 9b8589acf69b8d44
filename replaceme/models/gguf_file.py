"""A GGUF file (llama.cpp's format) as plain weights, with transformers' tables of names, entries and layouts.

transformers loads such a file as a whole; here its parts of that (`get_gguf_hf_weights_map`, TENSOR_PROCESSORS) are
called for one tensor at a time. The package `gguf` reads the file and unpacks its blocks.
"""

import functools
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaceme.core.errors import ReplaceMeError, in_one_line, printable
from replaceme.core.quiet import quiet_transformers
from replaceme.models.checkpoints import checked
from replaceme.models.config_defaults import accepted, with_defaults
from replaceme.models.other_formats import check_gguf
from replaceme.models.plain_view import STORED_AS, USUAL, PlainView

if TYPE_CHECKING:
    import torch
    from gguf import GGUFReader, ReaderTensor
    from transformers.modeling_gguf_pytorch_utils import TensorProcessor

PACKAGE = "a GGUF file needs the package gguf: pip install 'replaceme[gguf]'"
# values rather than blocks of integers: the type of the weights, where a file has no other
WHOLE = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def open_gguf(path: Path) -> PlainView:
    """Return the plain weights of a GGUF file; raises ReplaceMeError for architectures that are not read."""
    check_gguf(path)
    reader, entries = _read(path)
    kinds = {tensor.tensor_type.name for tensor in reader.tensors}
    dtype = _dtype(kinds)
    config, model = _model(entries, dtype, path)
    read = _tensors(model, reader, entries, path, dtype)
    tensors = {name: (path.name, read.shapes[name], STORED_AS[dtype]) for name in read.names}
    return PlainView(
        folder=path.parent,
        checkpoint=checked(path, with_defaults(config, str(path)), tensors),
        description=f"gguf, {', '.join(sorted(kinds))}",
        dtype=dtype,
        config=config,
        files=[path.name],
        read=read,
        write_beside=functools.partial(_write_beside, path, model),
    )


def _read(path: Path) -> "tuple[GGUFReader, dict[str, Any]]":
    """Return a file's reader, and the entries of config.json that transformers finds in it."""
    try:
        from gguf import GGUFReader
    except ImportError:
        raise ReplaceMeError(f"{path}: {PACKAGE}") from None
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    try:
        with quiet_transformers():
            return GGUFReader(path), load_gguf_checkpoint(str(path))["config"]
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


def _tensors(model: Any, reader: "GGUFReader", entries: dict[str, Any], path: Path, dtype: str) -> "_Tensors":
    """Return the plain tensors of a file; raises ReplaceMeError for one that the class has no place for."""
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
    shapes = {name: tuple(one.shape) for name, one in model.state_dict().items()}
    names = {name: found[name] for name in shapes if name in found}
    return _Tensors(path, {tensor.name: tensor for tensor in reader.tensors}, names, known, processor, shapes, dtype)


@dataclass(frozen=True)
class _Tensors:
    """The tensors of a file by name, which are unpacked when they are read: `names` of those that make a plain one.

    `known` are the plain names by those of the file, `shapes` those of the class.
    """

    path: Path
    held: "dict[str, ReaderTensor]"
    names: dict[str, list[str]]
    known: dict[str, str]
    processor: "TensorProcessor"
    shapes: dict[str, tuple[int, ...]]
    dtype: str

    def __call__(self, name: str) -> "torch.Tensor":
        """Return one plain tensor, made of one or several of the file, as transformers makes it."""
        import torch
        from gguf import dequantize

        made: dict[str, Any] = {"tensors": {}}
        for tensor in (self.held[one] for one in self.names[name]):
            result = self.processor.process(
                weights=dequantize(tensor.data, tensor.tensor_type),
                name=tensor.name,
                tensor_key_mapping=self.known,
                parsed_parameters=made,
            )
            if result.name is not None:
                made["tensors"][name] = torch.from_numpy(result.weights.copy())
        found = made["tensors"].get(name)
        if found is None or tuple(found.shape) != self.shapes[name]:
            raise ReplaceMeError(f"{self.path}: {printable(name)} has another shape than its class; take another file")
        return found.to(getattr(torch, self.dtype)).contiguous()


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
