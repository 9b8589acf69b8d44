"""LLM-Streamline (arXiv 2403.19135): one block is trained to do what a run of blocks did.

The run is the carrier and the blocks of the cut, so that the model gets as small as without the blocks of the cut, and
that the lightweight network stands where the run began. It is a block of the model's own architecture (`network:
layer`), so that the result is a plain checkpoint, or (`mlp`) such a block without its attention, `x + mlp(norm(x))`,
which is smaller, and which no architecture of transformers has. It starts as the first block of the run, the carrier,
and is trained by AdamW to

    min mean over tokens and channels of (block(hidden_states[start-2]) - hidden_states[end-1])^2,

whose inputs and targets are the original model's, stored once; before block 0 stand the embeddings. As in the paper:
the loss, the initialisation, all else frozen. Differs: the cut is chosen as any here, one block shorter than the run; a
batch holds the same sequences in every epoch, in an order that follows from seed and epoch; several groups are trained
one after another, each for the original model; the paper's MLP starts at random.

Training is in float32, deterministic, and goes on where it was interrupted, to the same bits.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from replaceme.activations.beginning import given
from replaceme.activations.capture import Wanted, forward
from replaceme.activations.gradients import backward, repeatable
from replaceme.activations.hooks import skipped
from replaceme.core.cut_record import Cut
from replaceme.core.errors import ReplaceMeError
from replaceme.core.progress import progress
from replaceme.methods import carriers
from replaceme.methods.found import Found
from replaceme.methods.walk import Walk
from replaceme.models.custom_code import coded_config
from replaceme.models.model_record import ModelRecord
from replaceme.models.modeling_replaceme import remove_attention
from replaceme.surgery.edits import Content, Tensors
from replaceme.surgery.shards import renamed
from replaceme.transforms.resume import State
from replaceme.transforms.training import memory, restore

if TYPE_CHECKING:
    from replaceme.calibration.tokens import Tokens
    from replaceme.config.methods import LlmStreamlineConfig
    from replaceme.fitting.passes import Passes
    from replaceme.models.checkpoints import Checkpoint
    from replaceme.models.family import Family


@dataclass(frozen=True)
class Lesson:
    """The training data of block `carrier`: of each batch its input [sequences, tokens, hidden] (None: embeddings) and
    the state after the run.
    """

    carrier: int
    batches: "list[Tokens]"
    inputs: list[torch.Tensor | None]
    targets: list[torch.Tensor]


def fit(passes: "Passes", config: "LlmStreamlineConfig", cut: Cut, record: ModelRecord) -> Found:
    """Return the trained parameters of each carrier, float32, `<block>.<parameter>`, and the loss of every epoch."""
    length = passes.tokens.mask.shape[1]
    _check_first(passes, config, cut.groups)
    passes = replace(passes, batch_size=max(1, config.batch_tokens // length))
    lessons = gathered(passes, cut.groups)
    state = passes.state or State()
    tensors, memory = state.read(passes.device) or ({}, {"losses": [], "batch": 0})
    found = {name.removeprefix("found."): one for name, one in tensors.items() if name.startswith("found.")}
    losses: list[list[float]] = memory["losses"]  # of each group; the last may be unfinished
    with _in_float32(passes.model, passes.family):
        for number in range(max(0, len(losses) - 1), len(lessons)):
            begun = number < len(losses)
            if not begun:
                losses.append([])
            training = Training(passes, config, lessons[number], losses)
            if begun:
                training.restore(tensors, memory["batch"])
            found |= training.run(state, found)
    report = {
        "solver": "adamw",
        "network": config.network,
        "tokens": passes.tokens.count,
        "loss_first_epoch": losses[0][0],
        "loss_last_epoch": losses[0][-1],
        "losses": losses,
    }
    return Found("llm_streamline", {name: one.cpu() for name, one in found.items()}, report)


def _check_first(passes: "Passes", config: "LlmStreamlineConfig", groups: list[tuple[int, int]]) -> None:
    """Raise ReplaceMeError for a first block of its kind of attention, whose keys tell a cache the number of tokens."""
    if config.network != "mlp":
        return
    blocks = passes.family.block_modules(passes.model)
    kinds = getattr(passes.model.config, "layer_types", None) or [None] * len(blocks)
    gone = {block for start, end in groups for block in range(start, end)}
    first = {kind: block for block, kind in reversed(list(enumerate(kinds))) if block not in gone}
    bare = sorted({start - 1 for start, _ in groups} & set(first.values()))
    if bare:
        raise ReplaceMeError(
            f"llm_streamline: network mlp would leave block {bare[0]} without attention, whose keys say how long a text"
            " is; take a cut that starts later, or `network: layer`"
        )


def gathered(passes: "Passes", groups: list[tuple[int, int]]) -> list[Lesson]:
    """Collect the inputs of the carriers and the states after the runs, of the original model, in one pass over the
    text.
    """
    walk = Walk(passes, copies=1 + 2 * len(groups))
    lessons = [Lesson(start - 1, walk.batches, [], []) for start, _ in groups]
    ends = [end - 1 for _, end in groups]
    for block in progress(range(ends[-1] + 1), "states", unit="block"):
        for state, activations in walk.visit():
            for lesson, end in zip(lessons, ends, strict=True):
                # copied, since what is made in inference mode cannot be trained through
                if block == lesson.carrier:
                    lesson.inputs.append(None if state is None else state.clone())
                if block == end:
                    lesson.targets.append(activations.hidden_states[block].cpu().clone())
    return lessons


@contextmanager
def _in_float32(model: nn.Module, family: "Family") -> Iterator[None]:
    """Keep all of a model but its blocks in float32 within the block, so that no trained block's input is rounded."""
    inside = {id(one) for one in chain(*_tensors(family.block_modules(model)))}
    outside = [one for one in chain(*_tensors(model)) if id(one) not in inside and one.is_floating_point()]
    types = [one.dtype for one in outside]
    for one in outside:
        one.data = one.data.float()
    try:
        yield
    finally:
        for one, dtype in zip(outside, types, strict=True):
            one.data = one.data.to(dtype)


