"""The order in which a training takes the sequences of a text: it follows from a seed and the step alone."""

import torch

from replaceme.calibration.tokens import Tokens


class TextOrder:
    """Places of `count` sequences, epoch after epoch, each in an order of its own that follows from the seed."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed
        self._epoch, self._order = -1, torch.empty(0)

    def places(self, begin: int, end: int) -> list[int]:
        """Return the sequences from position `begin` of the training to `end`, the end not included."""
        return [self._at(position) for position in range(begin, end)]

    def batches(self, tokens: Tokens, step: int, size: int, passes: int = 1) -> list[Tokens]:
        """Return the batches of a step, from 0, of `passes` batches of `size` sequences each."""
        places = self.places(step * size * passes, (step + 1) * size * passes)
        return [tokens[torch.tensor(places[k : k + size])] for k in range(0, len(places), size)]

    def _at(self, position: int) -> int:
        epoch, place = divmod(position, self.count)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed((self.seed << 20) + epoch)
            self._epoch, self._order = epoch, torch.randperm(self.count, generator=generator)
        return int(self._order[place])
