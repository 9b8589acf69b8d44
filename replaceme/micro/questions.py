"""A question about a text of the micro world, as documents print it and as tasks ask it."""

import zlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Question:
    """A question with its one-word answer; `choices` hold the answer, or are empty where documents alone ask it."""

    text: str
    answer: str
    choices: tuple[str, ...] = ()

    def answered(self) -> str:
        """Return the question with its answer, as documents show it."""
        return f"{self.text} Answer: {self.answer}."


def held_out(text: str) -> bool:
    """Return whether a text belongs to the eighth of all texts that training never sees (by CRC-32, so for ever)."""
    return zlib.crc32(text.encode()) % 8 == 0