def _tensors(module: nn.Module) -> tuple[Iterator[torch.Tensor], Iterator[torch.Tensor]]:
    return module.parameters(), module.buffers()


class Training:
    """AdamW on one carrier; `losses` has the mean loss of each epoch of each group, this one's last."""

    def __init__(
        self, passes: "Passes", config: "LlmStreamlineConfig", lesson: Lesson, losses: list[list[float]]
    ) -> None:
        self.model, self.family, self.device = passes.model, passes.family, passes.device
        self.config, self.lesson, self.losses = config, lesson, losses
        self.blocks = self.family.block_modules(self.model)
        self.block = copy.deepcopy(self.blocks[lesson.carrier]).float().requires_grad_(True)
        if config.network == "mlp":
            remove_attention(self.block)
        self.parameters = dict(self.block.named_parameters())
        self.optimiser = torch.optim.AdamW(self.parameters.values(), lr=config.learning_rate)
        self.sum = torch.zeros(2, dtype=torch.float64, device=self.device)  # of errors and tokens of this epoch
        self.first = 0

    def restore(self, tensors: Tensors, batch: int) -> None:
        """Continue from a saved state, before a batch of its epoch."""
        restore(self.optimiser, self.parameters, tensors)
        self.sum, self.first = tensors["sum"].clone(), batch

    def run(self, state: State, found: Tensors) -> Tensors:
        """Train to the end, saving the state between batches; returns the parameters by their names in `Found`."""
        count = len(self.lesson.batches)
        history = self.losses[-1]
        with self._in_place(), repeatable():
            for epoch in range(len(history), self.config.epochs):
                order = torch.randperm(count, generator=_generator(self.config.order_seed, epoch)).tolist()
                what = f"block {self.lesson.carrier}, epoch {epoch + 1} of {self.config.epochs}"
                for number in progress(range(self.first, count), what, unit="batch"):
                    self._step(order[number])
                    state.write(self._saved(found, number + 1))
                history.append(self._mean(epoch))
                self.sum.zero_()
                self.first = 0
                state.write(self._saved(found, 0))
        return {f"{self.lesson.carrier}.{name}": one.detach() for name, one in self.parameters.items()}

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        """Put the carrier in training into the model within the block; earlier blocks pass their input on."""
        carrier = self.lesson.carrier
        before = self.blocks[carrier]
        with ExitStack() as undone:
            self.blocks[carrier] = self.block
            undone.callback(self.blocks.__setitem__, carrier, before)
            for earlier in self.blocks[:carrier]:
                undone.callback(skipped(earlier, self.family))
            yield

    def _step(self, number: int) -> None:
        self.optimiser.zero_grad()
        state, batch = self.lesson.inputs[number], self.lesson.batches[number]
        wanted = Wanted(frozenset({self.lesson.carrier}))
        with given(self.block, None if state is None else state.float(), self.device):
            found = forward(self.model, self.family, batch, wanted, gradients=True)
        target = self.lesson.targets[number].to(self.device, torch.float32)
        errors = (found.hidden_states[self.lesson.carrier] - target)[found.mask].square().mean(1)
        backward(errors.mean())
        self.optimiser.step()
        self.sum += torch.stack([errors.detach().double().sum(), errors.new_tensor(len(errors)).double()])

    def _mean(self, epoch: int) -> float:
        error, tokens = self.sum.tolist()
        if not error < float("inf"):  # NaN is not
            raise ReplaceMeError(f"llm_streamline: the loss of epoch {epoch + 1} is {error}; lower `learning_rate`")
        return error / tokens

    def _saved(self, found: Tensors, batch: int) -> Callable[[], tuple[Tensors, dict[str, Any]]]:
        def content() -> tuple[Tensors, dict[str, Any]]:
            tensors = {f"found.{name}": one for name, one in found.items()} | {"sum": self.sum}
            tensors |= memory(self.optimiser, self.parameters)
            return tensors, {"losses": self.losses, "batch": batch}

        return content


