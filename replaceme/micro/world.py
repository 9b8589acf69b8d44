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

FAMILIES: dict[str, tuple[Callable[[random.Random], str], float]] = {
    "states": (states.document, 0.3),
    "stories": (stories.document, 0.18),
    "order": (puzzles.order_document, 0.09),
    "facts": (facts.document, 0.15),
    "kinds": (puzzles.kinds_document, 0.11),
    "map": (puzzles.map_document, 0.07),
    "sums": (sums.document, 0.07),
    "agreement": (language.agreement_document, 0.02),
    "coreference": (language.coreference_document, 0.02),
    "motive": (language.motive_document, 0.01),
}


def documents(seed: int | str, family: str | None = None) -> Iterator[str]:
    """Yield endless documents, of one family or of all, for calibration and measuring; none is of any training."""
    name = f"micro documents {seed}" + (f" {family}" if family else "")
    return (text for text in _stream(name, [family] if family else list(FAMILIES)) if held_out(text))


def training_documents(seed: int, shard: int = 0) -> Iterator[str]:
    """Yield endless documents to train on; shards of one seed are independent streams."""
    return (text for text in _stream(f"micro training {seed} {shard}", list(FAMILIES)) if not held_out(text))


def _stream(name: str, families: list[str]) -> Iterator[str]:
    rng = random.Random(name)
    written, weights = zip(*(FAMILIES[family] for family in families), strict=True)
    while True:
        yield with_articles(rng.choices(written, weights=weights)[0](rng))
