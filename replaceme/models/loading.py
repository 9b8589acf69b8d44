"""Load models and tokenizers: local files only, complete, no code of the checkpoint's own.

A checkpoint with linear layers of their own (placement `block`) is loaded by this package's copy of the code that lies
beside it (see `custom_code`).
"""

import logging
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaceme.config.tables import CACHE
from replaceme.core.errors import ReplaceMeError, in_one_line, printable
from replaceme.core.files import read_json
from replaceme.core.quiet import quiet_transformers
from replaceme.models.cache import cache_bytes_per_token
from replaceme.models.checkpoints import Checkpoint, open_checkpoint, read_config
from replaceme.models.config_defaults import accepted
from replaceme.models.custom_code import check_code, is_separate, original_config
from replaceme.models.generation_config import special_tokens
from replaceme.models.model_config import has_text_tower, is_encoder, is_of_images, stored_dtype
from replaceme.models.probed import class_with_head
from replaceme.models.quantised import alike_on_every_cpu, in_4bit
from replaceme.models.text_encoder import is_text_encoder
from replaceme.models.unloaded_tensors import named_as_unloaded

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)
PLAIN = ("PreTrainedTokenizerFast", "TokenizersBackend")  # classes that read tokenizer.json as it is
SAMPLE = "The quick brown fox, 3 times; it's over."
POOLER = "pooler."  # on top of an encoder, which many are saved without


@dataclass(frozen=True)
class Held:
    """The way a model's weights are held: over how many GPUs, in 4 bits or as stored, all at once or block by block.

    `streaming`: always, never, or auto, where they do not fit (see `streaming.needed`).
    """

    gpus: int = 1
    load_in_4bit: bool = False
    streaming: str = "never"

    def of_type(self, dtype: str) -> str:
        """Describe the number type in which a forward pass computes, for records."""
        return f"{dtype}, weights in 4 bits" if self.load_in_4bit else dtype


WHOLE = Held()


@dataclass(frozen=True)
class RunsOn:
    """The device and number type of a measured model: `gpus` are those that its weights are spread over."""

    device: str = "cpu"
    dtype: str = "float32"
    gpus: int = 1

    @property
    def held(self) -> Held:
        """Way in which its weights are held."""
        return Held(self.gpus)


ON_CPU = RunsOn()


def load_causal_model(folder: str | Path, dtype: str, device: str, held: Held = WHOLE) -> "PreTrainedModel":
    """Load the model of a checkpoint folder with its head, in inference mode; errors as in `load_base_model`."""
    if is_encoder(config := read_config(folder)):
        raise ReplaceMeError(f"{folder}: an encoder has no head of a language model; nothing to measure")
    return _load(class_with_head(config), folder, dtype, device, held)


def load_text_model(folder: str | Path, dtype: str, device: str, held: Held = WHOLE) -> "PreTrainedModel":
    """Load the model of a checkpoint folder with the head that it has, also an encoder of text; errors as in
    `load_base_model`.
    """
    return _load(class_with_head(read_config(folder)), folder, dtype, device, held)


def load_base_model(folder: str | Path, dtype: str, device: str, held: Held = WHOLE) -> "PreTrainedModel":
    """Load the blocks of a checkpoint folder without its head (of CLIP and SigLIP: those of images), in inference mode.

    Raises ReplaceMeError in one line for a missing, truncated or foreign folder, and for weights that do not fill the
    model (transformers would initialise them at random and only warn).
    """
    from transformers import AutoModel

    if is_text_encoder(config := read_config(folder)):
        return load_text_model(folder, dtype, device, held).base_model
    if not is_of_images(config):
        model, missing = _loaded(AutoModel, folder, dtype, device, held)
        if missing:  # the embedding may be stored as the head alone, which the class with a head knows
            del model
            model = _load(class_with_head(config), folder, dtype, device, held).base_model
        return model
    # with the class that saved it, as the bare one may have parts of its own (poolers) that were not
    model = _load(_saved_class(config) or AutoModel, folder, dtype, device, held).base_model
    return getattr(model, "vision_model", model)


