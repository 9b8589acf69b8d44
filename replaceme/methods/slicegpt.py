"""SliceGPT (arXiv 2401.15024): the residual stream is rotated to its principal axes, and the least of them are cut off.

Let Q_p [d, d'] be the d' leading eigenvectors of `sum x x^T` of the residual stream x at point p: before block 0,
after the attention and after the MLP of every block. RMS norms do not see a rotation once their gains g are folded into
the weights that follow, so that with x Q_p for x every weight that reads becomes `W diag(g) Q_p`, every weight that
writes `Q_p^T W` (and its bias `Q_p^T b`), and what a block adds its parts to goes through `Q_p^T Q_(p+1)`, a linear
layer of its own. With d' = d nothing changes. d' is the largest at which the model has no more parameters than without
the blocks of the cut, those two layers of each block, and an output embedding of its own, counted.

`estimation: sequential` is the paper's: the axes at a point are those of the model that is sliced up to there;
`parallel` takes all of them from the original model. Differs: d' is not rounded to a multiple of 8.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from replaceme.activations.hooks import running_instead
from replaceme.core.cut_record import Cut
from replaceme.core.errors import ReplaceMeError
from replaceme.core.progress import progress
from replaceme.kernels.gram import gram
from replaceme.methods.found import Found
from replaceme.methods.registry import removed_parameters
from replaceme.methods.walk import Walk, inputs_of
from replaceme.models.custom_code import coded_config
from replaceme.models.model_record import ModelRecord
from replaceme.surgery.edits import Changes, Content, Split, Tensors

if TYPE_CHECKING:
    from replaceme.config.methods import SliceGptConfig
    from replaceme.fitting.passes import Passes
    from replaceme.models.checkpoints import Checkpoint
    from replaceme.models.family import Family

READERS = {
    "self_attn.q_proj": "input_layernorm", "self_attn.k_proj": "input_layernorm", "self_attn.v_proj": "input_layernorm",
    "mlp.gate_proj": "post_attention_layernorm", "mlp.up_proj": "post_attention_layernorm",
}  # fmt: skip
WRITERS = {"self_attn.o_proj": "attention_shortcut", "mlp.down_proj": "mlp_shortcut"}
Projection = Callable[[torch.Tensor], torch.Tensor]


def fit(passes: "Passes", config: "SliceGptConfig", cut: Cut, record: ModelRecord) -> Found:
    """Return the axes Q_p [d, d'], float32, by the number p of each point, and the energy that is cut off there."""
    width = width_for(passes.model, record.parameters - removed_parameters(cut, record))
    axes = Axes(Walk(passes), width, config.estimation == "sequential")
    for _ in progress(range(len(axes.walk.blocks)), "axes", unit="block"):
        axes.next_block()
    report = {
        "solver": "pca",
        "tokens": passes.tokens.count,
        "width": width,
        "mean_energy_lost": sum(axes.lost) / len(axes.lost),
        "energy_lost": axes.lost,
    }
    axes.close()
    return Found("slicegpt", {str(point): one.float().cpu() for point, one in enumerate(axes.found)}, report)


def width_for(model: nn.Module, parameters: int) -> int:
    """Return the largest width of the residual stream at which the sliced model has at most `parameters`."""
    config = model.config
    fixed, sliced = 0, 2 * config.vocab_size  # parameters whatever the width, and for each channel
    for name, one in ((name, one) for block in model.layers for name, one in block.named_parameters()):
        layer, _, part = name.rpartition(".")
        if layer in READERS and part == "weight":
            sliced += one.shape[0]
        elif layer in WRITERS:
            sliced += one.shape[1] if part == "weight" else 1
        elif layer not in READERS.values():
            fixed += one.numel()
    shortcuts = 2 * len(model.layers)
    for width in range(config.hidden_size, 0, -1):
        if fixed + sliced * width + shortcuts * width**2 <= parameters:
            return width
    raise ReplaceMeError("slicegpt: no width makes the model as small as the cut does; cut fewer blocks")


class Axes:
    """The axes of point after point, from a walk through the blocks."""

    def __init__(self, walk: Walk, width: int, sequential: bool) -> None:
        self.walk, self.width, self.sequential = walk, width, sequential
        self.found: list[torch.Tensor] = []
        self.lost: list[float] = []
        self.undone = ExitStack()  # what projects the embeddings, while the walk is at block 0

    def next_block(self) -> None:
        """Find the axes after the attention and the MLP of the next block (and before it, of block 0)."""
        walk, block = self.walk, self.walk.block
        points = {"middle": block.post_attention_layernorm}
        if not self.found:
            first = {"before": block.input_layernorm}
            if self.sequential:
                self._add(self._grams(first, advance=False)["before"])
                self.undone.enter_context(_projected_embeddings(walk.model, projection(self.found[0])))
            else:
                points = first | points
        if not self.sequential:
            grams = self._grams(points, advance=True)
            for name in (*points, "after"):
                self._add(grams[name])
            return
        self._add(self._grams(points, advance=False)["middle"])
        with projected(block, projection(self.found[-1]), lambda rows: rows):
            self._add(self._grams({}, advance=True)["after"])
        self.undone.close()
        project = projection(self.found[-1])
        for number, state in enumerate(walk.states):  # one by one, as the text has all of them in memory
            walk.states[number] = project(state.to(walk.device)).cpu()

    def close(self) -> None:
        """Restore the model."""
        self.undone.close()

    def _grams(self, norms: dict[str, nn.Module], advance: bool) -> dict[str, torch.Tensor]:
        """Return the Grams of the norms' inputs, and as `after` that of the block's output."""
        sums: dict[str, torch.Tensor] = {}
        with inputs_of(norms) as seen:
            number = self.walk.at
            for _, activations in self.walk.visit(advance):
                seen["after"] = activations.hidden_states[number]
                for name, rows in seen.items():
                    flat = rows.reshape(-1, rows.shape[-1])
                    sums[name] = gram(flat, mask=activations.mask.reshape(-1), out=sums.get(name))
        return sums

    def _add(self, inputs: torch.Tensor) -> None:
        values, vectors = torch.linalg.eigh(inputs)
        self.found.append(vectors[:, -self.width :].flip(1))
        energy, left_out = float(values.sum()), float(values[: -self.width].clamp(min=0).sum())
        self.lost.append(left_out / energy if energy > 0 else 0.0)


def projection(axes: torch.Tensor) -> Projection:
    """Return `x -> x Q Q^T`, in the type of x [..., d]."""
    both = axes.double() @ axes.double().T

    def project(rows: torch.Tensor) -> torch.Tensor:
        return rows @ both.to(rows.device, rows.dtype)

    return project


@contextmanager
def projected(block: nn.Module, middle: Projection, after: Projection) -> Iterator[None]:
    """Project the residual stream of a block after its attention and after its MLP, within the context."""

    def run(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        attention, _ = block.self_attn(hidden_states=block.input_layernorm(hidden_states), **kwargs)
        hidden_states = middle(hidden_states + attention)
        return after(hidden_states + block.mlp(block.post_attention_layernorm(hidden_states)))

    undo = running_instead(block, run)
    try:
        yield
    finally:
        undo()


@contextmanager
def _projected_embeddings(model: nn.Module, project: Projection) -> Iterator[None]:
    handle = model.get_input_embeddings().register_forward_hook(lambda module, args, output: project(output))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def running(model: nn.Module, family: "Family", cut: Cut, found: Found) -> Iterator[None]:
    """Project the residual stream onto the axes at every point, within the block: the sliced model in all d
    channels.
    """
    points = [projection(found.tensors[str(point)]) for point in range(len(found.tensors))]
    with ExitStack() as undone:
        undone.enter_context(_projected_embeddings(model, points[0]))
        for number, block in enumerate(family.block_modules(model)):
            undone.enter_context(projected(block, points[2 * number + 1], points[2 * number + 2]))
        yield


def content(checkpoint: "Checkpoint", cut: Cut, found: Found) -> Content:
    """Return the weights between rotated and sliced streams, and the shortcuts; the norms, without gains, have no
    tensor.
    """
    axes = [found.tensors[str(point)].double() for point in range(len(found.tensors))]
    if len(axes) != 2 * checkpoint.num_blocks + 1 or axes[0].shape[0] != checkpoint.hidden_size:
        raise ReplaceMeError(f"{checkpoint.folder}: the axes are of a model of another shape; fit them again")
    slicing = Slicing(checkpoint, axes)
    changes = Changes(parts=slicing.outside() | slicing.blocks())
    config = {**checkpoint.config, "tie_word_embeddings": False}
    return Content([], changes, coded_config(config, {"sliced": axes[0].shape[1]}), True)


class Slicing:
    """The changes of a checkpoint's tensors, given the axes of all points."""

    def __init__(self, checkpoint: "Checkpoint", axes: list[torch.Tensor]) -> None:
        self.checkpoint, self.axes = checkpoint, axes

    def outside(self) -> dict[str, Split]:
        """Return embeddings, output embeddings and the norm before these."""
        prefix = self.checkpoint.family.blocks.removesuffix("layers")
        head, final = "lm_head.weight", f"{prefix}norm.weight"
        embedding = self.checkpoint.embedding(f"{prefix}embed_tokens.weight")
        tied = head not in self.checkpoint.tensors or embedding == head

        def embedded(weight: torch.Tensor) -> Tensors:
            sliced = {f"{prefix}embed_tokens.weight": (weight.double() @ self.axes[0]).to(weight.dtype)}
            return sliced | (self._reader(weight, head, final, -1) if tied else {})

        return {
            head: lambda weight: self._reader(weight, head, final, -1),
            embedding: embedded,
            final: lambda gains: {},
        }

    def blocks(self) -> dict[str, Split]:
        """Return the weights of every block that read and write the residual stream, and its norms."""
        parts: dict[str, Split] = {}
        for number in range(self.checkpoint.num_blocks):
            block = f"{self.checkpoint.family.blocks}.{number}."
            parts |= {f"{block}{norm}.weight": lambda gains: {} for norm in READERS.values()}
            for layer, norm in READERS.items():
                name, gains, point = f"{block}{layer}.weight", f"{block}{norm}.weight", _point(number, layer)
                parts[name] = partial(self._reader, name=name, gains=gains, point=point)
            for layer, shortcut in WRITERS.items():
                name, point = f"{block}{layer}", _point(number, layer)
                parts[f"{name}.weight"] = partial(self._writer, name=name, shortcut=block + shortcut, point=point)
                parts[f"{name}.bias"] = partial(self._written, name=f"{name}.bias", point=point + 1)
        return parts

    def _reader(self, weight: torch.Tensor, name: str, gains: str, point: int) -> Tensors:
        read = weight.double() * self.checkpoint.tensor(gains).double()
        return {name: (read @ self.axes[point]).to(weight.dtype)}

    def _writer(self, weight: torch.Tensor, name: str, shortcut: str, point: int) -> Tensors:
        beside = self.axes[point + 1].T @ self.axes[point]
        written = self._written(weight, f"{name}.weight", point + 1)
        return {**written, f"{shortcut}.weight": beside.to(weight.dtype)}

    def _written(self, tensor: torch.Tensor, name: str, point: int) -> Tensors:
        return {name: (self.axes[point].T @ tensor.double()).to(tensor.dtype)}


def _point(block: int, layer: str) -> int:
    """Return the point that a layer reads, or where its output is added."""
    return 2 * block + layer.startswith("mlp.")
