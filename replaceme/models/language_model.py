"""Check that a checkpoint of a supported architecture is the language model that its config.json says, by its entries,
tensors and files.

What other classes have the same blocks is either an encoder (`text_encoder`) or no model that can be shortened.
"""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from replaceme.core.errors import ReplaceMeError, printable
from replaceme.models.text_encoder import BESIDE, BOTH_WAYS, POOLED, says

if TYPE_CHECKING:
    from replaceme.models.family import Family

NAMES = re.compile(r"\w+(ForCausalLM|LMHeadModel|GenerationDecoder)")  # of classes of transformers
# what heads are called that put out something else than logits of tokens
OTHER_HEADS = re.compile(
    r"(score|scores|classifier|classification_head|qa_outputs|multiple_choice_head|rm_head|rank\w*_head|reward\w*"
    r"|regression\w*|\w*text_proj\w*)\."
)
# config entries that make another model of one, and what they make of it
ENTRIES = (
    ("is_encoder_decoder", True, "it has an encoder beside its decoder"),
    ("add_cross_attention", True, "its blocks attend to an encoder"),
)
REMEDY = "give the language model that it was made from"


def check_purpose(config: dict[str, Any], where: str) -> None:
    """Raise ReplaceMeError where the config.json of a text family is not of a language model."""
    for name in config.get("architectures") or []:
        if not NAMES.fullmatch(name):
            raise ReplaceMeError(
                f"{where}: config.json says `architectures`: {printable(name)}, which is neither a language model nor "
                f"an encoder of text; {REMEDY}"
            )
    for key, value, reason in (*ENTRIES, *((*one, "its tokens see those after them") for one in BOTH_WAYS)):
        if says(config, key, value):
            raise ReplaceMeError(
                f"{where}: config.json says `{key}`: {str(value).lower()}: no language model, as {reason}; {REMEDY}"
            )


def check_head(family: "Family", tied: bool, tensors: Iterable[str], where: str) -> None:
    """Raise ReplaceMeError where the tensors belong to another head than a language model's, or to none.

    `tied`: whether the head has the embedding's weights, and so no tensor.
    """
    names = sorted(tensors)
    other = next((name for name in names if OTHER_HEADS.match(name)), None)
    if other is not None:
        raise ReplaceMeError(
            f"{where}: tensor {printable(other)} belongs to a classifier or a reward model, not to a language model; "
            f"{REMEDY}"
        )
    if not tied and not any(name.startswith(f"{head}.") for name in names for head in family.head):
        raise ReplaceMeError(
            f"{where}: no tensor {family.head[0]}.weight, nor `tie_word_embeddings` in config.json: incomplete, or no "
            f"language model (an embedding model, say); download it again, or {REMEDY}"
        )


def check_beside(names: Iterable[str], where: str) -> None:
    """Raise ReplaceMeError where sentence-transformers' files lie beside a model of text."""
    found = next((name for name in sorted(names) if name == BESIDE or POOLED.fullmatch(name)), None)
    if found is not None:
        raise ReplaceMeError(f"{where}: {found} beside it: an embedding model of sentence-transformers; {REMEDY}")
