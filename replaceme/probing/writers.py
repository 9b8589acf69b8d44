"""Find what a block adds to the residual stream last, and the weights that put it out, by changing them.

A module writes to the stream if a change of its output changes the block's output by the same, times a factor; or, of
a block with several residual streams, each stream by the same, times a weight of token and stream that a module of the
block puts out (hyper-connections). Weights W put its output o out if o becomes o T when each W becomes T^T W, and
nothing is left of o without them.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from replaceme.placements.placement import bias_of
from replaceme.probing.blocks import Call, first_of
from replaceme.probing.changes import EXACT, Seen, close, tried
from replaceme.probing.streams import into_streams
from replaceme.probing.unproved import Unproved


@dataclass(frozen=True)
class Weight:
    """The parameters of a block by a pattern, `*` for a number; `transposed`: [..., intermediate, hidden]."""

    name: str
    transposed: bool = False


@dataclass(frozen=True)
class Writer:
    """A module by its path in the block: M is `factor` times its output, which `weights` put out.

    `norm`: the weight of an RMS norm between, which scales by `offset + weight`. `by_token`: no token's output depends
    on another's. `spread`: the module, and the number of its output, that weighs M for each of several streams.
    """

    module: str
    factor: float
    weights: tuple[Weight, ...] = ()
    norm: str | None = None
    offset: float = 0.0
    by_token: bool = False
    spread: tuple[str, int] | tuple[()] = ()


def find_writers(call: Call) -> list[Writer]:
    """Return the modules of a block whose sum it adds last; raises Unproved where they are not found."""
    seen = _seen(call)
    adding = {name: (factor, ()) for name, factor in _adding(call, seen)}
    if not adding:
        call, adding = into_streams(call, seen)
    if not adding:
        raise Unproved("no module's output is what a block adds last")
    found: list[Writer] = []
    reasons: list[str] = []
    for name, (factor, spread) in adding.items():
        if any(name.startswith(f"{one.module}.") for one in found):
            continue
        try:
            found.append(replace(_writer(call, seen, name, factor), spread=spread))
        except Unproved as error:
            reasons.append(f"{name}: {error}")
    if not found:
        raise Unproved(reasons[0])
    tokenwise = [one for one in found if one.by_token]
    return tokenwise or found[-1:]


def _seen(call: Call) -> dict[str, Seen]:
    """Run a block; return what its modules were called with, of those called once, in the order of their names."""
    seen: dict[str, list[Seen]] = {}
    handles = []
    for name, module in call.block.named_modules():

        def keep(_: nn.Module, args: Any, kwargs: Any, output: Any, name: str = name) -> None:
            values = output if isinstance(output, tuple) else (output,)
            if isinstance(values[0], torch.Tensor):
                kept = tuple(one.clone() if isinstance(one, torch.Tensor) else one for one in values)
                seen.setdefault(name, []).append(Seen(args, kwargs, kept))

        if name:
            handles.append(module.register_forward_hook(keep, with_kwargs=True))
    try:
        call.again()
    finally:
        for handle in handles:
            handle.remove()
    order = [name for name, _ in call.block.named_modules()]
    return {name: seen[name][0] for name in order if len(seen.get(name, ())) == 1}


def _adding(call: Call, seen: dict[str, Seen]) -> Iterator[tuple[str, float]]:
    """Yield the modules whose output the block adds to the stream as it is, with the factor."""
    state = call.again()
    for name, one in seen.items():
        if one.output.numel() != state.numel() or one.output.shape[-1] != state.shape[-1]:
            continue
        change, difference = tried(call, name, one, state)
        difference = difference.reshape(change.shape)
        factor = float((difference * change).sum() / (change * change).sum())
        if abs(factor) > 1e-6 and close(difference, factor * change, EXACT):
            yield name, round(factor, 4)


def _writer(call: Call, seen: dict[str, Seen], name: str, factor: float) -> Writer:
    module = call.block.get_submodule(name)
    by_token = _is_by_token(module, seen[name], call)
    norm = [one for one, parameter in module.named_parameters() if parameter.shape == (call.width,)]
    only = len(list(module.parameters())) == 1
    if not (only and norm):
        return Writer(name, factor, find_weights(call, name), by_token=by_token)
    if call.streams > 1:
        raise Unproved("a norm lies between the weights and several residual streams")
    given = next(one for one in (*seen[name].args, *seen[name].kwargs.values()) if isinstance(one, torch.Tensor))
    offset = _gain_offset(given, seen[name].output, module.get_parameter(norm[0]))
    for inner, one in seen.items():
        if inner != name and one.output.numel() == given.numel() and torch.equal(one.output.flatten(), given.flatten()):
            try:
                weights = find_weights(call, inner)
            except Unproved:
                continue
            by_token = _is_by_token(call.block.get_submodule(inner), one, call)
            return Writer(name, factor, weights, f"{name}.{norm[0]}", offset, by_token)
    raise Unproved("a norm, but no weights put out what goes into it")


def _gain_offset(given: torch.Tensor, put_out: torch.Tensor, weight: torch.Tensor) -> float:
    """Return o of an RMS norm that scales by `o + weight`; raises Unproved for another norm."""
    for offset in (0.0, 1.0):
        plain = given * (offset + weight)
        ratio = (put_out * plain).sum(-1, keepdim=True) / (plain * plain).sum(-1, keepdim=True)
        if close(put_out, ratio * plain, 1e-4):
            return offset
    raise Unproved("a norm that is not an RMS norm lies between the weights and the residual stream")


def _is_by_token(module: nn.Module, seen: Seen, call: Call) -> bool:
    """Return whether a change of the second token leaves what a module puts out for the others as it is."""
    samples, tokens, width = *call.state.shape[:2], call.width

    def altered(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or not value.is_floating_point() or value.numel() % (samples * tokens):
            return value
        if value.dim() < 2 or value.shape[-1] != width or value.numel() != samples * tokens * width:
            return value
        changed = value.clone().reshape(samples, tokens, width)
        changed[:, 1] += 1.0
        return changed.reshape(value.shape)

    args, kwargs = tuple(map(altered, seen.args)), {key: altered(one) for key, one in seen.kwargs.items()}
    with torch.no_grad():
        after = first_of(module(*args, **kwargs)).reshape(samples, tokens, -1)
    before = seen.output.reshape(after.shape)
    others = [token for token in range(tokens) if token != 1]
    return close(after[:, others], before[:, others], 1e-5)


def find_weights(call: Call, module: str) -> tuple[Weight, ...]:
    """Return the weights that put out a module's output; raises Unproved where they do not put out all of it."""
    matrix, before = _matrix(call), _output(call, module)
    chosen: dict[Weight, list[str]] = {}
    for transposed in (False, True):
        for pattern, names in _candidates(call, module, transposed).items():
            if pattern in {one.name for one in chosen}:
                continue
            weight = Weight(pattern, transposed)
            if _puts_out(call, module, before, {weight: names}):
                chosen[weight] = names
    if not chosen:
        raise Unproved("no weights put out what it adds")
    with _mapped(call.block, chosen, matrix):
        mapped = _output(call, module)
    with _mapped(call.block, chosen, 0 * matrix):
        rest = _output(call, module)
    left = float(rest.norm() / before.norm())
    if left > 1e-5 or not close(mapped, before @ matrix):
        names = ", ".join(one.name for one in chosen)
        raise Unproved(f"with {names} zero, {left:.0%} of what it adds is left")
    return tuple(chosen)


