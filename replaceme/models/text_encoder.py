"""Recognise encoders of text: models that put out states, masked tokens or classes, and predict no next token.

BERT and its kin are encoders, and so are decoders saved as embedding models, such as Qwen3-Embedding, and classifiers.
The `architectures` of config.json tell, or an entry that lets tokens see those after them, or the files of
sentence-transformers beside it.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from replaceme.core.errors import ReplaceMeError, printable
from replaceme.core.files import read_json
from replaceme.models.families import FAMILIES
from replaceme.models.family import SECTION
from replaceme.models.weights import SINGLE

BESIDE = "modules.json"  # of sentence-transformers, as are folders of this name
POOLED = re.compile(r"\d+_Pooling(/.*)?")
OURS = "sentence_transformers."  # how its own kinds of modules begin
WITH_WEIGHTS = ("Dense", "LayerNorm", "LSTM", "CNN")  # how those end that have weights of their own
EMBEDS = "replaceme_embeds"  # entry of a config.json in memory alone: such files lie beside it
# classes that are encoders, by the end of their names; transformers has an auto class for each
KINDS = ("Model", "ForMaskedLM", "ForPreTraining", "ForSequenceClassification", "ForTokenClassification")
CLASS = re.compile(rf"\w+?(?<!LMHead)(?<!DoubleHeads)(?<!ForReward)({'|'.join(KINDS)})")
# config entries that let the tokens of a decoder see those after them
BOTH_WAYS = (("use_bidirectional_attention", True), ("is_causal", False))
OF_PICTURES = "vision"  # Gemma 4: only the tokens of a picture see those after them


def is_text_encoder(config: dict[str, Any]) -> bool:
    """Return whether a config.json is of an encoder of text."""
    model_type = config["model_type"]
    known = FAMILIES.get(model_type)
    if isinstance(config.get(SECTION), dict) or (known is not None and not known.predicts):
        return False
    if config.get("is_encoder_decoder") or config.get("add_cross_attention"):
        return False
    names = config.get("architectures") or []
    if config.get(EMBEDS) or any(says(config, key, value) for key, value in BOTH_WAYS):
        return all(CLASS.fullmatch(name) or name.endswith("ForCausalLM") for name in names)
    if names:
        return all(CLASS.fullmatch(name) for name in names)
    return known is None and not config.get("is_decoder") and model_type in masked_types()


def says(config: dict[str, Any], key: str, value: bool) -> bool:
    """Return whether an entry of a config.json has a value, of all its tokens."""
    return config.get(key) not in (None, OF_PICTURES) and bool(config[key]) is value


def masked_types() -> set[str]:
    """Return the model types of transformers that are trained to predict masked tokens."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    return set(MODEL_FOR_MASKED_LM_MAPPING_NAMES)


def auto_class(config: dict[str, Any]) -> str:
    """Return the name of the auto class of transformers that loads all of an encoder: by the class that it names, else
    that of the states alone.
    """
    named = CLASS.fullmatch((config.get("architectures") or [""])[0])
    kind = named[1] if named else "Model"
    return "AutoModel" if kind == "Model" else f"AutoModel{kind}"


def with_beside(config: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Return a config.json that says whether the files beside it are those of an embedding model."""
    pooled = any(name == BESIDE or POOLED.fullmatch(name) for name in names)
    return {**config, EMBEDS: True} if pooled else config


def as_stored(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config.json without what it has in memory alone."""
    return {key: value for key, value in config.items() if key != EMBEDS}


def check_modules(folder: Path) -> None:
    """Raise ReplaceMeError where the modules of sentence-transformers in a folder need code or pickles, which are
    not copied.
    """
    if not (folder / BESIDE).is_file():
        return
    modules = read_json(folder / BESIDE, "download it again")
    for one in modules if isinstance(modules, list) else []:
        kind, path = (str(one.get(key, "")) if isinstance(one, dict) else "" for key in ("type", "path"))
        if not kind.startswith(OURS):
            raise ReplaceMeError(
                f"{folder / BESIDE}: module {printable(kind)!r} is code of the model's own, which is neither run nor "
                "copied; remove it where transformers' class does without"
            )
        weights = folder / Path(path).name / SINGLE
        if kind.endswith(WITH_WEIGHTS) and not weights.is_file():
            raise ReplaceMeError(f"{weights}: missing; a pickle is not copied, convert it to safetensors")
