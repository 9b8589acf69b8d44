"""The sums over calibration tokens that every fit reads: Gram, cross term, energy and means, in float64.

They are additive: shards of the same batches add up to the whole, and leaving a shard out is a subtraction away.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from replaceme.core.errors import ReplaceMeError
from replaceme.core.files import load_tensors, save_groups
from replaceme.kernels.gram import Sums, gram_cross


@dataclass
class Statistics:
    """Sums over unmasked tokens k with mlp_output row m_k, target row r_k and weight w_k (1 unless given).

    gram `sum w m m^T` [width, width], cross `sum w m r^T` [width, hidden], target_energy `sum w |r|^2` [],
    sum_mlp_output `sum w m` [width], sum_target `sum w r` [hidden], total_weight `sum w` []: float64 tensors on one
    device; tokens: the number of unmasked tokens. The width of m is the hidden size, but where the rows are the inputs
    of the down projection (see `targets`).
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
    def width(self) -> int:
        """Width of the rows m."""
        return self.gram.shape[0]

    @property
    def hidden_size(self) -> int:
        """Width of the targets."""
        return self.cross.shape[1]

    @classmethod
    def zeros(cls, hidden_size: int, device: torch.device | str = "cpu", width: int | None = None) -> "Statistics":
        """Return empty sums on a device for targets of `hidden_size` and rows of `width`, the same unless given."""

        def empty(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        width = width or hidden_size
        return cls(
            empty(width, width), empty(width, hidden_size), empty(), empty(width), empty(hidden_size), 0, empty()
        )

    def add_batch(
        self,
        mlp_output: torch.Tensor,
        target: torch.Tensor | tuple[torch.Tensor, ...],
        mask: torch.Tensor | None = None,
        weights: torch.Tensor | None = None,
    ) -> None:
        """Add the rows of a batch in place.

        mlp_output [..., width] and target [..., hidden], any float dtype (the products are of the values as given);
        target may be the terms (a, b, c) of r = a - b + c, which is then formed where it is needed; mask [...], true or
        non-zero where a token counts; weights [...] floats. Where a token has a row in each of several residual
        streams, [samples, tokens, streams, width], mask and weights are those of tokens [samples, tokens]. Masked rows
        are never read. Raises ReplaceMeError when the shapes disagree or an unmasked row holds NaN or infinity; the
        sums are then unchanged.
        """
        terms = target if isinstance(target, tuple) else (target,)
        streams = _streams(mlp_output, mask)
        m, terms, mask, weights = self._rows(mlp_output, terms, mask, weights)
        for name, rows in (("MLP output", m), *(("target", term) for term in terms if term is not m)):
            bad = ~torch.isfinite(rows).all(dim=1)
            bad = bad if mask is None else bad & mask
            if bad.any():
                raise ReplaceMeError(f"NaN or infinity in the {name} of {int(bad.sum())} of {len(bad)} tokens")
        out = Sums(self.gram, self.cross, self.sum_mlp_output, self.sum_target, self.target_energy)
        gram_cross(m, terms, weights, mask=mask, out=out)
        rows = len(m) if mask is None else int(mask.sum())
        self.tokens += rows // streams
        kept = weights if weights is None or mask is None else weights[mask]
        self.total_weight += rows if kept is None else kept.double().sum()

    def _rows(self, mlp_output, terms, mask, weights):
        """Flatten a batch to rows and check it; a term that is the MLP output itself stays so."""
        widths = [(mlp_output, self.width), *((term, self.hidden_size) for term in terms)]
        for rows, width in widths:
            if rows.ndim < 1 or rows.shape[-1] != width or rows.shape[:-1] != mlp_output.shape[:-1]:
                found = ", ".join(str(list(one.shape)) for one, _ in widths)
                raise ReplaceMeError(
                    f"the MLP output must be [..., {self.width}] and the target [..., {self.hidden_size}], got {found}"
                )
        streams = _streams(mlp_output, mask)
        shape = mlp_output.shape[: 2 if streams > 1 else -1]
        for name, given in (("mask", mask), ("weights", weights)):
            if given is not None and given.shape != shape:
                raise ReplaceMeError(f"the {name} must be {list(shape)}, got {list(given.shape)}")
        mask = None if mask is None else _by_row(mask, streams).to(mlp_output.device, torch.bool)
        weights = None if weights is None else _by_row(weights, streams).to(mlp_output.device)
        m = mlp_output.reshape(-1, self.width)
        terms = tuple(m if term is mlp_output else term.reshape(-1, self.hidden_size) for term in terms)
        return m, terms, mask, weights

    def __add__(self, other: "Statistics") -> "Statistics":
        """Return sums over both sets of tokens; raises ReplaceMeError when the widths differ."""
        self._check_same_shape(other)
        return Statistics(**{name: getattr(self, name) + getattr(other, name) for name in NAMES})

    def __sub__(self, other: "Statistics") -> "Statistics":
        """Return the sums without those of a part of the tokens, up to rounding; raises ReplaceMeError on different
        widths.
        """
        self._check_same_shape(other)
        return Statistics(**{name: getattr(self, name) - getattr(other, name) for name in NAMES})

    def _check_same_shape(self, other: "Statistics") -> None:
        if self.cross.shape != other.cross.shape:
            ours, theirs = (" x ".join(map(str, one.cross.shape)) for one in (self, other))
            raise ReplaceMeError(f"statistics of {ours} and {theirs} channels do not belong together")

    @staticmethod
    def sum(parts: Iterable["Statistics"]) -> "Statistics":
        """Add up shards one after the other, in the order given; holds the sum and one of them at a time.

        Takes any iterable, so shards may be loaded one by one. The order is that of rounding too: the same order gives
        the same bits. 1,000 shards lose at most 1,000 units in the last place of float64, 1e-13 of the sum of absolute
        values. Raises ReplaceMeError when there are none.
        """
        total = None
        for part in parts:
            if total is None:
                total = replace(part, **{name: getattr(part, name).clone() for name in TENSORS})
            else:
                total._check_same_shape(part)
                for name in TENSORS:
                    getattr(total, name).add_(getattr(part, name))
                total.tokens += part.tokens
            del part  # before the next one is loaded
        if total is None:
            raise ReplaceMeError("no statistics to add up")
        return total

    def to(self, device: torch.device | str) -> "Statistics":
        """Return the same sums on another device."""
        return Statistics(**{name: getattr(self, name).to(device) for name in TENSORS}, tokens=self.tokens)

    def at(self, kept: torch.Tensor) -> "Statistics":
        """Return the sums over some entries of the rows m, by their numbers [kept]."""
        few = {"gram": self.gram[kept][:, kept], "cross": self.cross[kept], "sum_mlp_output": self.sum_mlp_output[kept]}
        return replace(self, **few)

    def save(self, path: str | Path, metadata: dict[str, Any] | None = None) -> None:
        """Write a safetensors file, atomically, with JSON-able metadata."""
        self.save_all(path, [self], metadata)

    @staticmethod
    def save_all(path: str | Path, groups: Sequence["Statistics"], metadata: dict[str, Any] | None = None) -> None:
        """Write the statistics of every group of a cut into one file, as `save` does."""
        tensors = [
            {**{name: getattr(one, name) for name in TENSORS}, "tokens": torch.tensor(one.tokens)} for one in groups
        ]
        save_groups(path, tensors, metadata or {})

    @staticmethod
    def load(path: str | Path, group: int = 0) -> tuple["Statistics", dict[str, Any]]:
        """Read a file of `save`, or one group of `save_all`, as (statistics on the CPU, metadata).

        Raises ReplaceMeError on a wrong content.
        """
        tensors, metadata = load_tensors(path, group)
        return _of_tensors(tensors, path), metadata


NAMES = tuple(field.name for field in fields(Statistics))
TENSORS = tuple(name for name in NAMES if name != "tokens")


def _streams(mlp_output: torch.Tensor, mask: torch.Tensor | None) -> int:
    """Return the number of rows of each token: that of streams where the mask lacks their axis."""
    return mlp_output.shape[2] if mask is not None and mask.ndim == 2 and mlp_output.ndim == 4 else 1


def _by_row(given: torch.Tensor, streams: int) -> torch.Tensor:
    """Return a value for each row of values for each token."""
    flat = given.reshape(-1)
    return flat if streams == 1 else flat.repeat_interleave(streams)


def _of_tensors(tensors: dict[str, torch.Tensor], path: str | Path) -> Statistics:
    if set(tensors) != set(NAMES):
        raise ReplaceMeError(f"{path}: holds {sorted(tensors)}, not statistics; delete it and run again")
    rows, columns = tensors["cross"].shape if tensors["cross"].ndim == 2 else (0, 0)
    shapes = dict.fromkeys(TENSORS, ()) | {"gram": (rows, rows), "cross": (rows, columns)}
    shapes |= {"sum_mlp_output": (rows,), "sum_target": (columns,)}
    for name, shape in shapes.items():
        if tensors[name].shape != shape or tensors[name].dtype != torch.float64:
            found = f"{tensors[name].dtype} {list(tensors[name].shape)}"
            raise ReplaceMeError(f"{path}: {name} is {found}, expected torch.float64 {list(shape)}; run again")
    if tensors["tokens"].shape != () or tensors["tokens"].dtype != torch.int64:
        raise ReplaceMeError(f"{path}: tokens is not one integer; delete it and run again")
    return Statistics(**{**tensors, "tokens": int(tensors["tokens"])})
