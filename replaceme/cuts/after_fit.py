"""Measure the error that every candidate cut leaves after its own least-squares fit, for all of them at once.

- residual: 1 - R^2 of the fit, sum |M T - R|^2 / sum |R|^2, from the statistics alone.
- cosine_after_fit: mean over tokens of 1 - cos(Y + M T, hidden_states[end-1]), Y = hidden_states[start-1] - M, with the
  T of that candidate: a second pass over the same tokens, as far as the first one's states were not kept (`repeated`).
- loss, kl: by how much the language-model loss rises, and the KL divergence of next-token distributions from the whole
  model's, in nats per token, on sequences that no T was fitted to, when the model runs with that candidate's T in place
  of the blocks. Both come from the same forward passes; the whole model runs once a batch.

Where a norm follows the MLP, M T passes it with a gain of its own (`Gain`), one more pass.

The candidates that start at one block share M and so its Gram: it is accumulated once, with their targets side by side.
Memory in float64: a [d, d] for each start, and two (cross term and T) for each candidate.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from replaceme.activations.capture import Activations
from replaceme.activations.comparison import compare
from replaceme.activations.repeated import Repeated
from replaceme.activations.statistics import Statistics
from replaceme.activations.targets import formed, rows_of, wanted_by
from replaceme.calibration.tokens import Tokens
from replaceme.config.cuts import CutConfig
from replaceme.config.metrics import AFTER_FIT, OF_SEARCHES, WITHOUT_FIT
from replaceme.config.placement import MLP
from replaceme.core.errors import ReplaceMeError
from replaceme.core.named import import_named
from replaceme.core.places import Place, Span, carrier_of
from replaceme.cuts.choose import resolve_blocks, sizes_of, spans
from replaceme.models.family import Family
from replaceme.models.model_record import Sizes
from replaceme.surgery.shared_start import SharedStart, begins_anywhere
from replaceme.transforms.gains import Gains

if TYPE_CHECKING:
    import torch
    from torch import nn

    from replaceme.transforms.transform import Transform

log = logging.getLogger(__name__)
ENOUGH = 4  # tokens for each channel below which a post-fit metric is doubtful
HELD_OUT = 4  # sequences to fit on for each one that loss and kl are measured on


def candidates_of(
    cut: CutConfig, record: Sizes, model: "nn.Module", family: Family, tokens: Tokens, batch_size: int
) -> dict[str, Any]:
    """Return the contents of candidates.json for a cut section; where `needs_loss` the model must have its head."""
    sizes = sizes_of(cut, record)
    fitted, held_out = tokens.first(cut.samples), {}
    if cut.metric in OF_SEARCHES:
        search = import_named(OF_SEARCHES[cut.metric].function)
        measured = search(cut, record, resolve_blocks(cut, record), model, family, fitted, batch_size)
    elif cut.metric in WITHOUT_FIT:
        from replaceme.cuts.without_fit import unrepaired_candidates

        measured = unrepaired_candidates(cut, record, model, family, fitted, batch_size)
    else:
        if cut.needs_loss:
            fitted, held_out[""] = split(tokens, cut.samples)
        measured = measure_candidates(model, family, fitted, sizes, batch_size, held_out, cut.halves)
    return {"sizes": sizes, "tokens": fitted.count, "candidates": measured}


def split(tokens: Tokens, samples: int | None) -> tuple[Tokens, Tokens]:
    """Split tokens into (sequences to fit on, held-out ones): `samples` and a quarter as many, or 4 to 1 of fewer."""
    wanted = None if samples is None else samples + max(1, samples // HELD_OUT)
    chosen = tokens.first(wanted)
    count = len(chosen)
    if count < 2:
        raise ReplaceMeError("cut: metrics loss and kl need two calibration sequences or more, as one is held out")
    last = max(1, count // (HELD_OUT + 1))
    return chosen.first(count - last), chosen[-last:]


@dataclass(frozen=True)
class Fitted:
    """Candidates with their maps, and the data that metrics measure them on.

    `passes` runs the base model over the tokens that the maps were fitted on, under a description. `held_out` are other
    texts by what follows the names of their metrics (nothing, for the text that a cut is chosen by), for which the
    model has its head.
    """

    model: "nn.Module"
    family: Family
    candidates: Sequence[Span]
    transforms: "Sequence[Transform]"
    passes: Repeated
    held_out: Mapping[str, Tokens] = field(default_factory=dict)


def measure_candidates(
    model: "nn.Module",
    family: Family,
    tokens: Tokens,
    sizes: Sequence[int],
    batch_size: int,
    held_out: Mapping[str, Tokens] | None = None,
    halves: bool = False,
) -> list[dict[str, Any]]:
    """Measure residual, residual_identity, cosine and cosine_after_fit of every candidate of some sizes.

    Loss and divergence are those on each of the held-out texts (see `Fitted`); for these the model must have its head.
    """
    base = model.base_model
    num_blocks = len(family.block_modules(base))
    candidates = [span for size in sizes for span in spans(num_blocks, size, halves)]
    _check_enough(tokens.count, base.config.get_text_config().hidden_size)
    starts = {start for start, _ in candidates}
    needed = 8 * (len(starts) + 2 * len(candidates)) * base.config.get_text_config().hidden_size ** 2
    log.info("statistics and fits of %d candidates: %.1f GB", len(candidates), needed / 1e9)

    passes = Repeated(base, family, tokens, batch_size, wanted_by(MLP, candidates), needed)
    fits = _fits(passes("statistics of all cuts"), candidates)
    if family.post_norm is not None:
        gains = Gains(candidates, fits)
        for activations in passes("gains of all cuts"):
            gains.add(activations)
        fits = gains.transforms()
    fitted = Fitted(model, family, candidates, fits, passes, held_out or {})
    found = [{"start": start, "end": end} for start, end in candidates]
    for function in dict.fromkeys(metric.function for metric in AFTER_FIT.values()):  # some measure several at once
        for entry, values in zip(found, import_named(function)(fitted), strict=True):
            entry |= values
    return found


def _check_enough(tokens: int, hidden_size: int) -> None:
    """Raise ReplaceMeError for no more tokens than channels, where every candidate fits perfectly up to rounding."""
    if tokens <= hidden_size:
        raise ReplaceMeError(
            f"cut: {tokens} calibration tokens for a hidden size of {hidden_size}: every candidate would fit them "
            "perfectly; use more samples or longer text, or `metric: cosine`"
        )
    if tokens < ENOUGH * hidden_size:
        log.warning(
            "%d calibration tokens for a hidden size of %d: the fits of candidates are loose", tokens, hidden_size
        )


def _fits(passes: Iterable[Activations], candidates: Sequence[Span]) -> "list[Transform]":
    """Return the least-squares transform of every candidate."""
    from replaceme.transforms.closed_form import fit_least_squares

    statistics = gather_candidates(passes, candidates)
    return [fit_least_squares(statistics.pop(span)) for span in candidates]


def gather_candidates(passes: Iterable[Activations], candidates: Sequence[Span]) -> dict[Span, Statistics]:
    """Gather the statistics of every candidate, those of one start with one Gram."""
    import torch

    ends: dict[Place, list[Place]] = {}
    for start, end in candidates:
        ends.setdefault(start, []).append(end)
    wide: dict[Place, Statistics] = {}
    energies: dict[Place, torch.Tensor] = {}
    for activations in passes:
        for start, several in ends.items():
            rows = [rows_of(MLP, activations, start, end) for end in several]
            m = rows[0][0]
            terms = tuple(torch.cat(parts, -1) for parts in zip(*(each for _, each in rows), strict=True))
            if start not in wide:
                wide[start] = Statistics.zeros(terms[0].shape[-1], m.device, m.shape[-1])
                energies[start] = torch.zeros(len(several), dtype=torch.float64, device=m.device)
            wide[start].add_batch(m, terms, activations.mask)
            target = formed(tuple(term[activations.mask] for term in terms)).double()
            energies[start] += target.reshape(-1, len(several), wide[start].width).square().sum((0, 2))
    return {
        (start, end): _narrow(wide[start], k, energies[start][k])
        for start, several in ends.items()
        for k, end in enumerate(several)
    }


def _narrow(wide: Statistics, k: int, energy: "torch.Tensor") -> Statistics:
    """Return the statistics of the k-th of the targets that stand side by side."""
    columns = slice(k * wide.width, (k + 1) * wide.width)
    return replace(wide, cross=wide.cross[:, columns], sum_target=wide.sum_target[columns], target_energy=energy)


def residuals(fitted: Fitted) -> list[dict[str, float]]:
    """Return for each candidate the share of the target's energy that its map, and that the identity, leaves."""
    return [{name: one.report[name] for name in ("residual", "residual_identity")} for one in fitted.transforms]