def load_image_text_model(folder: str | Path, dtype: str, device: str, held: Held = WHOLE) -> "PreTrainedModel":
    """Load both towers of a checkpoint of images and texts, in inference mode; errors as in `load_base_model`."""
    from transformers import AutoModel

    if not has_text_tower(read_config(folder)):
        raise ReplaceMeError(f"{folder}: no encoder of both images and texts; zeroshot has nothing to compare")
    return _load(AutoModel, folder, dtype, device, held)


def load_tokenizer(folder: str | Path) -> Any:
    """Load the tokenizer that lies beside a checkpoint."""
    from transformers import AutoConfig, AutoTokenizer

    config = read_config(folder)
    # the class of a tokenizer may depend on the architecture, which AutoTokenizer would not find behind our name
    given = {"config": AutoConfig.for_model(**original_config(config))} if is_separate(config) else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True, **given)
    except Exception as error:  # of several libraries, and what a broken file makes them raise can be anything
        accepted(original_config(config), f"{folder}/config.json")  # which is read first, and may be what is wrong
        raise ReplaceMeError(
            f"{folder}: no usable tokenizer ({in_one_line(error)}); put tokenizer.json and tokenizer_config.json of "
            "this model there"
        ) from error
    _warn_if_read_otherwise(Path(folder), tokenizer)
    return tokenizer


def _warn_if_read_otherwise(folder: Path, tokenizer: Any) -> None:
    """Warn of a tokenizer.json that transformers reads by a class of the model's type, and so otherwise than it says.

    That class replaces parts of the file where tokenizer_config.json names no class of its own.
    """
    path, settings = folder / "tokenizer.json", folder / "tokenizer_config.json"
    if not (path.is_file() and settings.is_file()) or type(tokenizer).__name__ in PLAIN:
        return
    named = read_json(settings, "download it again")
    if not isinstance(named, dict) or named.get("tokenizer_class") not in PLAIN:
        return
    if _encoded(path, path.stat().st_mtime_ns) != tokenizer(SAMPLE, add_special_tokens=False)["input_ids"]:
        log.warning(
            "%s: transformers reads it as %s, by the model's type, and encodes text otherwise than the file says; use "
            "a tokenizer that was made for this type", path, type(tokenizer).__name__,
        )  # fmt: skip


