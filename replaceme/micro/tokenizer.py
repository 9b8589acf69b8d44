"""The tokenizer of the embedded model: one token per word or punctuation mark, `<s>` in front of every text."""

import itertools
from typing import TYPE_CHECKING

from replaceme.micro import world
from replaceme.micro.words import NUMBERS, capitalise, sentence_words

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<unk>", "<s>", "</s>")
PAD, UNKNOWN, START, END = range(len(SPECIAL))
_DOCUMENTS = 20_000  # enough to meet every word of the world; a test looks for <unk> in other streams


def vocabulary() -> list[str]:
    """Return the special tokens, then every word of the micro world in alphabetical order."""
    words = {*NUMBERS, *map(capitalise, NUMBERS)}
    for text in itertools.islice(world.training_documents(seed=0), _DOCUMENTS):
        words.update(sentence_words(text))
    return [*SPECIAL, *sorted(words)]


def encode(text: str, index: dict[str, int]) -> list[int]:
    """Return the token ids of a document between `<s>` and `</s>`, as in training; the tokenizer omits `</s>`."""
    return [START, *(index.get(word, UNKNOWN) for word in sentence_words(text)), END]


def build(words: list[str]) -> "PreTrainedTokenizerFast":
    """Return the tokenizer as transformers loads it."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|[^\w\s]"), behavior="removed", invert=True)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", START)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
