"""FlattenGPT (arXiv 2602.08858): neighbouring blocks side by side as one, pruned back to the width of a block.

The carrier c and the blocks of the cut after it become one block. All their attentions read the residual stream before
the carrier, all their MLPs the stream after these attentions. Norms of the stream differ by their gains alone, so that
the rows of another block's queries, keys, values, gates and up projections are the carrier's with

    w . n_j(h) = (w * gain_j / gain_c) . n_c(h).

So the heads of all lie beside one another, and so do the neurons. Of both as many are kept as one block has, those that
say most of what the blocks did (`neuron_choice`), and what they write by is fitted anew, z the heads' outputs and a the
neurons' at the merged block, h before it and h' after its attention:

    z O ~ sum of what the blocks' attentions added          (heads go by groups that share keys and values)
    a D ~ hidden_states[end-1] - h'                         (which the attention left undone included)

by least squares, with a ridge towards the old projections. `estimation: sequential` takes h of the model that is merged
up to there, and what the blocks do to that. `objective: kl` trains all D through the model afterwards.

Where queries and keys have norms of their own (Qwen 3), the carrier's serve all heads: those of other blocks are then
other heads than they were, and are chosen and fitted as such.

As in the paper: the flattened block, its pruning to one block's width, no training. Differs: heads and neurons are
chosen by backward elimination against what the blocks did, and both projections are fitted to that; the pairs are
chosen as any cut here. Its code is not public.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from replaceme.activations.capture import Wanted
from replaceme.activations.recycled_neurons import Recycled
from replaceme.activations.removed_neurons import Screen, from_norm, neurons_of
from replaceme.activations.statistics import Statistics
from replaceme.activations.targets import weights_of
from replaceme.config.placement import Regression
from replaceme.core.cut_record import Cut
from replaceme.core.errors import ReplaceMeError
from replaceme.core.places import HALF
from replaceme.core.progress import progress
from replaceme.fitting.fit_cut import trained
from replaceme.methods import carriers
from replaceme.methods.carriers import replaced
from replaceme.methods.found import Found
from replaceme.methods.walk import Walk
from replaceme.models.checkpoints import open_checkpoint
from replaceme.models.model_record import ModelRecord
from replaceme.placements.down_proj import DownProj
from replaceme.transforms.closed_form import fit_least_squares
from replaceme.transforms.neuron_choice import keep_best, keep_best_runs
from replaceme.transforms.transform import Transform, joint_report, residual

if TYPE_CHECKING:
    from replaceme.activations.capture import Activations
    from replaceme.config.methods import FlattenGptConfig
    from replaceme.fitting.passes import Passes
    from replaceme.models.checkpoints import Checkpoint

NORM = "input_layernorm.weight"
READERS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
OUTPUT = "self_attn.o_proj.weight"
OF_HEADS = ("self_attn.q_norm.weight", "self_attn.k_norm.weight")
Tensors = dict[str, torch.Tensor]
content, running = carriers.content, carriers.running


def fit(passes: "Passes", config: "FlattenGptConfig", cut: Cut, record: ModelRecord) -> Found:
    """Return the weights of the merged blocks in the stored type, `<carrier>.<parameter>`, and what they miss."""
    checkpoint = open_checkpoint(record.folder)
    _check_kinds(passes, cut)
    walk, tensors, maps = Walk(passes, copies=2), {}, []
    for group in progress(cut.groups, "flatten", unit="group"):
        while walk.at < group[0] - 1:
            for _ in walk.visit():
                pass
        merging = Merging(walk, config, checkpoint, group)
        tensors |= merging.run()
        maps.append(merging.map)
    if config.end_to_end:
        kind = next(walk.blocks.parameters())
        placed = {name: one.to(kind) for name, one in tensors.items()}  # once, not at every step
        maps = trained(config, cut.groups, maps, passes, partial(replaced, walk.blocks, placed))
        for (start, _), one in zip(cut.groups, maps, strict=True):
            name = _down(checkpoint, start - 1)
            tensors[name] = one.matrix.T.to(tensors[name]).contiguous()
        maps = [_without(one, "residual", "r2") for one in maps]  # which are of the closed form
    return Found("flattengpt", tensors, {**joint_report(maps), "tokens": passes.tokens.count})


def _check_kinds(passes: "Passes", cut: Cut) -> None:
    """Raise ReplaceMeError for blocks whose attentions see different tokens."""
    kinds = getattr(passes.model.config, "layer_types", None) or [None] * cut.num_blocks
    for start, end in cut.groups:
        if len(found := set(kinds[start - 1 : end])) > 1:
            raise ReplaceMeError(
                f"flattengpt: blocks {start - 1} .. {end - 1} have attentions of several kinds "
                f"({', '.join(sorted(found))}), which no one block can have; place the cut by hand"
            )


def _without(found: Transform, *names: str) -> Transform:
    """Return a map without some entries of its report."""
    return replace(found, report={name: one for name, one in found.report.items() if name not in names})


def _down(checkpoint: "Checkpoint", block: int) -> str:
    """Return the name of a block's down projection."""
    return f"{block}.{checkpoint.family.fold[0]}"


