"""Distances between the hidden states of all pairs of blocks, in one pass over the calibration tokens.

cosine: mean over tokens of 1 - cos(h_i, h_j); angular: mean of arccos(cos) / pi; l2: mean of |h_i - h_j|; bi: the block
influences of ShortGPT (arXiv 2403.03853), 1 - cos(h_{k-1}, h_k), summed over blocks i+1 .. j. Each over all unmasked
tokens (`all`) and over the last unmasked token of each sequence (`last`). If the config needs them, cka and cca: see
`similarity`, over the first tokens (`all` alone). h_k = hidden_states[k], before any final norm; on request also those
of the states in the middle of blocks, hidden_states[k - 0.5], in matrices named so. Eq. 4, Fig. 5 to 7 of the paper;
its authors' code uses angular, last.
"""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from replaceme.activations.capture import Activations, Wanted, collect
from replaceme.calibration.tokens import Tokens
from replaceme.config.metrics import DISTANCES, INFLUENCES, REPRESENTATIONS, by_position, middle
from replaceme.core.errors import ReplaceMeError
from replaceme.core.files import load_tensors, save_tensors, write_text
from replaceme.core.named import import_named
from replaceme.core.places import HALF, Place
from replaceme.core.progress import progress
from replaceme.models.family import Family

if TYPE_CHECKING:
    import torch
    from torch import nn

POSITIONS = ("all", "last")


def measure(
    model: "nn.Module",
    family: Family,
    tokens: Tokens,
    batch_size: int,
    representations: bool = False,
    halves: bool = False,
) -> dict[str, "torch.Tensor"]:
    """Measure matrices `<metric>_<position>`, float64 [L, L], entry (i, j) the mean distance of hidden_states[i] and
    [j].

    `representations`: also cka and cca, which cost more than all others. `halves`: also of the middle of blocks.
    """
    distances = several(len(family.block_modules(model)), representations, halves)
    collect(model, family, progress(tokens.batches(batch_size), "distances", unit="batch"), distances)
    return means_of(distances)


def several(num_blocks: int, representations: bool, halves: bool) -> "list[Distances]":
    """Return what measures the distances of the states after all blocks, and in the middle of them with `halves`."""
    return [Distances(num_blocks, representations, before) for before in ((0, HALF) if halves else (0,))]


def means_of(measured: "Sequence[Distances]") -> dict[str, "torch.Tensor"]:
    """Return the matrices of all of them."""
    return {name: matrix for one in measured for name, matrix in one.means().items()}


class Distances:
    """The sums of `measure`, batch by batch, of the states that lie `before` the ends of blocks: 0, or HALF a block."""

    def __init__(self, num_blocks: int, representations: bool = False, before: Place = 0) -> None:
        import torch

        shape = (num_blocks, num_blocks)
        names = [f"{metric}_{position}" for metric in DISTANCES for position in POSITIONS]
        self.sums = {name: torch.zeros(shape, dtype=torch.float64) for name in names}
        self.counts = dict.fromkeys(POSITIONS, 0)
        self.first: list[list[torch.Tensor]] | None = [[] for _ in range(num_blocks)] if representations else None
        self.states = [block - before for block in range(num_blocks)]
        self.wanted = Wanted(frozenset(self.states))

    def add(self, activations: Activations) -> None:
        """Add the distances of a batch."""
        from replaceme.cuts.similarity import TOKENS

        room = max(0, TOKENS - self.counts["all"]) if self.first else 0
        states = [activations.hidden_states[state].flatten(2) for state in self.states]  # all streams of a token
        for state, kept in zip(states, self.first, strict=True) if room else ():
            kept.append(state[activations.mask][:room].clone())  # not all of it kept alive
        for position, keep in (("all", activations.mask), ("last", last_tokens(activations.mask))):
            self.counts[position] += int(keep.sum())
            for metric, total in _sums(states, keep).items():
                self.sums[f"{metric}_{position}"] += total

    def means(self) -> dict[str, "torch.Tensor"]:
        """Return the matrices of `measure`, over the batches so far."""
        means = {name: total / self.counts[name.rpartition("_")[2]] for name, total in self.sums.items()}
        for metric, one in INFLUENCES.items():
            for position in POSITIONS:
                of_position = {name: means[f"{name}_{position}"] for name in DISTANCES}
                means[f"{metric}_{position}"] = import_named(one.function)(of_position)
        means |= _of_representations(self.first)
        return {middle(name): matrix for name, matrix in means.items()} if self.states[0] else means


