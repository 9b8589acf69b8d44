"""The corpus of the embedded model: endless documents in simple English about a small invented world.

Nothing is read from anywhere: people walk about with things (states), short stories end as they must (stories),
towns have rivers and rulers (facts), and there are orders, maps and animals (puzzles), sums (sums) and plain grammar
(language). Every stream is drawn from `random.Random` seeded with a text that names its purpose, so the streams of
training, calibration and tasks never share a seed, whatever numbers are given. Documents are split by content as
well: `held_out` (CRC-32) gives an eighth of all possible documents to calibration and measurement, the rest to
training.
"""

import random
from collections.abc import Callable, Iterator

from replaceme.micro import facts, language, puzzles, states, stories, sums
from replaceme.micro.questions import held_out
from replaceme.micro.words import with_articles

FAMILIES: dict[Callable[[random.Random], str], float] = {
    states.document: 0.3,
    stories.document: 0.18,
    puzzles.order_document: 0.09,
    facts.document: 0.15,
    puzzles.kinds_document: 0.11,
    puzzles.map_document: 0.07,
    sums.document: 0.07,
    language.agreement_document: 0.02,
    language.coreference_document: 0.02,
    language.motive_document: 0.01,
}


def documents(seed: int | str) -> Iterator[str]:
    """Endless documents for calibration and for measuring; training sees none of them, whatever its seed."""
    return (text for text in _stream(f"micro documents {seed}") if held_out(text))


def training_documents(seed: int, shard: int = 0) -> Iterator[str]:
    """Endless documents to train on; shards of one seed are independent streams."""
    return (text for text in _stream(f"micro training {seed} {shard}") if not held_out(text))


def _stream(name: str) -> Iterator[str]:
    rng = random.Random(name)
    families, weights = list(FAMILIES), list(FAMILIES.values())
    while True:
        family = rng.choices(families, weights=weights)[0]
        yield with_articles(family(rng))