class Merging:
    """The carrier and the blocks [start, end) after it on their way to one block; `map` is its down projection."""

    map: Transform

    def __init__(
        self, walk: Walk, config: "FlattenGptConfig", checkpoint: "Checkpoint", group: tuple[int, int]
    ) -> None:
        self.walk, self.config, self.checkpoint = walk, config, checkpoint
        self.group, self.carrier = group, group[0] - 1
        self.members = range(self.carrier, group[1])
        self.regression = Regression(weighting=config.weighting)
        self.after: list[torch.Tensor] = []  # states after the blocks, of each batch, in host memory

    def run(self) -> Tensors:
        """Merge the blocks, and move the walk behind them; returns the merged block's weights by name."""
        walk = self.walk
        heads, of_heads = self._heads()
        tensors = dict(heads)
        with replaced(walk.blocks, heads):
            neurons, of_neurons = self._neurons()
        tensors |= neurons
        if self.config.estimation == "sequential":
            with replaced(walk.blocks, tensors):
                for number in range(len(walk.batches)):
                    found = walk.run(number, Wanted(frozenset({self.carrier})))
                    self.after[number] = found.hidden_states[self.carrier].cpu()
        walk.states, walk.at = self.after, self.group[1]
        report = {**of_neurons.report, **{f"attention_{name}": one for name, one in of_heads.report.items()}}
        self.map = replace(of_neurons, report=report)
        return tensors

    def _heads(self) -> tuple[Tensors, Transform]:
        """Choose heads by the groups that share keys and values, and fit the output projection."""
        settings = self.walk.model.config
        groups = getattr(settings, "num_key_value_heads", None) or settings.num_attention_heads
        stored = self._stored(OUTPUT)
        origin = torch.cat([one.double().T for one in stored])
        size = len(origin) // (groups * len(self.members))
        sums = self._sums(self._rows_of_heads(), len(origin))
        runs = torch.tensor(keep_best_runs(sums, origin, self.config.ridge_relative, size, groups))
        kept = (runs[:, None] * size + torch.arange(size)).flatten()
        choice = self._fitted(sums, origin, kept, torch.arange(len(origin)) // (groups * size))
        tensors = {f"{self.carrier}.{OUTPUT}": choice.matrix.T.to(stored[0]).contiguous()}
        for name, weights in self._readers().items():
            everything = torch.cat(weights).unflatten(0, (groups * len(self.members), -1))
            tensors[f"{self.carrier}.{name}"] = everything[runs].flatten(0, 1).contiguous()
        return tensors, choice

    def _readers(self) -> dict[str, list[torch.Tensor]]:
        """Return the weights and biases of queries, keys and values of all members, as the carrier's norm needs."""
        ratios = [from_norm(self.checkpoint, NORM, block, self.carrier)[0] for block in self.members]
        found = {f"{name}.bias": self._stored(f"{name}.bias") for name in READERS}
        for name in (f"{one}.weight" for one in READERS):
            pairs = zip(self._stored(name), ratios, strict=True)
            found[name] = [(weight.double() * ratio).to(weight.dtype) for weight, ratio in pairs]
        return {name: weights for name, weights in found.items() if weights}

    def _stored(self, name: str) -> list[torch.Tensor]:
        """Return a tensor of every member, as the checkpoint has it; none where blocks have no such tensor."""
        full = [f"{self.checkpoint.family.blocks}.{block}.{name}" for block in self.members]
        return [self.checkpoint.tensor(one) for one in full if one in self.checkpoint.tensors]

    def _rows_of_heads(self) -> "Iterator[tuple[torch.Tensor, torch.Tensor, Activations]]":
        """Yield (outputs of all heads before the carrier, sum of what the attentions add) of each batch, and keep the
        states after the blocks.
        """
        walk, last = self.walk, self.group[1] - 1
        middle = {block: block - HALF for block in self.members}
        wanted = Wanted(frozenset({last}), frozenset(middle.values()), down_input=frozenset({middle[self.carrier]}))
        for number in range(len(walk.batches)):
            found = walk.run(number, wanted)
            self.after.append(found.hidden_states[last].cpu())
            heads = [found.down_input[middle[self.carrier]]]
            with replaced(walk.blocks, self._norms_of_heads()):
                for block in self.members[1:]:
                    alone = walk.run(number, Wanted(frozenset(), down_input=frozenset({middle[block]})), first=block)
                    heads.append(alone.down_input[middle[block]])
            yield torch.cat(heads, -1), sum(one.float() for one in found.mlp_output.values()), found

    def _norms_of_heads(self) -> Tensors:
        """Return the carrier's norms of queries and keys, if it has some, as those of the other members."""
        found = {name: stored[0] for name in OF_HEADS if (stored := self._stored(name))}
        return {f"{block}.{name}": own for name, own in found.items() for block in self.members[1:]}

    def _neurons(self) -> tuple[Tensors, Transform]:
        """Choose neurons, with the merged attention in place, and fit the down projection."""
        own, *pool = (neurons_of(self.checkpoint, block, self.carrier) for block in self.members)
        down = self._stored(self.checkpoint.family.fold[0])
        origin = torch.cat([one.double().T for one in down])
        others, count = Recycled.join(pool), round(self.config.shortlist * len(own.up))
        listed = torch.arange(len(others.up))
        if count < len(listed):
            listed = self._shortlist(own, pool, origin[: len(own.up)], count)
        everything = Recycled.join([own, others.at(listed, listed)]).to(self.walk.device)
        origin = torch.cat([origin[: len(own.up)], origin[len(own.up) :][listed]])
        sums = self._sums(((everything.outputs(x), r, found) for x, r, found in self._rows_of_mlp()), len(origin))
        kept = keep_best(sums, origin, self.config.ridge_relative, len(own.up))
        whose = torch.cat([torch.zeros(len(own.up), dtype=torch.int64), 1 + listed // len(own.up)])
        choice = self._fitted(sums, origin, kept, whose)
        left, family = everything.to("cpu").at(kept, kept), self.checkpoint.family
        named = {family.gate: left.gate, family.up: left.up, family.fold[0]: choice.matrix.T.to(down[0])}
        return {f"{self.carrier}.{name}": one.contiguous() for name, one in named.items()}, choice

    def _shortlist(self, own: Recycled, pool: Sequence[Recycled], origin: torch.Tensor, count: int) -> torch.Tensor:
        """Return the other members' neurons that explain most of what a fit of the carrier's own misses."""
        placed = own.to(self.walk.device)
        sums = self._sums(((placed.outputs(x), r, found) for x, r, found in self._rows_of_mlp()), len(own.up))
        fitted = fit_least_squares(sums, ridge_relative=self.config.ridge_relative, towards=origin).matrix
        screen = Screen(self.group, self.regression, pool, own, fitted)
        for x, r, found in self._rows_of_mlp():
            screen.score(found.down_input[self.carrier], x, r, found.mask)
        return screen.shortlist(count).neurons

    def _rows_of_mlp(self) -> "Iterator[tuple[torch.Tensor, torch.Tensor, Activations]]":
        """Yield (input of the merged block's MLP, what is left for it to add) of each batch."""
        middle = self.carrier - HALF
        own = frozenset({self.carrier})
        for number in range(len(self.walk.batches)):
            found = self.walk.run(number, Wanted(frozenset({middle}), mlp_input=own, down_input=own))
            after = self.after[number].to(self.walk.device)
            yield found.mlp_input[self.carrier], after.float() - found.hidden_states[middle].float(), found

    def _sums(self, rows: "Iterator[tuple[torch.Tensor, torch.Tensor, Activations]]", width: int) -> Statistics:
        """Return the sums over all batches of rows (m, r, activations with their mask)."""
        sums = Statistics.zeros(self.checkpoint.hidden_size, self.walk.device, width)
        for m, r, found in rows:
            sums.add_batch(m, r, found.mask, weights_of(self.regression, (r,)))
        return sums

    def _fitted(self, sums: Statistics, origin: torch.Tensor, kept: torch.Tensor, whose: torch.Tensor) -> Transform:
        """Return the map of the inputs that are kept, in place of rows of `origin`; `whose`: the member of each input.

        Its report has how many are kept of each member, and the residuals of the map, of all inputs side by side with
        their old weights, and of the carrier's own with theirs.
        """
        origin, few = origin.to(sums.gram), kept.to(sums.gram.device)
        found = fit_least_squares(sums.at(few), ridge_relative=self.config.ridge_relative, towards=origin[few])
        alone = origin * (whose == 0).to(origin)[:, None]
        report = {
            **_without(found, "residual_identity").report,  # where the heads' outputs are as wide as the stream
            "residual_side_by_side": residual(sums, origin),
            "residual_dropped": residual(sums, alone),
            "kept": torch.bincount(whose[kept], minlength=len(self.members)).tolist(),
        }
        return Transform(found.matrix.cpu(), report, DownProj.name)