@lru_cache(maxsize=8)
def _encoded(path: Path, changed: int) -> list[int]:
    """Return the ids of SAMPLE by a tokenizer.json, which may take a second to read, when it was last `changed`."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(path)).encode(SAMPLE, add_special_tokens=False).ids


def size(model: "PreTrainedModel", folder: str | Path) -> dict[str, int | None]:
    """Return the number of parameters of a loaded model, the bytes of the weights in its folder, and those of the
    key-value cache of one token in the checkpoint's type, None of an encoder and where no cache can be used.
    """
    checkpoint = open_checkpoint(folder, separate=True)
    dtype = stored_dtype(checkpoint.config)
    cache = cache_bytes_per_token(model, dtype) if checkpoint.family.predicts else None
    return {"parameters": model.num_parameters(), "file_bytes": checkpoint.file_bytes, CACHE: cache}


def _load(auto_class: Any, folder: str | Path, dtype: str, device: str, held: Held) -> "PreTrainedModel":
    """Load a model all of whose weights are stored."""
    model, missing = _loaded(auto_class, folder, dtype, device, held)
    if missing:
        raise ReplaceMeError(
            f"{folder}: incomplete checkpoint, {len(missing)} tensors missing, the first is {missing[0]}; "
            "make or download it again"
        )
    return model


def _loaded(
    auto_class: Any, folder: str | Path, dtype: str, device: str, held: Held
) -> "tuple[PreTrainedModel, list[str]]":
    """Load a model in inference mode; return it with the names of its weights that are not stored, which are random."""
    import torch

    checkpoint = open_checkpoint(folder, separate=True)
    stored = getattr(torch, dtype, None)
    if not isinstance(stored, torch.dtype) or not stored.is_floating_point:
        raise ReplaceMeError(f"dtype {dtype!r} is not a torch type; use float32, bfloat16 or float16")
    options = _placed(device, held.gpus) | (in_4bit(getattr(torch, dtype)) if held.load_in_4bit else {})
    if checkpoint.family.predicts:
        options["generation_config"] = special_tokens(folder)
    try:
        with quiet_transformers():
            model, loading = _model_class(auto_class, folder).from_pretrained(
                folder,
                dtype=getattr(torch, dtype),
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
                **options,
            )
    except Exception as error:  # a config.json that is wrong in some entry can make it raise anything
        # it lists such tensors on the screen, which is silent here
        mismatched = "ignore_mismatched_sizes" in str(error)
        reason = "tensors have other shapes than config.json says" if mismatched else in_one_line(error)
        raise ReplaceMeError(
            f"{folder}: transformers cannot load it ({reason}); are config.json and weights of one model?"
        ) from error
    _report_unused(checkpoint, loading["unexpected_keys"])
    if "disk" in getattr(model, "hf_device_map", {}).values():
        raise ReplaceMeError(f"{folder}: does not fit {held.gpus} GPUs; raise `gpus`, or use `streaming: always`")
    if held.load_in_4bit:
        alike_on_every_cpu(model)
    missing = (name for name in loading["missing_keys"] if checkpoint.family.predicts or not name.startswith(POOLER))
    return model.eval().requires_grad_(False), sorted(missing)


def _placed(device: str, gpus: int) -> dict[str, Any]:
    """Return where transformers puts the weights, one after the other, so that they are never whole in host memory."""
    import torch

    if device == "cpu":
        return {}
    if gpus == 1:
        return {"device_map": device}
    if torch.cuda.device_count() < gpus:
        raise ReplaceMeError(f"gpus: {gpus} asked for, torch sees {torch.cuda.device_count()}; lower `gpus`")
    # none to the host: a model that does not fit is streamed, which is faster
    return {"device_map": "auto", "max_memory": {k: _free(k) for k in range(gpus)}}


def _free(gpu: int) -> int:
    import torch

    return torch.cuda.mem_get_info(gpu)[0]


def _saved_class(config: dict[str, Any]) -> Any:
    """Return the class of transformers that a config.json names, if it belongs to that architecture."""
    import transformers

    named = getattr(transformers, str((config.get("architectures") or [None])[0]), None)
    right = getattr(getattr(named, "config_class", None), "model_type", None) == config["model_type"]
    return named if right else None


def _model_class(auto_class: Any, folder: str | Path) -> Any:
    """Return an auto class, or the package's substitute for models with linear layers of their own."""
    if not is_separate(read_config(folder)):
        return auto_class
    from replaceme.models.modeling_replaceme import ReplaceMeForCausalLM, ReplaceMeModel

    check_code(folder)
    return {one.auto_class: one for one in (ReplaceMeModel, ReplaceMeForCausalLM)}[auto_class.__name__]


def _report_unused(checkpoint: Checkpoint, unexpected: Collection[str]) -> None:
    """Warn of stored tensors that a language model does not use although they seemed to be its own."""
    if not checkpoint.family.predicts:
        return
    known = named_as_unloaded(checkpoint.family, checkpoint.config, unexpected).union(checkpoint.unloaded)
    heads = tuple(f"{head}." for head in checkpoint.family.head)  # of a model that is loaded without its own
    unused = sorted(name for name in set(unexpected) - known if not name.startswith(heads))
    if unused:
        log.warning(
            "%s: %d tensors that transformers does not load, the first is %s; they are kept as they are",
            checkpoint.folder, len(unused), printable(unused[0]),
        )  # fmt: skip
