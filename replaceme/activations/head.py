"""The head of a language model apart from its blocks: logits of chosen positions only, from the states before it.

Logits are a model's largest tensors, a vocabulary wide. What follows the projection (a cap, a scale) is for the model's
class to know: so the class itself runs, with chosen states in place of what its base model puts out.
"""

from typing import TYPE_CHECKING, Any

from replaceme.activations.capture import model_inputs
from replaceme.activations.hooks import running_instead
from replaceme.calibration.sequences import Pictured
from replaceme.calibration.tokens import Tokens

if TYPE_CHECKING:
    import torch
    from torch import nn

LOGITS = 2**26  # numbers in the logits that are made at once: 256 MB in float32


class Head:
    """The head of a loaded model; the model runs through `run`, so that the head knows in which form it puts out."""

    def __init__(self, model: "nn.Module") -> None:
        self.model, self.base = model, _without_head(model)
        self.rows = max(1, LOGITS // model.config.get_text_config().vocab_size)  # positions at once
        self._form: Any = None

    def run(self, **inputs: Any) -> Any:
        """Run the model up to its head, whose input is the `last_hidden_state` of what is returned."""
        return self._run(self.base, inputs)

    def _run(self, module: "nn.Module", inputs: dict[str, Any]) -> Any:
        output = module(**inputs)
        self._form = type(output)
        return output

    def states(self, batch: Tokens) -> "torch.Tensor":
        """Return the states before the head of the unmasked tokens of a batch, [tokens, hidden]."""
        # pictures go into the model around the decoder
        module = self.model.base_model if isinstance(batch, Pictured) else self.base
        found = self._run(module, model_inputs(module, batch)).last_hidden_state
        if batch.mask.all():  # nothing to choose, for which a GPU would be waited for
            return found.flatten(0, 1)
        return found[batch.mask.to(found.device)]

    def logits(self, states: "torch.Tensor") -> "torch.Tensor":
        """Return the logits [tokens, vocabulary] of states [tokens, hidden], after a `run`."""
        import torch

        given = self._form(last_hidden_state=states.unsqueeze(0))
        ids = torch.zeros(1, len(states), dtype=torch.int64, device=states.device)  # read by nothing that runs
        undo = running_instead(self.base, lambda *_, **__: given)
        try:
            return self.model(input_ids=ids, use_cache=False).logits[0]
        finally:
            undo()


def _without_head(model: "nn.Module") -> "nn.Module":
    """Return the decoder of a model, which not all models call through their base model; Llama 4's is one with a head,
    around the decoder.
    """
    base = model.get_decoder()
    while base.get_output_embeddings() is not None:
        base = next(one for one in base.children() if hasattr(one, "get_output_embeddings"))
    return base
