"""Forward passes of models that do not fit: one block's weights on the device at a time, every sequence through it.

The model is built without weights; all but its blocks is filled, and block after block gets its weights from the
checkpoint (the next one's are read meanwhile) and gives them back. To run block k the model itself is called, its
earlier blocks pass their input on and block k gets the state stored for the batch, so that masks, positions and
settings of each block are the model's own: the same kernels on the same numbers as in a plain forward pass. States wait
in host memory, or in a file where that is too small.
"""

import logging
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from replaceme.activations.beginning import beginning_at
from replaceme.activations.capture import STORES, Activations, Wanted, finite, forward, nan_error
from replaceme.calibration.tokens import Tokens
from replaceme.core.disk import check_room
from replaceme.core.errors import ReplaceMeError
from replaceme.core.memory import free_memory
from replaceme.core.progress import progress
from replaceme.models.checkpoints import Checkpoint, with_derived_lists
from replaceme.models.family import Family
from replaceme.models.loading import Held
from replaceme.models.model_config import pruned_config
from replaceme.models.sizes import FOUR_BITS, ITEM_BYTES, MARGIN

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger(__name__)
TRIAL = 2**26  # bytes
HOST_SHARE = 0.5  # of the free host memory, for states


def needed(checkpoint: Checkpoint, dtype: str, held: Held, device: str) -> bool:
    """Return whether a model is streamed: `always`, `never`, or `auto`, where its weights do not fit the devices'
    memory.
    """
    if held.streaming != "auto":
        return held.streaming == "always"
    size = ITEM_BYTES[FOUR_BITS] if held.load_in_4bit else getattr(torch, dtype).itemsize
    return MARGIN * checkpoint.parameters * size > free_memory(device, held.gpus)


def link_rate(device: str) -> float | None:
    """Measure the bytes a second from host memory to a GPU, in some milliseconds."""
    if device == "cpu":
        return None
    given = torch.empty(TRIAL, dtype=torch.uint8, pin_memory=True)
    times = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    times[0].record()
    given.to(device, non_blocking=True)
    times[1].record()
    torch.cuda.synchronize()
    return TRIAL / (times[0].elapsed_time(times[1]) / 1e3)


class Weights:
    """The source of a streamed model's weights, block by block, and the buffers that no checkpoint holds."""

    def __init__(self, checkpoint: Checkpoint, dtype: str, device: str, buffers: dict[str, torch.Tensor]) -> None:
        self.checkpoint, self.dtype, self.device, self.buffers = checkpoint, getattr(torch, dtype), device, buffers

    def of(self, block: int) -> dict[str, torch.Tensor]:
        """Return the weights of a block by their names in it, in host memory from which the device can fetch them."""
        prefix = f"{self.checkpoint.family.blocks}.{block}."
        names = [name for name in self.checkpoint.tensors if name.startswith(prefix)]
        read = self.checkpoint.read(names)
        found = {name.removeprefix(prefix): tensor.to(self.dtype) for name, tensor in read.items()}
        return {name: tensor.pin_memory() for name, tensor in found.items()} if self.device != "cpu" else found

    def fill(self, block: "nn.Module", weights: dict[str, torch.Tensor]) -> None:
        """Give a block its weights; raises ReplaceMeError where a checkpoint's names differ from the model's."""
        moved = {name: tensor.to(self.device, non_blocking=True) for name, tensor in weights.items()}
        wanted = {name for name, _ in block.named_parameters()}
        if wanted - moved.keys():
            raise ReplaceMeError(
                f"{self.checkpoint.folder}: tensors of a block are named otherwise than in transformers (no "
                f"{min(wanted - moved.keys())}), so it cannot be streamed; use `streaming: never`"
            )
        block.load_state_dict(moved, assign=True, strict=False)
        for name, buffer in self.buffers.items():
            place(block, name, buffer)

    def captured(
        self, model: "nn.Module", family: Family, batches: "Sequence[Tokens]", wanted: Wanted
    ) -> Iterator[Activations]:
        """Yield what `capture` yields, of the model with these weights."""
        return stream(model, family, batches, wanted)

    @contextmanager
    def blocks(self, modules: "Sequence[nn.Module]") -> "Iterator[Iterator[nn.Module]]":
        """Yield the blocks in order, each with its weights only during its own turn."""
        with ThreadPoolExecutor(1) as reader:

            def filled() -> "Iterator[nn.Module]":
                following = reader.submit(self.of, 0)
                for number, block in enumerate(modules):
                    weights = following.result()
                    if number + 1 < len(modules):
                        following = reader.submit(self.of, number + 1)
                    self.fill(block, weights)
                    del weights
                    yield block
                    block.to_empty(device="meta")

            yield filled()


