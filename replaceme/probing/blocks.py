"""Find the blocks of a loaded tiny model: the list of modules that the residual stream goes through, one by one."""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from replaceme.probing.unproved import Unproved

SAMPLES, TOKENS = 2, 12


@dataclass(frozen=True)
class Call:
    """A block with the arguments of one call and what it put out; `closing_norm` is the norm that it ends with,
    `streams` the number of residual streams of each token.
    """

    block: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any
    closing_norm: str | None = None
    streams: int = 1

    @property
    def state(self) -> torch.Tensor:
        """Residual stream that went in [samples, tokens, hidden], or [samples, tokens, streams, hidden]."""
        return self.args[0] if self.args else self.kwargs["hidden_states"]

    @property
    def width(self) -> int:
        """Width of one residual stream, which lies beside the others where the state has three axes."""
        return self.state.shape[-1] // (self.streams if self.state.dim() == 3 else 1)

    @property
    def put_out(self) -> torch.Tensor:
        """Residual stream that came out."""
        return first_of(self.output)

    def again(self) -> torch.Tensor:
        """Run the block once more; returns the residual stream that comes out, or goes into the norm at its end."""
        if self.closing_norm is None:
            return self._run()
        kept: list[torch.Tensor] = []
        norm = self.block.get_submodule(self.closing_norm)
        handle = norm.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0].clone()))
        try:
            self._run()
        finally:
            handle.remove()
        return kept[0]

    def closed(self) -> "Call | None":
        """Return the call with the norm that its block ends with, None where it ends with none."""
        given: dict[str, torch.Tensor] = {}
        norms = [
            (name, one)
            for name, one in self.block.named_modules()
            if {parameter.shape for parameter in one.parameters()} == {self.state.shape[-1:]} and not [*one.children()]
        ]
        kept = [
            one.register_forward_hook(lambda _, inputs, output, name=name: given.update({name: first_of(output)}))
            for name, one in norms
        ]
        put_out = self._run()
        for handle in kept:
            handle.remove()
        ending = next((name for name, one in given.items() if one.data_ptr() == put_out.data_ptr()), None)
        return None if ending is None else replace(self, closing_norm=ending)

    def _run(self) -> torch.Tensor:
        args = tuple(one.clone() if index == 0 else one for index, one in enumerate(self.args))
        kwargs = {key: one.clone() if key == "hidden_states" else one for key, one in self.kwargs.items()}
        with torch.no_grad():
            return first_of(self.block(*args, **kwargs))


@dataclass(frozen=True)
class Blocks:
    """The path of the list of blocks in the model with its head, and a call of each."""

    path: str
    calls: tuple[Call, ...]

    @property
    def tuples(self) -> int:
        """Number of values that a block puts out, 0 for the state alone."""
        output = self.calls[0].output
        return len(output) if isinstance(output, tuple) else 0

    @property
    def handed(self) -> tuple[str, int] | tuple[()]:
        """Argument by which a block gets a further output of the block before, and its number; none of most."""
        for before, after in pairwise(self.calls):
            further = before.output[1:] if isinstance(before.output, tuple) else ()
            for number, one in enumerate(further, 1):
                for name, given in after.kwargs.items():
                    tensors = isinstance(one, torch.Tensor) and isinstance(given, torch.Tensor)
                    if tensors and torch.equal(one, given):
                        return name, number
        return ()


def first_of(output: Any) -> Any:
    """Return the first value of a tuple, or the value itself."""
    return output[0] if isinstance(output, tuple) else output


def token_ids(vocabulary: int) -> torch.Tensor:
    """Return ids that are no special tokens, [SAMPLES, TOKENS]."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(4, vocabulary - 25, (SAMPLES, TOKENS), generator=generator)


def find_blocks(model: nn.Module, vocabulary: int) -> Blocks:
    """Return the blocks of a model; raises Unproved where none of its lists has the residual stream go through it."""
    lists = {name: one for name, one in model.named_modules() if isinstance(one, nn.ModuleList) and len(one) > 1}
    outer = {name: one for name, one in lists.items() if not any(name.startswith(f"{other}.") for other in lists)}
    calls: dict[nn.Module, list[Call]] = {}

    def keep(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        calls.setdefault(module, []).append(Call(module, _copied(args), _copied(kwargs), _copied(output)))

    handles = [block.register_forward_hook(keep, with_kwargs=True) for one in outer.values() for block in one]
    try:
        with torch.no_grad():
            model(input_ids=token_ids(vocabulary), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    found = {name: [calls.get(block, []) for block in one] for name, one in outer.items()}
    usable = {name: one for name, one in found.items() if all(map(_is_stream, one))}
    if not usable:
        raise Unproved(_reason(found))
    path = max(usable, key=lambda name: (len(usable[name]), sum(one.numel() for one in outer[name].parameters())))
    return Blocks(path, tuple(one[0] for one in usable[path]))


def _copied(value: Any) -> Any:
    """Return a value whose tensors nothing changes later."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, tuple):
        return tuple(_copied(one) for one in value)
    return {key: _copied(one) for key, one in value.items()} if isinstance(value, dict) else value


def _is_stream(calls: list[Call]) -> bool:
    """Return whether a module was called once, with a state and for a state."""
    if len(calls) != 1 or not (calls[0].args or "hidden_states" in calls[0].kwargs):
        return False
    given, put_out = calls[0].state, calls[0].put_out
    tensors = isinstance(given, torch.Tensor) and isinstance(put_out, torch.Tensor)
    if not (tensors and given.shape == put_out.shape and given.is_floating_point()):
        return False
    return given.dim() == 3 or (given.dim() == 4 and given.shape[:2] == (SAMPLES, TOKENS))


def _reason(found: dict[str, list[list[Call]]]) -> str:
    if not found:
        return "no list of blocks found"
    name = max(found, key=lambda one: len(found[one]))
    counts = sorted({len(one) for one in found[name]})
    if counts != [1]:
        return f"blocks found at {name}, but each is called {' or '.join(map(str, counts))} times in a pass"
    call = found[name][0][0]
    given, put_out = first_of(call.args), call.put_out
    shapes = [list(one.shape) if isinstance(one, torch.Tensor) else type(one).__name__ for one in (given, put_out)]
    return (
        f"blocks found at {name}, but they take {shapes[0]} and put out {shapes[1]}, no state [samples, tokens, hidden]"
    )