def cosine_distances(fitted: Fitted) -> list[dict[str, float]]:
    """Return for each candidate the mean distance of Y + M T, and of the carrier's own state, to the target state."""
    totals = [[0.0, 0.0] for _ in fitted.candidates]
    tokens = 0
    for activations in fitted.passes("cosine after fit"):
        tokens += int(activations.mask.sum())
        for total, span, transform in zip(totals, fitted.candidates, fitted.transforms, strict=True):
            repaired, dropped = _cosine_distance_sums(activations, span, transform)
            total[0] += repaired
            total[1] += dropped
    return [{"cosine_after_fit": repaired / tokens, "cosine": dropped / tokens} for repaired, dropped in totals]


def _cosine_distance_sums(activations: Activations, span: Span, transform: "Transform") -> tuple[float, float]:
    from torch.nn.functional import cosine_similarity

    m, terms = rows_of(MLP, activations, *span)
    goal, state, m = (x[activations.mask].double() for x in (*terms[:2], m))
    predicted = state - m + transform.apply(m)
    found = (cosine_similarity(one.flatten(1), goal.flatten(1), dim=-1) for one in (predicted, state))
    repaired, dropped = (float((1 - one).sum()) for one in found)
    return repaired, dropped


def predictions(fitted: Fitted) -> list[dict[str, float]]:
    """Return for each candidate how much it raises the loss on each held-out text, and its divergence there."""
    fitted.passes.forget()  # logits need the room
    found: list[dict[str, float]] = [{} for _ in fitted.candidates]
    shared = SharedStart(fitted.model, fitted.family)
    carriers = [carrier_of(start) for start, _ in fitted.candidates]
    for suffix, tokens in fitted.held_out.items():
        shares = begins_anywhere(fitted.model, fitted.family, tokens, carriers)
        shorter = [
            shared.predicting([span], [transform], carrier if shares else 0)
            for span, transform, carrier in zip(fitted.candidates, fitted.transforms, carriers, strict=True)
        ]
        predict = shared.log_probabilities if shares else None
        whole, *others = compare(fitted.model, shorter, tokens, "loss of all cuts", predict)
        log.info("the whole model's loss%s: %.4f nats", suffix, whole.mean_loss)
        for entry, one in zip(found, others, strict=True):
            entry[f"loss{suffix}"] = one.mean_loss - whole.mean_loss
            entry[f"kl{suffix}"] = one.mean_divergence
    return found
