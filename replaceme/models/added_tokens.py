"""Tokens that a tokenizer puts around a text of its own accord."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def added_tokens(tokenizer: "PreTrainedTokenizerBase") -> tuple[list[int], list[int]]:
    """Return the tokens that a tokenizer puts before and after a text."""
    for text in ("a", tokenizer.decode([len(tokenizer) // 2])):
        bare, whole = tokenizer.encode(text, add_special_tokens=False), tokenizer.encode(text)
        for start in range(len(whole) - len(bare) + 1):
            if bare and whole[start : start + len(bare)] == bare:
                return whole[:start], whole[start + len(bare) :]
    return [], []