def _candidates(call: Call, module: str, transposed: bool) -> dict[str, list[str]]:
    """Return the parameters under a module whose outputs may be of the stream's width, by pattern."""
    width, axis = call.width, -1 if transposed else -2
    found: dict[str, list[str]] = {}
    for name, one in call.block.get_submodule(module).named_parameters(prefix=module):
        if one.dim() in (2, 3) and one.shape[axis] == width and not name.endswith("bias"):
            inside = re.sub(r"\.\d+(?=\.)", ".*", name.removeprefix(module))
            found.setdefault(module + inside, []).append(name)
    shapes = dict(call.block.named_parameters())
    many = {
        pattern for pattern, names in found.items() if len({shapes[name].shape for name in names}) == 1 < len(names)
    }
    return {pattern if pattern in many else name: found[pattern] if pattern in many else [name]
            for pattern, names in found.items() for name in names}  # fmt: skip


def _matrix(call: Call) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(call.width, call.width, generator=generator) / call.width**0.5


def _output(call: Call, module: str) -> torch.Tensor:
    kept: list[torch.Tensor] = []
    handle = call.block.get_submodule(module).register_forward_hook(
        lambda _, inputs, output: kept.append(first_of(output).clone())
    )
    try:
        call.again()
    finally:
        handle.remove()
    return kept[0]


def _puts_out(call: Call, module: str, before: torch.Tensor, weights: dict[Weight, list[str]]) -> bool:
    """Return whether the part of an output that depends on some weights is mapped as they are."""
    matrix = _matrix(call)
    with _mapped(call.block, weights, 0 * matrix):
        without = _output(call, module)
    part = before - without
    if float(part.norm()) <= 1e-5 * float(before.norm()):
        return False
    with _mapped(call.block, weights, matrix):
        return close(_output(call, module) - without, part @ matrix)


@contextmanager
def _mapped(block: nn.Module, weights: dict[Weight, list[str]], matrix: torch.Tensor) -> Iterator[None]:
    """Map what some weights, and the biases beside them, put out."""
    parameters = dict(block.named_parameters())
    kept: dict[torch.Tensor, torch.Tensor] = {}
    try:
        with torch.no_grad():
            for kind, names in weights.items():
                for name in names:
                    weight, bias = parameters[name], parameters.get(bias_of(name))
                    kept[weight] = weight.detach().clone()
                    weight.copy_(weight @ matrix if kind.transposed else matrix.T @ weight)
                    if bias is not None and bias.shape[-1] == len(matrix):
                        kept[bias] = bias.detach().clone()
                        bias.copy_(bias @ matrix)
        yield
    finally:
        with torch.no_grad():
            for one, value in kept.items():
                one.copy_(value)
