"""The training loop of a healing: AdamW on the mean loss of the next token, interrupted and resumed to the same bits.

A loop of our own rather than transformers' Trainer: the Trainer (and accelerate's `save_state`) keeps the optimiser and
the random states as pickles, which this package neither writes nor reads, and averages over passes instead of over
tokens. One process, also where the blocks lie on several GPUs; `accumulation` stands for more.

Everything a step does follows from its number: its sequences from seed and epoch, dropout from seed and pass, the
learning rate from the schedule. So a checkpoint is parameters, moments and losses, one safetensors file, by the same
mechanism as unfinished fits (`transforms.resume`).
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from replaceme.activations.gradients import backward, repeatable
from replaceme.activations.language_loss import are_counted, token_losses
from replaceme.activations.text_order import TextOrder
from replaceme.calibration.tokens import Tokens
from replaceme.config.healings import TrainingConfig
from replaceme.core.errors import ReplaceMeError
from replaceme.core.progress import progress
from replaceme.healing.parameters import Trainable
from replaceme.transforms.resume import State, Tensors

if TYPE_CHECKING:
    from torch import nn

MOMENTS = ("exp_avg", "exp_avg_sq")  # torch's names of what AdamW remembers, beside the number of steps


def train(model: "nn.Module", trained: Trainable, tokens: Tokens, options: TrainingConfig, state: State) -> list[float]:
    """Train, and return the mean loss of each step before it, in nats per token; the model is left in inference mode.

    A step is over `batch_size * accumulation` sequences, and its loss the mean over all their tokens that follow one.
    Raises ReplaceMeError for a loss that is not finite, and for sequences without two tokens.
    """
    optimiser = _optimiser(trained, options)
    losses = torch.zeros(options.steps, dtype=torch.float64)
    first = 0
    saved = state.read()
    if saved is not None:
        first = _restore(optimiser, trained, losses, saved)
    order = Order(len(tokens), options.seed)

    def content(done: int) -> Callable[[], tuple[Tensors, dict[str, Any]]]:
        return lambda: (_memory(optimiser, trained, losses), {"done": done})

    with _training(model, options):
        for step in progress(range(first, options.steps), "healing", options.steps - first, "step"):
            for group in optimiser.param_groups:
                group["lr"] = options.learning_rate * rate(step, options)
            losses[step] = _gradients(model, trained, order.batches(tokens, step, options), options, step)
            if not math.isfinite(losses[step]):
                raise ReplaceMeError(
                    f"healing: the loss of step {step + 1} is {float(losses[step])}; lower `learning_rate`"
                )
            if options.clip is not None:
                torch.nn.utils.clip_grad_norm_(trained.parameters.values(), options.clip)
            optimiser.step()
            optimiser.zero_grad()
            trained.follow()
            state.write(content(step + 1))
    return losses.tolist()


def rate(step: int, options: TrainingConfig) -> float:
    """Return the learning rate of a step (from 0) as a share of the highest: a linear warm-up, then the schedule."""
    if step < options.warmup:
        return (step + 1) / options.warmup
    done = (step - options.warmup) / (options.steps - options.warmup)
    return {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[options.schedule]


class Order(TextOrder):
    """The sequences of each step."""

    def batches(self, tokens: Tokens, step: int, options: TrainingConfig) -> list[Tokens]:
        """Return the batches of a step."""
        size, passes = options.batch_size, options.accumulation
        places = self.places(step * size * passes, (step + 1) * size * passes)
        chosen = [torch.tensor(places[k : k + size]) for k in range(0, len(places), size)]
        return [Tokens(tokens.input_ids[one], tokens.mask[one]) for one in chosen]


def _gradients(
    model: "nn.Module", trained: Trainable, batches: list[Tokens], options: TrainingConfig, step: int
) -> float:
    """Compute the gradient of the mean loss over the tokens of all batches; return that loss."""
    count = sum(int(are_counted(batch).sum()) for batch in batches)
    if not count:
        raise ReplaceMeError(f"healing: no sequence of step {step + 1} has two tokens; give longer texts")
    total = 0.0
    for number, batch in enumerate(batches):
        torch.manual_seed((options.seed << 32) + step * options.accumulation + number)  # dropout
        loss = token_losses(model, batch)[0].sum() / count
        backward(loss)
        trained.collect()
        total += float(loss.detach())
    return total


@contextmanager
def _training(model: "nn.Module", options: TrainingConfig) -> Iterator[None]:
    """Put the model in training mode, deterministically, within the block; restore mode and random states
    afterwards.
    """
    model.train()
    if options.gradient_checkpointing:
        _recompute(model)
    try:
        with repeatable(), torch.random.fork_rng(devices={one.device for one in model.parameters() if one.is_cuda}):
            yield
    finally:
        model.eval()  # which also ends the recomputing


def _recompute(model: "nn.Module") -> None:
    """Make the blocks recompute activations in training instead of keeping them."""
    # newer versions of transformers have the one, older ones the other
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    try:
        enable({"use_reentrant": False})
    except ValueError as error:
        raise ReplaceMeError(f"healing: {error}; set `gradient_checkpointing: false`") from error
    # transformers would have a gradient flow to the embeddings too, past all that is trained
    model.disable_input_require_grads()


def _optimiser(trained: Trainable, options: TrainingConfig) -> torch.optim.AdamW:
    matrices = [parameter for parameter in trained.parameters.values() if parameter.dim() > 1]
    others = [parameter for parameter in trained.parameters.values() if parameter.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": options.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=options.learning_rate)


def _memory(optimiser: torch.optim.AdamW, trained: Trainable, losses: torch.Tensor) -> Tensors:
    found = {"losses": losses}
    for name, parameter in trained.parameters.items():
        moments = optimiser.state.get(parameter, {})  # none for a weight that no token used
        found |= {f"parameter/{name}": parameter.detach()}
        found |= {f"{moment}/{name}": moments[moment] for moment in MOMENTS if moment in moments}
        found |= {f"step/{name}": moments["step"]} if "step" in moments else {}
    return found


def _restore(
    optimiser: torch.optim.AdamW, trained: Trainable, losses: torch.Tensor, saved: tuple[Tensors, dict[str, Any]]
) -> int:
    """Restore a checkpoint; returns the number of steps done."""
    tensors, record = saved
    losses.copy_(tensors["losses"])
    with torch.no_grad():
        for name, parameter in trained.parameters.items():
            parameter.copy_(tensors[f"parameter/{name}"])
            if f"step/{name}" in tensors:
                moments = {moment: tensors[f"{moment}/{name}"].to(parameter.device) for moment in MOMENTS}
                optimiser.state[parameter] = {"step": tensors[f"step/{name}"], **moments}
    trained.follow()
    return record["done"]