def load_streamed(checkpoint: Checkpoint, dtype: str, device: str) -> "nn.Module":
    """Build a base model whose blocks have no weights yet; `capture` streams it."""
    from transformers import AutoConfig, AutoModel

    family, config = checkpoint.family, with_derived_lists(checkpoint)
    whole, short = (AutoConfig.for_model(**one) for one in (config, _smaller(config, checkpoint.num_blocks)))
    with torch.device("meta"):
        model = AutoModel.from_config(whole, dtype=getattr(torch, dtype))
    small = AutoModel.from_config(short, dtype=getattr(torch, dtype))
    blocks = family.blocks.removeprefix(f"{model.base_model_prefix}.") + "."
    prefix = family.blocks.removesuffix(blocks.removesuffix("."))
    outside = {name: prefix + name for name, _ in model.named_parameters() if not name.startswith(blocks)}
    embedding = next(name for name, one in model.named_parameters() if one is model.get_input_embeddings().weight)
    outside[embedding] = checkpoint.embedding(outside[embedding])
    missing = [stored for stored in outside.values() if stored not in checkpoint.tensors]
    if missing:
        raise ReplaceMeError(f"{checkpoint.folder}: no tensor {missing[0]}, so it cannot be streamed")
    read = checkpoint.read(outside.values())
    for name, stored in outside.items():
        place(model, name, torch.nn.Parameter(read[stored].to(device, getattr(torch, dtype)), requires_grad=False))
    buffers = {name: buffer.to(device) for name, buffer in small.named_buffers()}
    for name in (name for name in buffers if not name.startswith(blocks)):
        place(model, name, buffers[name])
    first = {name.removeprefix(f"{blocks}0."): one for name, one in buffers.items() if name.startswith(f"{blocks}0.")}
    model.streamed = Weights(checkpoint, dtype, device, first)
    return model.eval().requires_grad_(False)


def _smaller(config: dict[str, Any], num_blocks: int) -> dict[str, Any]:
    """Return a config of one block of each kind and hardly a vocabulary, for buffers, which are computed and not
    stored.
    """
    kinds = config.get("layer_types") or [""] * num_blocks
    kept = sorted({kinds.index(kind) for kind in kinds})
    gone = [(before + 1, after) for before, after in pairwise([*kept, num_blocks])]
    return {**pruned_config(config, gone), "vocab_size": 8, "pad_token_id": None}


def place(module: "nn.Module", name: str, tensor: torch.Tensor) -> None:
    """Put a parameter or buffer into its module."""
    path, _, last = name.rpartition(".")
    owner = module.get_submodule(path)
    (owner._parameters if last in owner._parameters else owner._buffers)[last] = tensor


