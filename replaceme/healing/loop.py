"""The training loop of a healing: AdamW on the mean loss over tokens, interrupted and resumed to the same bits.

The loss of a token is that of the next token, or the divergence of its prediction from a teacher's.

A loop of our own rather than transformers' Trainer: the Trainer (and accelerate's `save_state`) keeps the optimiser and
the random states as pickles, which this package neither writes nor reads, and averages over passes instead of over
tokens. One process, also where the blocks lie on several GPUs; `accumulation` stands for more.

Everything a step does follows from its number: its sequences from seed and epoch, dropout from seed and pass, the
learning rate from the schedule. So a checkpoint is parameters, moments and losses, one safetensors file, by the
mechanism of all trainings (`transforms.training`).
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from replaceme.activations.capture import trimmed
from replaceme.activations.divergence import Predictions, descend
from replaceme.activations.gradients import backward, recomputing, repeatable
from replaceme.activations.language_loss import are_counted, token_losses
from replaceme.activations.text_order import TextOrder
from replaceme.calibration.tokens import Tokens
from replaceme.config.healings import TrainingConfig
from replaceme.core.errors import ReplaceMeError
from replaceme.core.progress import progress
from replaceme.healing.original import Teacher
from replaceme.healing.parameters import Trainable
from replaceme.transforms.resume import State
from replaceme.transforms.training import Schedule, Training

if TYPE_CHECKING:
    from torch import nn


def train(
    model: "nn.Module",
    trained: Trainable,
    tokens: Tokens,
    options: TrainingConfig,
    state: State,
    teacher: Teacher | None = None,
) -> list[float]:
    """Train, and return the mean loss of each step before it, in nats per token; the model is left in inference mode.

    A step is over `batch_size * accumulation` sequences, and its loss the mean over all their tokens that follow one,
    or with a teacher over all of them.
    Raises ReplaceMeError for a loss that is not finite, and for sequences without two tokens.
    """
    optimiser = _optimiser(trained, options)
    training = Training(trained.parameters, optimiser, schedule_of(options), state, options.clip)
    losses = torch.zeros(options.steps, dtype=torch.float64)
    saved = training.restore()
    if saved is not None:
        losses.copy_(saved[0]["losses"])
        trained.follow()
    order = TextOrder(len(tokens), options.seed)
    left = range(training.done, options.steps)
    with _training(model, trained, options):
        for step in progress(left, "healing", len(left), "step"):
            batches = order.batches(tokens, step, options.batch_size, options.accumulation)
            losses[step] = _gradients(model, trained, batches, options, step, teacher)
            if not math.isfinite(losses[step]):
                raise ReplaceMeError(
                    f"healing: the loss of step {step + 1} is {float(losses[step])}; lower `learning_rate`"
                )
            training.step()
            trained.follow()
            training.save(lambda: ({"losses": losses}, {}))
    return losses.tolist()


def schedule_of(options: TrainingConfig) -> Schedule:
    """Return the learning rates of a healing."""
    return Schedule(options.steps, options.learning_rate, options.warmup, options.schedule)


def _gradients(
    model: "nn.Module",
    trained: Trainable,
    batches: list[Tokens],
    options: TrainingConfig,
    step: int,
    teacher: Teacher | None,
) -> float:
    """Compute the gradient of the mean loss over the tokens of all batches; return that loss."""
    count = sum(batch.count if teacher else int(are_counted(batch).sum()) for batch in batches)
    if not count:
        raise ReplaceMeError(f"healing: no sequence of step {step + 1} has two tokens; give longer texts")
    total = 0.0
    for number, batch in enumerate(batches):
        torch.manual_seed((options.seed << 32) + step * options.accumulation + number)  # dropout
        if teacher is None:
            loss = token_losses(model, batch)[0].sum() / count
            backward(loss)
        else:
            shorter = trimmed(batch)
            values = descend(teacher.predictions(shorter), Predictions.of(model, shorter), 1 / count)
            loss = values.double().sum() / count
        trained.collect()
        total += float(loss.detach())
    return total


@contextmanager
def _training(model: "nn.Module", trained: Trainable, options: TrainingConfig) -> Iterator[None]:
    """Put the model in training mode, deterministically, within the block; restore mode and random states
    afterwards.
    """
    model.train()
    recomputed = trained.blocks if options.gradient_checkpointing else ()
    try:
        devices = {one.device for one in model.parameters() if one.is_cuda}
        with repeatable(), recomputing(recomputed), torch.random.fork_rng(devices=devices):
            yield
    finally:
        model.eval()


def _optimiser(trained: Trainable, options: TrainingConfig) -> torch.optim.AdamW:
    matrices = [parameter for parameter in trained.parameters.values() if parameter.dim() > 1]
    others = [parameter for parameter in trained.parameters.values() if parameter.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": options.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=options.learning_rate)
