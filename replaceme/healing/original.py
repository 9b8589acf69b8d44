"""The model that a shortened checkpoint was made from, as the teacher of a healing."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from replaceme.activations.comparison import compare
from replaceme.activations.divergence import Predictions, log_probabilities
from replaceme.activations.head import Head
from replaceme.calibration.tokens import Tokens
from replaceme.core.errors import ReplaceMeError
from replaceme.models.checkpoints import load_record, resolve
from replaceme.models.loading import Held, load_causal_model
from replaceme.models.model_record import ModelRecord

if TYPE_CHECKING:
    from torch import nn


def find_original(shortened: dict[str, Any], given: str | Path | None, folder: str | Path) -> ModelRecord:
    """Return the record of the model before a shortening, whose record is that of `folder`.

    `given` names it: a folder, a Hub id or a model.json; else the source in the record does. Raises ReplaceMeError
    where it is not there, or has other files than the shortened model was made from.
    """
    made_from = shortened.get("original", shortened["source"])
    try:
        record = resolve(made_from["source"], made_from["revision"]) if given is None else load_record(given)
    except ReplaceMeError as error:
        if given is not None:
            raise
        raise ReplaceMeError(
            f"{folder}: made from {made_from['source']}, which is not found ({error}); name the original model by "
            "`--original`, or `original=`"
        ) from error
    if record.files != made_from["files"]:
        raise ReplaceMeError(
            f"{given or made_from['source']}: not the model that {folder} was made from, as files differ; name that by "
            "`--original`, or `original=`"
        )
    return record


class Teacher:
    """The original model, loaded as the shortened one is; it lets go of its memory where something else needs it."""

    def __init__(self, record: ModelRecord, dtype: str, device: str, held: Held) -> None:
        self.record, self._how = record, (dtype, device, held)
        self._head: Head | None = None

    def predictions(self, batch: Tokens) -> Predictions:
        """Return what it predicts for a batch, without gradients."""
        with torch.no_grad():
            return Predictions.of(self._loaded(), batch)

    def divergence(self, model: "nn.Module", tokens: Tokens) -> float:
        """Return the mean KL divergence of a model's predictions from its own, over all unmasked tokens, in nats."""
        _, found = compare(self._loaded().model, [partial(log_probabilities, model)], tokens, "divergence")
        return found.mean_divergence

    def rest(self) -> None:
        """Leave the memory until the next batch."""
        self._head = None

    def _loaded(self) -> Head:
        if self._head is None:
            self._head = Head(load_causal_model(self.record.folder, *self._how))
        return self._head
