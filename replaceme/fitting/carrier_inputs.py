"""The states that the first carrier of a cut is given: the same in the whole model and in the shortened one.

They do not change while maps are trained, so the blocks before the carrier need to run over a text once. What they put
out is kept in the carrier's device if it takes at most DEVICE_SHARE of its free memory, else in main memory if it takes
at most HOST_SHARE of that, else it is computed again for each batch.
"""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from replaceme.activations.capture import Wanted, capture, forward
from replaceme.calibration.tokens import Tokens
from replaceme.core.memory import free_memory
from replaceme.core.progress import progress

if TYPE_CHECKING:
    from replaceme.fitting.fit_cut import Passes

log = logging.getLogger(__name__)
DEVICE_SHARE = 0.1
HOST_SHARE = 0.25


class CarrierInputs:
    """Inputs of block `carrier`, 1 or later, in the model's own type, for sequences of a text by their numbers."""

    def __init__(self, passes: "Passes", carrier: int) -> None:
        self.passes, self.wanted = passes, Wanted(frozenset({carrier - 1}))
        self._rows: dict[int, torch.Tensor] = {}  # of a sequence, [unmasked tokens, hidden]

    @property
    def kept(self) -> bool:
        """True if the states are in memory."""
        return bool(self._rows)

    def keep(self, numbers: Sequence[int]) -> None:
        """Run the sequences of these numbers, and keep their states where there is room."""
        device = self._place(numbers)
        if device is None:
            return
        batches = [numbers[k : k + self.passes.batch_size] for k in range(0, len(numbers), self.passes.batch_size)]
        texts = progress([self.passes.tokens[torch.tensor(one)] for one in batches], "carrier", unit="batch")
        found = capture(self.passes.model, self.passes.family, texts, self.wanted)
        for one, activations in zip(batches, found, strict=True):
            [states] = activations.hidden_states.values()
            rows = states[activations.mask].to(device).split(activations.mask.sum(1).tolist())
            self._rows |= dict(zip(one, rows, strict=True))

    def of(self, numbers: Sequence[int], batch: Tokens) -> torch.Tensor:
        """Return the states [sequences, tokens, hidden] of a batch, which is trimmed; kept ones are zero on padding."""
        if not self.kept:
            with torch.no_grad():
                found = forward(self.passes.model, self.passes.family, batch, self.wanted, gradients=True)
            return next(iter(found.hidden_states.values()))
        rows = torch.cat([self._rows[number] for number in numbers]).to(self.passes.device)
        states = rows.new_zeros(*batch.mask.shape, rows.shape[1])
        states[batch.mask.to(states.device)] = rows
        return states

    def _place(self, numbers: Sequence[int]) -> torch.device | str | None:
        """Return the device whose memory holds the states of these sequences, None where none does."""
        model, tokens = self.passes.model, self.passes.tokens
        count = int(tokens.mask[torch.tensor(numbers)].sum())
        needed = count * model.config.get_text_config().hidden_size * model.dtype.itemsize
        device = torch.device(self.passes.device)
        for place, share in ((device, DEVICE_SHARE), (torch.device("cpu"), HOST_SHARE)):
            free = torch.cuda.mem_get_info(place)[0] if place.type == "cuda" else free_memory("cpu")
            if needed <= share * free:
                log.info("kl: the first carrier's inputs, %.2f GB, are kept in the memory of %s", needed / 1e9, place)
                return place
        log.info("kl: the first carrier's inputs, %.2f GB, are computed again for each batch", needed / 1e9)
        return None