def _generator(seed: int, epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed((seed << 20) + epoch)


def content(checkpoint: "Checkpoint", cut: Cut, found: Found) -> Content:
    """Replace the carriers' tensors; of a block without attention its tensors go, and code comes."""
    plain = carriers.content(checkpoint, cut, found)
    if found.report.get("network") != "mlp":
        return plain
    groups = cut.groups
    trained = {f"{checkpoint.family.blocks}.{name}" for name in found.tensors}
    before = [f"{checkpoint.family.blocks}.{start - 1}." for start, _ in groups]
    gone = [name for name in checkpoint.tensors if name.startswith(tuple(before)) and name not in trained]
    names = [renamed(checkpoint.family, groups, one).removesuffix(".") for one in before]
    changes = replace(plain.changes, parts=dict.fromkeys(gone, lambda tensor: {}))
    return Content(groups, changes, coded_config(plain.config, {"without_attention": names}), True)


@contextmanager
def running(model: nn.Module, family: "Family", cut: Cut, found: Found) -> Iterator[None]:
    """Give the carriers the trained parameters within the block; the blocks of the cut pass their input on."""
    blocks = family.block_modules(model)
    with ExitStack() as undone:
        for start, _ in cut.groups if found.report.get("network") == "mlp" else []:
            undone.callback(blocks.__setitem__, start - 1, blocks[start - 1])
            blocks[start - 1] = copy.deepcopy(blocks[start - 1])
            remove_attention(blocks[start - 1])
        undone.enter_context(carriers.running(model, family, cut, found))
        yield
