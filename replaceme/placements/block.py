"""`block`: a map of the whole residual stream after the carrier, a linear layer of its own (A.9 of arXiv 2505.02819).

m = hidden_states[start-1], r = hidden_states[end-1]. It changes no weight, as none can take such a map up: the
checkpoint gets a layer more, and brings the code for it (see `custom_code`).
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from replaceme.core.errors import ReplaceMeError
from replaceme.core.places import Span
from replaceme.placements.placement import Placement, Rows, check_language_model, device_of, mapped

if TYPE_CHECKING:
    import torch
    from torch import nn

    from replaceme.activations.capture import Activations
    from replaceme.activations.recycled_neurons import Recycled
    from replaceme.models.checkpoints import Checkpoint
    from replaceme.models.family import Family
    from replaceme.transforms.transform import Transform

LAYER = "replacement"  # its name in a block, for `modeling_replaceme`


class Block(Placement):
    """A layer after the carrier."""

    name = "block"
    description = (
        "onto the whole residual stream after the carrier, as a linear layer of its own (the saved model then needs "
        "`trust_remote_code`)"
    )
    on_stream = True
    own_code = True
    put = "added after"

    def rows(self, activations: "Activations", cut: Span, recycled: "Recycled | None" = None) -> Rows:
        """Return (the state after the carrier, that after the cut)."""
        return activations.hidden_states[cut[0] - 1], (activations.hidden_states[cut[1] - 1],)

    def check(self, family: "Family", config: dict[str, Any], where: str) -> None:
        """Blocks of a language model, whose tensors transformers leaves their names."""
        check_language_model(self.name, family, where)
        if not family.own_layers:
            raise ReplaceMeError(
                f"{where}: transformers renames tensors of this architecture, which placement block cannot; "
                "use placement mlp"
            )

    def hooks(self, base_model: "nn.Module", family: "Family", cut: Span, transform: "Transform") -> Iterator[Callable]:
        """Yield the carrier puts out T of its output."""
        carrier = family.block_modules(base_model)[cut[0] - 1]
        yield mapped(carrier, transform, device_of(carrier, carrier), lambda output: output)

    def added_layers(
        self, checkpoint: "Checkpoint", cut: Span, transform: "Transform"
    ) -> "dict[str, dict[str, torch.Tensor]]":
        """Return T^T [hidden, hidden] beside the carrier's down projection; names are those of the source."""
        carrier = cut[0] - 1
        name = f"{checkpoint.family.blocks}.{carrier}.{LAYER}.weight"
        return {checkpoint.folded(carrier)[0]: {name: transform.matrix.T}}
