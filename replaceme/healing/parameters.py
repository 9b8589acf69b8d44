"""Choose the parameters that a healing trains, and write them back into the tensors of a checkpoint.

`transform`: T = I + D at each place of a cut, D [hidden, hidden] from zero, applied to what the down projection (in the
middle of a block: the output projection of its attention) puts out; at the end W becomes T^T W in float64 (and a bias b
becomes b T), as in `fold`. Where a norm follows the MLP inside the block, T acts before it, and the norm's gains stay.
In a mixture of experts T acts on the sum, and goes into each.
`lora`: W + (alpha / rank) B A for linear layers of the blocks (arXiv 2106.09685), adapters by peft, merged in float64.
`full`: every weight.

Parameters are float32 whatever the passes compute in: weights that are trained in another type have a float32 original
that the optimiser changes, and follow it. A weight of a checkpoint is rounded once, when it is written.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from replaceme.config.healings import TrainingConfig
from replaceme.core.errors import ReplaceMeError
from replaceme.core.places import Place, carrier_of
from replaceme.models.checkpoints import Checkpoint
from replaceme.placements.mlp import Mlp
from replaceme.surgery.edits import Edit
from replaceme.transforms.transform import Transform

if TYPE_CHECKING:
    from torch import nn

    from replaceme.models.family import Family

ADAPTER = "default"  # peft's name of the only one


@dataclass(frozen=True)
class Trainable:
    """Float32 `parameters` by name; `edits` changes the checkpoint's tensors by them.

    `blocks` are those of the model; `followers` are weights of it in another type that are rounded copies of the
    parameters of their name.
    """

    parameters: dict[str, torch.Tensor]
    edits: Callable[[], dict[str, Edit]]
    blocks: "nn.ModuleList"
    followers: dict[str, torch.Tensor] = field(default_factory=dict)

    def collect(self) -> None:
        """Add the gradients of the followers to those of their parameters, in float32."""
        for name, follower in self.followers.items():
            if follower.grad is None:
                continue
            parameter, found = self.parameters[name], follower.grad.float()
            parameter.grad = found if parameter.grad is None else parameter.grad.add_(found)
            follower.grad = None

    def follow(self) -> None:
        """Round the parameters into their followers."""
        with torch.no_grad():
            for name, follower in self.followers.items():
                follower.copy_(self.parameters[name])


def trainable(
    model: "nn.Module", checkpoint: Checkpoint, options: TrainingConfig, places: Sequence[Place]
) -> Trainable:
    """Prepare a loaded model, without trained parameters yet, for a healing.

    Raises ReplaceMeError, before anything is trained, where the result could not be written into the checkpoint.
    """
    if options.train == "transform":
        return _transforms(model, checkpoint, places)
    if options.train == "lora":
        return _adapters(model, checkpoint, options)
    return _all_weights(model, checkpoint)


def _transforms(model: "nn.Module", checkpoint: Checkpoint, places: Sequence[Place]) -> Trainable:
    size, blocks = checkpoint.hidden_size, checkpoint.family.block_modules(model.base_model)
    found = {}
    for start in places:
        carrying, block = checkpoint.carrying(start), blocks[carrier_of(start)]
        carrying.folded(carrier_of(start))  # there is something to fold into
        change = torch.zeros(size, size, device=next(block.parameters()).device, requires_grad=True)
        for module in carrying.family.mlp_modules(block):
            if carrying.family.post_norm is None:
                module.register_forward_hook(lambda _, inputs, output, change=change: _times(change, output))
            else:  # the module is the norm
                module.register_forward_pre_hook(lambda _, inputs, change=change: _times(change, inputs))
        found[f"transform.{start - 1}"] = change

    def edits() -> dict[str, Edit]:
        changed: dict[str, Edit] = {}
        for start, change in zip(places, found.values(), strict=True):
            transform = Transform(torch.eye(size, dtype=torch.float64) + change.detach().cpu().double())
            carrying = checkpoint.carrying(start)
            for down in carrying.folded(carrier_of(start)):
                changed |= Mlp().edits_of(carrying.family, down, transform)
        return changed

    return Trainable(found, edits, blocks)


def _times(change: torch.Tensor, states: "torch.Tensor | tuple") -> "torch.Tensor | tuple":
    """Return what a module puts out, or is given, times I + D."""
    given = states[0] if isinstance(states, tuple) else states
    own = change.to(given.device)  # of a model that was moved after the training
    found = given + (given.float() @ own).to(given.dtype)
    return (found, *states[1:]) if isinstance(states, tuple) else found


def _adapters(model: "nn.Module", checkpoint: Checkpoint, options: TrainingConfig) -> Trainable:
    from peft import LoraConfig, inject_adapter_in_model

    if checkpoint.family.mixture and options.lora_targets != "attention":
        raise ReplaceMeError(
            f"{checkpoint.folder}: its MLPs are mixtures of experts, whose weights are stacked and get no adapters; "
            "use train transform, or lora_targets attention"
        )
    names = _linear_layers(model, checkpoint, options.lora_targets)
    stored = _stored(model, checkpoint, [f"{name}.weight" for name in names])
    rank, alpha = options.lora_rank, options.lora_alpha or options.lora_rank
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=options.lora_dropout, target_modules=names)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        inject_adapter_in_model(config, model).eval()  # adapters come with their dropout on
    found = {name: parameter for name, parameter in model.named_parameters() if ".lora_" in name}
    for parameter in found.values():
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)

    def merged(name: str) -> Edit:
        layer = model.get_submodule(name)

        def weight(given: torch.Tensor) -> torch.Tensor:
            down, up = (side[ADAPTER].weight.detach().cpu().double() for side in (layer.lora_A, layer.lora_B))
            change = layer.scaling[ADAPTER] * (up @ down)
            return (given.double() + (change.T if layer.fan_in_fan_out else change)).to(given.dtype)

        return weight

    blocks = checkpoint.family.block_modules(model.base_model)
    return Trainable(found, lambda: {stored[f"{name}.weight"][0]: merged(name) for name in names}, blocks)


def _linear_layers(model: "nn.Module", checkpoint: Checkpoint, targets: str) -> list[str]:
    """Return full names of the linear layers of all blocks, or of those in the MLP, or of those outside it."""
    from transformers.pytorch_utils import Conv1D

    family = checkpoint.family
    blocks = family.block_modules(model.base_model)
    within = _path(model, blocks)
    found = []
    for number, block in enumerate(blocks):
        beside = _beside(family, block)
        for name, module in block.named_modules():
            wanted = targets == "all" or (targets == "mlp") == name.startswith(beside)
            if wanted and isinstance(module, torch.nn.Linear | Conv1D):
                found.append(f"{within}.{number}.{name}")
    if not found:
        raise ReplaceMeError(
            f"{checkpoint.folder}: its blocks have no linear layers for lora_targets {targets}; use train transform"
        )
    return found


def _path(model: "nn.Module", module: "nn.Module") -> str:
    """Return the name of a module of a model."""
    return next(name for name, one in model.named_modules() if one is module)


def _beside(family: "Family", block: "nn.Module") -> tuple[str, ...]:
    """Return how the names begin of the layers in the MLP of a block, or in the mixer that stands for it.

    They lie beside the weights of `fold`; where these lie in the block itself, all are called alike.
    """
    names = family.folded([f"{family.blocks}.0.{name}" for name, _ in block.named_parameters()], 0)
    downs = [name.removeprefix(f"{family.blocks}.0.").removesuffix(".weight") for name in names]
    return tuple(f"{down.partition('.')[0]}." if "." in down else down.rstrip("0123456789") for down in downs)


def _all_weights(model: "nn.Module", checkpoint: Checkpoint) -> Trainable:
    weights = dict(model.named_parameters())
    stored = _stored(model, checkpoint, weights)
    for weight in weights.values():
        weight.requires_grad_(True)
    followers = {name: weight for name, weight in weights.items() if weight.dtype != torch.float32}
    masters = {name: weight.detach().float().requires_grad_(True) for name, weight in followers.items()}
    parameters = weights | masters

    def written(parameter: torch.Tensor) -> Edit:
        return lambda given: parameter.detach().cpu().to(given.dtype)

    def edits() -> dict[str, Edit]:
        return {tensor: written(parameters[name]) for name in parameters for tensor in stored[name]}

    return Trainable(parameters, edits, checkpoint.family.block_modules(model.base_model), followers)


def _stored(model: "nn.Module", checkpoint: Checkpoint, names: "Sequence[str] | dict") -> dict[str, list[str]]:
    """Return the tensors of a checkpoint that hold each of some weights; a tied weight may be stored twice.

    Raises ReplaceMeError for a weight that is stored otherwise than transformers names or shapes it.
    """
    all_names = dict(model.named_parameters(remove_duplicate=False))
    family, places = checkpoint.family, {}
    within = _path(model, family.block_modules(model.base_model))  # where blocks may lie elsewhere than in checkpoints
    for tensor, (_, shape, _) in checkpoint.tensors.items():
        for name in (tensor, f"{model.base_model_prefix}.{tensor}", within + tensor.removeprefix(family.blocks)):
            if name in all_names and all_names[name].shape == shape:
                places.setdefault(id(all_names[name]), []).append(tensor)
                break
    found = {name: places.get(id(all_names[name]), []) for name in names}
    missing = [name for name in found if not found[name]]
    if missing:
        raise ReplaceMeError(
            f"{checkpoint.folder}: tensors are named or stacked otherwise than in transformers (no {missing[0]}), so "
            "what is trained could not be written back; use train transform"
        )
    return found
