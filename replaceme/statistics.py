"""The sums over calibration tokens that every fit reads: Gram, cross term, energy and means, in float64.

They are additive: shards of the same batches add up to the whole, and leaving a shard out is a subtraction away.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from replaceme.errors import ReplaceMeError
from replaceme.files import load_tensors, save_tensors
from replaceme.kernels import Sums, gram_cross


@dataclass
class Statistics:
    """Sums over unmasked tokens k with mlp_output row m_k, target row r_k and weight w_k (1 unless given).

    gram `sum w m m^T` [hidden, hidden], cross `sum w m r^T` [hidden, hidden], target_energy `sum w |r|^2` [],
    sum_mlp_output `sum w m` [hidden], sum_target `sum w r` [hidden], total_weight `sum w` []: float64 tensors on one
    device; tokens: the number of unmasked tokens.
    """

    gram: torch.Tensor
    cross: torch.Tensor
    target_energy: torch.Tensor
    sum_mlp_output: torch.Tensor
    sum_target: torch.Tensor
    tokens: int
    total_weight: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if self.total_weight is None:
            self.total_weight = torch.tensor(float(self.tokens), dtype=torch.float64, device=self.gram.device)

    @property
    def hidden_size(self) -> int:
        """Width of the rows."""
        return self.gram.shape[0]

    @classmethod
    def zeros(cls, hidden_size: int, device: torch.device | str = "cpu") -> "Statistics":
        """Empty sums for rows of `hidden_size` on a device."""

        def empty(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        square, vector = (hidden_size, hidden_size), (hidden_size,)
        return cls(empty(*square), empty(*square), empty(), empty(*vector), empty(*vector), 0, empty())

    def add_batch(
        self,
        mlp_output: torch.Tensor,
        target: torch.Tensor | tuple[torch.Tensor, ...],
        mask: torch.Tensor | None = None,
        weights: torch.Tensor | None = None,
    ) -> None:
        """Add the rows of a batch in place.

        mlp_output and target [..., hidden], any float dtype (the products are of the values as given); target may be
        the terms (a, b, c) of r = a - b + c, which is then formed where it is needed; mask [...], true or non-zero
        where a token counts; weights [...] floats. Masked rows are never read. Raises ReplaceMeError when the shapes
        disagree or an unmasked row holds NaN or infinity; the sums are then unchanged.
        """
        terms = target if isinstance(target, tuple) else (target,)
        m, terms, mask, weights = self._rows(mlp_output, terms, mask, weights)
        for name, rows in (("MLP output", m), *(("target", term) for term in terms if term is not m)):
            bad = ~torch.isfinite(rows).all(dim=1)
            bad = bad if mask is None else bad & mask
            if bad.any():
                raise ReplaceMeError(f"NaN or infinity in the {name} of {int(bad.sum())} of {len(bad)} tokens")
        out = Sums(self.gram, self.cross, self.sum_mlp_output, self.sum_target, self.target_energy)
        gram_cross(m, terms, weights, mask=mask, out=out)
        tokens = len(m) if mask is None else int(mask.sum())
        self.tokens += tokens
        kept = weights if weights is None or mask is None else weights[mask]
        self.total_weight += tokens if kept is None else kept.double().sum()

    def _rows(self, mlp_output, terms, mask, weights):
        """Flatten a batch to rows and check it; a term that is the MLP output itself stays so."""
        d = self.hidden_size
        for term in terms:
            if mlp_output.shape != term.shape or mlp_output.ndim < 1 or mlp_output.shape[-1] != d:
                raise ReplaceMeError(
                    f"the MLP output {list(mlp_output.shape)} and the target {list(term.shape)} must both be [..., {d}]"
                )
        for name, given in (("mask", mask), ("weights", weights)):
            if given is not None and given.shape != mlp_output.shape[:-1]:
                raise ReplaceMeError(f"the {name} must be {list(mlp_output.shape[:-1])}, got {list(given.shape)}")
        mask = None if mask is None else mask.reshape(-1).to(mlp_output.device, torch.bool)
        weights = None if weights is None else weights.reshape(-1).to(mlp_output.device)
        m = mlp_output.reshape(-1, d)
        return m, tuple(m if term is mlp_output else term.reshape(-1, d) for term in terms), mask, weights

    def __add__(self, other: "Statistics") -> "Statistics":
        """Sums over both sets of tokens; raises ReplaceMeError when the hidden sizes differ."""
        if self.hidden_size != other.hidden_size:
            raise ReplaceMeError(f"statistics of hidden sizes {self.hidden_size} and {other.hidden_size} do not add up")
        return Statistics(**{name: getattr(self, name) + getattr(other, name) for name in NAMES})

    def __sub__(self, other: "Statistics") -> "Statistics":
        """Sums without those of a part of the tokens, up to rounding; raises ReplaceMeError on different widths."""
        if self.hidden_size != other.hidden_size:
            raise ReplaceMeError(f"statistics of hidden sizes {self.hidden_size} and {other.hidden_size} do not match")
        return Statistics(**{name: getattr(self, name) - getattr(other, name) for name in NAMES})

    @staticmethod
    def sum(parts: Iterable["Statistics"]) -> "Statistics":
        """Add up shards pairwise, in an order that depends on their number alone; holds log2(shards) of them at once.

        Takes any iterable, so shards may be loaded one by one. Raises ReplaceMeError when there are none.
        """
        stack: list[tuple[int, Statistics]] = []  # like a binary counter: (height of the tree, its sum)
        for part in parts:
            height = 0
            while stack and stack[-1][0] == height:
                part = stack.pop()[1] + part
                height += 1
            stack.append((height, part))
        if not stack:
            raise ReplaceMeError("no statistics to add up")
        total = stack.pop()[1]
        while stack:
            total = stack.pop()[1] + total
        return total

    def to(self, device: torch.device | str) -> "Statistics":
        """The same sums on another device."""
        return Statistics(**{name: getattr(self, name).to(device) for name in TENSORS}, tokens=self.tokens)

    def save(self, path: str | Path, metadata: dict[str, Any] | None = None) -> None:
        """Write a safetensors file, atomically, with JSON-able metadata."""
        tensors = {name: getattr(self, name) for name in TENSORS}
        save_tensors(path, {**tensors, "tokens": torch.tensor(self.tokens)}, metadata or {})

    @staticmethod
    def load(path: str | Path) -> tuple["Statistics", dict[str, Any]]:
        """Read what `save` wrote, as (statistics on the CPU, metadata); raises ReplaceMeError on a wrong content."""
        tensors, metadata = load_tensors(path)
        if set(tensors) != set(NAMES):
            raise ReplaceMeError(f"{path}: holds {sorted(tensors)}, not statistics; delete it and run again")
        d = tensors["gram"].shape[-1] if tensors["gram"].ndim else 0
        shapes = dict.fromkeys(TENSORS, ()) | {"gram": (d, d), "cross": (d, d)}
        shapes |= {"sum_mlp_output": (d,), "sum_target": (d,)}
        for name, shape in shapes.items():
            if tensors[name].shape != shape or tensors[name].dtype != torch.float64:
                found = f"{tensors[name].dtype} {list(tensors[name].shape)}"
                raise ReplaceMeError(f"{path}: {name} is {found}, expected torch.float64 {list(shape)}; run again")
        if tensors["tokens"].shape != () or tensors["tokens"].dtype != torch.int64:
            raise ReplaceMeError(f"{path}: tokens is not one integer; delete it and run again")
        return Statistics(**{**tensors, "tokens": int(tensors["tokens"])}), metadata


NAMES = tuple(field.name for field in fields(Statistics))
TENSORS = tuple(name for name in NAMES if name != "tokens")
