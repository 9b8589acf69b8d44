"""Measure whether compiled blocks or float8 products make the passes over the text faster, and how far the sums move.

A random model of Llama 3 8B's shape, the pass in bfloat16 that the sums of one cut need, three ways in turn: as it is;
with the forward of every block but the carrier compiled; with the linear layers of these blocks as float8 products,
scaled by row and by output (e4m3). Errors are those of the Gram, the cross matrix and the target's energy, as shares of
their norms, against the plain pass and against one in float32, from which the plain one differs too.

    python benchmarks/bench_forward.py [--hidden 4096 --blocks 32 --samples 64 ...]
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import torch
from bench_pipeline import SIZES, add_sizes, random_tokens, write_model

from replaceme.activations.gather import gather_groups
from replaceme.activations.statistics import Statistics
from replaceme.calibration.tokens import Tokens
from replaceme.models.family import Family
from replaceme.models.loading import load_base_model
from replaceme.models.model_config import family_of
from replaceme.provenance.environment import hardware

ROUNDS = 3
MOST = torch.finfo(torch.float8_e4m3fn).max


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_sizes(parser, SIZES | {"samples": 64})
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        folder = Path(scratch) / "model"
        write_model(folder, arguments, device)
        family = family_of(json.loads((folder / "config.json").read_text()), "the model")
        start = max(1, arguments.blocks - arguments.removed - 4)
        group, batches = (start, start + arguments.removed), random_tokens(arguments).batches(arguments.batch)
        model = load_base_model(folder, "float32", device)
        exact = gather_groups(model, family, batches, [group])[0]
        model = load_base_model(folder, "bfloat16", device)
        found = measured(model, family, batches, group, exact)
    sizes = {name: getattr(arguments, name) for name in SIZES}
    print(json.dumps({**found, "sizes": sizes, "hardware": hardware()}, indent=1))


def measured(
    model: torch.nn.Module, family: Family, batches: list[Tokens], group: tuple[int, int], exact: Statistics
) -> dict[str, Any]:
    """Return seconds of each way, of its first pass and of later ones, and its errors."""
    start, _ = group
    blocks = [block for number, block in enumerate(family.block_modules(model)) if number != start - 1]
    ways = {"plain": lambda _: ExitStack(), "compiled": compiled, "float8": float8}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    sums: dict[str, Statistics] = {}
    for _ in range(1 + ROUNDS):
        for name, way in ways.items():
            with way(blocks):
                began = time.perf_counter()
                sums[name] = gather_groups(model, family, batches, [group])[0]
                float(sums[name].target_energy)  # waits for it
                seconds[name].append(time.perf_counter() - began)
    return {
        name: {
            "first": times[0],
            "seconds": median(times[1:]),
            "from plain": errors(sums[name], sums["plain"]),
            "from float32": errors(sums[name], exact),
        }
        for name, times in seconds.items()
    }


def errors(found: Statistics, others: Statistics) -> dict[str, float]:
    """Return the relative Frobenius errors of sums."""
    pairs = {name: (getattr(found, name), getattr(others, name)) for name in ("gram", "cross", "target_energy")}
    return {name: float((one - other).norm() / other.norm()) for name, (one, other) in pairs.items()}


COMPILED: dict[int, Callable[..., Any]] = {}


@contextmanager
def compiled(blocks: list[torch.nn.Module]) -> Any:
    """Within it the forwards of blocks are compiled; hooks stay outside."""
    with ExitStack() as undone:
        for block in blocks:
            forward = COMPILED.setdefault(id(block), torch.compile(block.forward))
            undone.enter_context(mock.patch.object(block, "forward", forward))
        yield


@contextmanager
def float8(blocks: list[torch.nn.Module]) -> Any:
    """Within it the linear layers of blocks multiply in float8."""
    with ExitStack() as undone:
        for block in blocks:
            for layer in block.modules():
                if isinstance(layer, torch.nn.Linear):
                    undone.enter_context(mock.patch.object(layer, "forward", Float8(layer.weight.detach())))
        yield


class Float8:
    """A product with a weight [outputs, inputs] in float8."""

    def __init__(self, weight: torch.Tensor) -> None:
        self.weight, self.scales = rounded(weight)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return x W^T."""
        rows, scales = rounded(x.flatten(0, -2))
        product = torch._scaled_mm(rows, self.weight.t(), scales, self.scales.t(), out_dtype=x.dtype)
        return product.view(*x.shape[:-1], -1)


def rounded(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows in float8 and their scales [rows, 1], float32."""
    scales = (rows.abs().amax(-1, keepdim=True).float() / MOST).clamp(min=1e-12)
    return (rows.float() / scales).to(torch.float8_e4m3fn), scales


if __name__ == "__main__":
    main()
