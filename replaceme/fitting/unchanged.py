"""States of a text that stay the same while the maps of a cut are trained: computed once, and kept.

They are the whole model's prediction of every token, as the states before its head, and what the blocks before the
first carrier put out, which the shortened model has in common with it. Both are kept in the carrier's device if they
take at most DEVICE_SHARE of its free memory, else in main memory if they take at most HOST_SHARE of that, else they are
computed again for each batch.
"""

import logging
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch

from replaceme.activations.capture import trimmed
from replaceme.activations.head import Head
from replaceme.calibration.tokens import Tokens
from replaceme.core.memory import free_memory, unless_full
from replaceme.core.progress import progress

if TYPE_CHECKING:
    from torch import nn

    from replaceme.fitting.passes import Passes

log = logging.getLogger(__name__)
DEVICE_SHARE = 0.1
HOST_SHARE = 0.25
Rows = dict[int, torch.Tensor]  # of a sequence by its number, [unmasked tokens, ...]


class Unchanged:
    """Predictions of a whole model and inputs of one of its blocks, in the model's own type, for sequences of a text.

    `before` is the block whose output is the first carrier's input; None: there is none, or it cannot stand in for all
    that the carrier is given.
    """

    def __init__(self, passes: "Passes", head: Head, before: "nn.Module | None") -> None:
        self.passes, self.head, self.before = passes, head, before
        self._predictions: Rows = {}
        self._inputs: Rows = {}

    @property
    def kept(self) -> bool:
        """True if the states are in memory."""
        return bool(self._predictions)

    def keep(self, numbers: Sequence[int]) -> None:
        """Run the sequences of these numbers, and keep their states where there is room."""
        device = self._place(numbers, torch.device(self.passes.device), torch.device("cpu"))
        unless_full(
            partial(self._keep, numbers, device),
            partial(self._keep_on_host, numbers),
            "kl: the whole model's predictions",
            "not kept there",
        )

    def _keep(self, numbers: Sequence[int], device: torch.device | None) -> None:
        """Run the sequences and keep their states on a device, None: nothing."""
        if device is None:
            return
        size = self.passes.batch_size
        batches = [numbers[k : k + size] for k in range(0, len(numbers), size)]
        for some in progress(batches, "whole model", unit="batch"):
            batch = self.batch(some)
            predictions, inputs = self._run(batch)
            lengths = batch.mask.sum(1).tolist()
            self._predictions |= dict(zip(some, predictions.to(device).split(lengths), strict=True))
            if inputs is not None:
                rows = inputs[batch.mask.to(inputs.device)].to(device)
                self._inputs |= dict(zip(some, rows.split(lengths), strict=True))

    def _keep_on_host(self, numbers: Sequence[int]) -> None:
        """Keep the states in main memory if it has room, and none on the device."""
        self._predictions.clear()
        self._inputs.clear()
        self._keep(numbers, self._place(numbers, torch.device("cpu")))

    def batch(self, numbers: Sequence[int]) -> Tokens:
        """Return the tokens of some sequences, without columns of padding alone."""
        return trimmed(self.passes.tokens[torch.tensor(numbers)])

    def of(self, numbers: Sequence[int], batch: Tokens) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the states before the head [tokens, hidden] of a batch's unmasked tokens, and the first carrier's
        input [sequences, tokens, hidden], of which kept ones are zero on padding; without gradients.
        """
        if not self.kept:
            return self._run(batch)
        predictions = self._rows(self._predictions, numbers)
        if self.before is None:
            return predictions, None
        rows = self._rows(self._inputs, numbers)
        if batch.mask.all():
            return predictions, rows.view(*batch.mask.shape, *rows.shape[1:])
        states = rows.new_zeros(*batch.mask.shape, *rows.shape[1:])
        states[batch.mask.to(states.device)] = rows
        return predictions, states

    def _rows(self, kept: Rows, numbers: Sequence[int]) -> torch.Tensor:
        return torch.cat([kept[number] for number in numbers]).to(self.passes.device)

    def _run(self, batch: Tokens) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Run the whole model on a batch."""
        found: list[torch.Tensor] = []
        hook = self.before and self.before.register_forward_hook(
            lambda block, inputs, output: found.append(output[0] if isinstance(output, tuple) else output)
        )
        try:
            with torch.no_grad():
                predictions = self.head.states(batch)
        finally:
            if hook:
                hook.remove()
        return predictions, found[0] if found else None

    def _place(self, numbers: Sequence[int], *devices: torch.device) -> torch.device | None:
        """Return the first device whose memory holds the states of these sequences, None where none does."""
        model, tokens = self.passes.model, self.passes.tokens
        count = int(tokens.mask[torch.tensor(numbers)].sum()) * (1 if self.before is None else 2)
        needed = count * model.config.get_text_config().hidden_size * model.dtype.itemsize
        for place in devices:
            on_gpu = place.type == "cuda"
            free = torch.cuda.mem_get_info(place)[0] if on_gpu else free_memory("cpu")
            if needed <= (DEVICE_SHARE if on_gpu else HOST_SHARE) * free:
                log.info(
                    "kl: the whole model's predictions, %.2f GB, are kept in the memory of %s", needed / 1e9, place
                )
                return place
        log.info("kl: the whole model's predictions, %.2f GB, are computed again for each batch", needed / 1e9)
        return None
