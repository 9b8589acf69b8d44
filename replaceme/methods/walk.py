"""Send the calibration text through a model block by block, so that one block's statistics are in memory at a time.

The states between two blocks wait in host memory. To run block k the model itself is called, its earlier blocks pass
their input on and block k gets the stored state, so that masks and positions are the model's own (as in `streaming`).
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from replaceme.activations.beginning import beginning_at
from replaceme.activations.capture import Activations, Wanted, finite, forward, nan_error, trimmed
from replaceme.core.errors import ReplaceMeError
from replaceme.core.memory import free_memory

if TYPE_CHECKING:
    import torch
    from torch import nn

    from replaceme.fitting.passes import Passes


@contextmanager
def inputs_of(modules: "Mapping[str, nn.Module]") -> "Iterator[dict[str, torch.Tensor]]":
    """Record, within the block, the last first argument of each module, by name."""
    found: dict[str, torch.Tensor] = {}
    with ExitStack() as hooks:
        for name, module in modules.items():

            def keep(module: "nn.Module", args: "tuple[torch.Tensor]", name: str = name) -> None:
                found[name] = args[0]

            hooks.callback(module.register_forward_pre_hook(keep).remove)
        yield found


class Walk:
    """All batches of the text on their way through the blocks; `states` of each batch are those before block `at`."""

    def __init__(self, passes: "Passes", copies: int = 1) -> None:
        """Start at the first block. Raises ReplaceMeError where host memory cannot hold the states of so many
        blocks.
        """
        self.model, self.family = passes.model, passes.family
        self.batches = [trimmed(batch) for batch in passes.tokens.batches(passes.batch_size)]
        self.blocks = self.family.block_modules(self.model)
        self.states: list[torch.Tensor | None] = [None] * len(self.batches)
        self.at = 0
        weight = next(self.model.parameters())
        self.device = str(weight.device)
        tokens = sum(batch.mask.numel() for batch in self.batches)
        needed = copies * tokens * self.model.config.hidden_size * weight.itemsize
        if needed > free_memory("cpu"):
            raise ReplaceMeError(
                f"calibration: hidden states need {needed / 1e9:.1f} GB of memory, {free_memory('cpu') / 1e9:.1f} GB "
                "are free; lower `samples`"
            )

    @property
    def block(self) -> "nn.Module":
        """Next block."""
        return self.blocks[self.at]

    def visit(self, advance: bool = True) -> "Iterator[tuple[torch.Tensor | None, Activations]]":
        """Run every batch through the next block; yields (its input, None before block 0; mask and output) of each.

        The inputs lie in host memory. `advance`: the outputs are the states from now on. Raises ReplaceMeError on NaN
        or infinity.
        """
        wanted = Wanted(frozenset({self.at}))
        for number in range(len(self.batches)):
            found = self.run(number, wanted)
            yield self.states[number], found
            if advance:
                self.states[number] = found.hidden_states[self.at].cpu()
        self.at += advance

    def run(self, number: int, wanted: Wanted, first: int | None = None) -> Activations:
        """Run one batch from its state through block `first`, by default the next one, and those after it up to the
        last in use; returns what is wanted. Raises ReplaceMeError on NaN or infinity.
        """
        first = self.at if first is None else first
        with beginning_at(self.blocks, self.family, first, self.states[number]):
            found = forward(self.model, self.family, self.batches[number], wanted)
        if not finite(found):
            last = wanted.last
            what = "the output of block" if last in wanted.hidden_states else "what is computed up to block"
            raise ReplaceMeError(nan_error(self.model, f"{what} {last}", next(self.model.parameters()).dtype))
        return found
