"""Run a loaded model as if blocks were removed and transforms folded in, inside a context.

Removed blocks pass their input on, and the transform is applied according to its placement. No weight changes for
longer than that (and none at all but for `collapse`) and no block is renumbered, so that masks and position-dependent
settings stay those of each kept block. A checkpoint of `fold` must give the same logits (tests/surgery/test_fold.py).
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from replaceme.activations.hooks import skipped
from replaceme.config.placement import UPSTREAM
from replaceme.models.family import Family
from replaceme.surgery.laco_merge import COLLAPSE, coefficients_of, collapsed
from replaceme.surgery.stream_scale import factor_of, hooked

if TYPE_CHECKING:
    from torch import nn

    from replaceme.transforms.transform import Transform


@contextmanager
def shortened(
    base_model: "nn.Module",
    family: Family,
    groups: Sequence[tuple[int, int]],
    transforms: Sequence["Transform | None"],
) -> Iterator[None]:
    """Run the base model without the blocks [start, end) of each group within the block; None: nothing replaces
    them.
    """
    blocks = family.block_modules(base_model)
    with ExitStack() as hooks:
        for (start, end), transform in zip(groups, transforms, strict=True):
            for block in blocks[start:end]:
                hooks.callback(skipped(block, family))
            if transform is not None and transform.placement == COLLAPSE:
                hooks.callback(collapsed(blocks, start, end, coefficients_of(transform)))
            elif transform is not None and transform.placement == UPSTREAM:
                for undo in hooked(base_model, family, start, factor_of(transform)):
                    hooks.callback(undo)
            elif transform is not None:
                module = blocks[start - 1] if transform.placement == "block" else family.mlp_module(blocks[start - 1])
                hooks.callback(_applied(module, family, blocks[start - 1], transform))
        yield


def _applied(module: "nn.Module", family: Family, carrier: "nn.Module", transform: "Transform"):
    """Make a module put out its output times T (with the effect of a norm after the MLP); returns a function that
    undoes it.
    """
    import torch

    device = next(module.parameters(), next(carrier.parameters())).device
    # moved once, not at every call
    matrix = transform.matrix.to(device, torch.float32)
    intercept = None if transform.intercept is None else transform.intercept.to(device, torch.float32)
    moved = replace(transform, matrix=matrix, intercept=intercept)
    whole = transform.placement == "block"  # the residual stream, not M
    seen: dict[str, torch.Tensor] = {}
    handles = []
    if transform.placement == "down_proj":
        recycled = transform.recycled

        def keep_rows(_: "nn.Module", inputs: Any) -> None:
            seen["rows"] = inputs[0] if recycled is None else recycled.apply(inputs[0], seen.pop("input"))

        def keep_input(_: "nn.Module", inputs: Any) -> None:
            seen["input"] = inputs[0]

        if recycled is not None:
            handles.append(family.gate_projection(carrier).register_forward_pre_hook(keep_input))
        handles.append(family.down_projection(carrier).register_forward_pre_hook(keep_rows))

    def hook(_: "nn.Module", inputs: Any, output: Any) -> Any:
        given = output[0] if isinstance(output, tuple) else output
        rows = seen.pop("rows") if "rows" in seen else given if whole else family.added(given)
        found = moved.apply(rows.to(matrix.dtype)) / (1.0 if whole else family.multiplier)
        found = found.to(given.dtype)
        return (found, *output[1:]) if isinstance(output, tuple) else found

    handles.append(module.register_forward_hook(hook))

    def undo() -> None:
        for handle in handles:
            handle.remove()

    return undo
