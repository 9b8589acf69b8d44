"""Training text of the embedded model as one long array of token ids, generated on all cores."""

import multiprocessing
import os
from typing import TYPE_CHECKING

from replaceme.core.progress import progress
from replaceme.micro import tokenizer, world

if TYPE_CHECKING:
    import numpy as np

SHARD_TOKENS = 500_000


def _shard(job: tuple[int, int, int, dict[str, int]]) -> "np.ndarray":
    import numpy as np

    seed, shard, tokens, index = job
    ids: list[int] = []
    for text in world.training_documents(seed, shard):
        if len(ids) >= tokens:
            break
        ids += tokenizer.encode(text, index)
    return np.array(ids[:tokens], dtype=np.int16)


def training_tokens(words: list[str], tokens: int, seed: int, processes: int | None = None) -> "np.ndarray":
    """Return `tokens` ids (int16) of concatenated documents; the same for any number of processes."""
    import numpy as np

    index = {word: number for number, word in enumerate(words)}
    sizes = [min(SHARD_TOKENS, tokens - start) for start in range(0, tokens, SHARD_TOKENS)]
    jobs = [(seed, shard, size, index) for shard, size in enumerate(sizes)]
    if processes == 1 or len(jobs) == 1:
        return np.concatenate([_shard(job) for job in jobs])
    with multiprocessing.get_context("spawn").Pool(processes or os.cpu_count()) as pool:
        return np.concatenate(list(progress(pool.imap(_shard, jobs), "corpus", total=len(jobs), unit="shard")))