def stream(model: "nn.Module", family: Family, batches: "Sequence[Tokens]", wanted: Wanted) -> Iterator[Activations]:
    """Yield what `capture` yields, after all batches have gone through block after block."""
    weights: Weights = model.streamed
    modules = family.block_modules(model)[: wanted.last + 1]
    batches = list(batches)
    states: list[torch.Tensor | None] = [None] * len(batches)
    kept: list[Activations | None] = [None] * len(batches)
    with ExitStack() as stack:
        host = stack.enter_context(Host.of(model, weights, batches, wanted))
        running = stack.enter_context(weights.blocks(modules))
        for number, _ in enumerate(progress(running, "blocks", len(modules), "block")):
            for k, batch in enumerate(batches):
                with beginning_at(modules, family, number, states[k]):
                    found = forward(model, family, batch, wanted.within(number) | Wanted(frozenset({number})))
                if not finite(found):
                    raise ReplaceMeError(nan_error(model, f"the output of block {number}", weights.dtype))
                states[k] = host.keep(found.hidden_states[number], states[k])
                kept[k] = host.gather(found, kept[k], wanted, number)
        for activations in kept:
            yield moved(activations, weights.device)


def moved(activations: Activations, device: str) -> Activations:
    """Return activations on a device."""
    found = Activations(activations.mask.to(device))
    for name in STORES:
        getattr(found, name).update({k: one.to(device) for k, one in getattr(activations, name).items()})
    return found


class Host:
    """Host memory for states, pinned for a GPU, or a file in its place."""

    def __init__(self, pinned: bool, folder: "Path | str | None") -> None:
        self.pinned, self.folder, self.files = pinned, folder, 0

    @staticmethod
    @contextmanager
    def of(model: "nn.Module", weights: Weights, batches: Sequence[Tokens], wanted: Wanted) -> "Iterator[Host]":
        """Reserve room for the `wanted` tensors of all batches, with a log line about the kind of memory."""
        tokens = sum(batch.input_ids.numel() for batch in batches)
        widths = 1 + sum(len(one) for one in (wanted.hidden_states, wanted.mlp_output, wanted.mlp_input))
        inner = getattr(model.config, "intermediate_size", None) or 4 * model.config.hidden_size
        size = tokens * (widths * model.config.hidden_size + len(wanted.down_input) * inner) * weights.dtype.itemsize
        read = sum(weights.checkpoint.block_parameters()[: wanted.last + 1]) * weights.dtype.itemsize
        on_disk = size > HOST_SHARE * free_memory("cpu")
        place_of = "a file" if on_disk else "host memory"
        # a state comes and goes once a block
        carried = read + 2 * tokens * model.config.hidden_size * weights.dtype.itemsize * (wanted.last + 1)
        rate = link_rate(weights.device)
        at_least = "" if rate is None else f", at least {carried / rate:.0f} s at {rate / 1e9:.0f} GB/s to the device"
        log.info(
            "streaming %d blocks: %.1f GB of weights to read, one block of %.1f GB on the device at a time, %.1f GB of "
            "states in %s%s",
            wanted.last + 1, read / 1e9, read / 1e9 / (wanted.last + 1), size / 1e9, place_of, at_least,
        )  # fmt: skip
        if not on_disk:
            yield Host(weights.device != "cpu", None)
            return
        with tempfile.TemporaryDirectory(prefix="replaceme-states-") as folder:
            check_room(Path(folder), size, "states", "lower `samples`, or raise `shards`")
            yield Host(False, folder)

    def keep(self, tensor: torch.Tensor, there: torch.Tensor | None = None) -> torch.Tensor:
        """Copy a tensor to host memory, in the place of an earlier one if there is one."""
        if there is None:
            there = self._empty(tensor)
        there.copy_(tensor)
        return there

    def _empty(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.folder is None:
            return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=self.pinned)
        self.files += 1
        path = f"{self.folder}/{self.files}"
        return torch.from_file(path, shared=True, size=tensor.numel(), dtype=tensor.dtype).view(tensor.shape)

    def gather(self, found: Activations, kept: Activations | None, wanted: Wanted, block: int) -> Activations:
        """Merge the `wanted` activations of a block with those kept before."""
        kept = kept or Activations(found.mask.cpu())
        here = wanted.within(block)
        for name in STORES:
            for state in getattr(here, name):
                getattr(kept, name)[state] = self.keep(getattr(found, name)[state])
        return kept