def _of_representations(kept: "list[list[torch.Tensor]] | None") -> dict[str, "torch.Tensor"]:
    """Return matrices `<metric>_all` of the states kept of each block, none where none were."""
    import torch

    if not kept:
        return {}
    states = [torch.cat(one).double() for one in kept]
    centred = [one - one.mean(0) for one in states]
    found = {f"{metric}_all": import_named(one.function)(centred) for metric, one in REPRESENTATIONS.items()}
    return {name: matrix for name, matrix in found.items() if matrix is not None}


def angles(states: "list[torch.Tensor]", flags: "torch.Tensor") -> dict[str, "torch.Tensor"]:
    """Mean cosine and angular distance over the flagged tokens, of states [tokens, hidden] of each block."""
    from replaceme.kernels.pairwise_cosine import pairwise_cosine

    return dict(zip(("cosine", "angular"), pairwise_cosine(states, flags), strict=True))


def lengths(states: "list[torch.Tensor]", flags: "torch.Tensor") -> dict[str, "torch.Tensor"]:
    """Mean length of the difference over the flagged tokens, of states [tokens, hidden] of each block."""
    from replaceme.kernels.pairwise_l2 import pairwise_l2

    return {"l2": pairwise_l2(states, flags)}


def influences(means: dict[str, "torch.Tensor"]) -> "torch.Tensor":
    """Return sums of the cosine distances between neighbours, from i to j, of the mean distances of all pairs."""
    import torch

    cosine = means["cosine"]
    passed = torch.cat([torch.zeros(1, dtype=cosine.dtype), cosine.diagonal(1).cumsum(0)])
    return (passed[:, None] - passed).abs()


def last_tokens(mask: "torch.Tensor") -> "torch.Tensor":
    """Return the mask [samples, tokens] that is true only on the last unmasked token of each sequence."""
    following = mask.long().flip(1).cumsum(1).flip(1)
    return mask & (following == 1)


def _sums(given: "list[torch.Tensor]", keep: "torch.Tensor") -> dict[str, "torch.Tensor"]:
    """Return sums over the kept tokens of each of DISTANCES, float64 [L, L], of L states [samples, tokens, hidden]."""
    states = [state.flatten(0, 1) for state in given]
    flags = keep.flatten()  # few kept tokens need no gathering: the others are not read
    means: dict[str, torch.Tensor] = {}
    for function in dict.fromkeys(one.function for one in DISTANCES.values()):
        means |= import_named(function)(states, flags)
    return {metric: (means[metric] * keep.sum()).cpu() for metric in DISTANCES}


def save(path: str | Path, matrices: dict[str, "torch.Tensor"], metadata: dict) -> None:
    """Write the matrices as safetensors, and as one long csv beside it."""
    path = Path(path)
    save_tensors(path, matrices, metadata)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["i", "j", *matrices])
    num_blocks = len(next(iter(matrices.values())))
    for i in range(num_blocks):
        for j in range(num_blocks):
            writer.writerow([i, j, *(repr(float(matrix[i, j])) for matrix in matrices.values())])
    write_text(path.with_suffix(".csv"), text.getvalue())


def load(path: str | Path) -> tuple[dict[str, "torch.Tensor"], dict]:
    """Read a file of `save`."""
    matrices, metadata = load_tensors(path)
    if not {f"{m}_{p}" for m in by_position() for p in POSITIONS} <= matrices.keys():
        raise ReplaceMeError(f"{path}: not a distance file; make it with `replaceme distances`")
    return matrices, metadata
