"""Log-likelihoods of answers that follow contexts, log p(answer | context), computing only what counts.

lm-eval's own class runs every answer with its context anew and takes the logits of all tokens. Here
- a context that several answers share runs once, and its keys and values are reused for the answers;
- logits are computed only where they predict a token of an answer;
- a batch holds as many tokens as the device has room for, the longest sequences first (see `batches`).

Contexts are padded on the left, as for generation, so that an answer follows at its place whatever the kind of
attention. The softmax is in float32. The same machine makes the same batches, and so the same bits.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing
from copy import copy
from dataclasses import dataclass
from inspect import signature
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from replaceme.activations.head import LOGITS, Head
from replaceme.core.memory import is_full, release
from replaceme.core.progress import bar
from replaceme.evaluation.batches import CACHED, Group, Room, first_batch, grouped, room_of

if TYPE_CHECKING:
    import torch
    from torch import nn

Answered = tuple[float, bool]  # a log-likelihood, and whether greedy decoding gives the answer
Rows = list[tuple[int, Sequence[int]]]  # the row of logits that predicts the first token of some tokens, and these
Tail = tuple[int, int, Sequence[int]]  # group, number of its answer, the answer, all but whose last token runs
PADDING = 0.25  # of the tokens of a pass over tails, at most


@dataclass(frozen=True)
class Pass:
    """Log-probabilities [tokens], float32, and whether each token is the likeliest one, both still on the device.

    `answers` are the queries of each answer and the number of its tokens, in order.
    """

    values: "torch.Tensor"
    greedy: "torch.Tensor"
    answers: list[tuple[tuple[int, ...], int]]


def log_likelihoods(
    model: "nn.Module",
    queries: Sequence[tuple[Sequence[int], Sequence[int]]],
    longest: int,
    most: int | None = None,
    quiet: bool = False,
) -> list[Answered]:
    """Return (log p(answer | context), whether greedy decoding gives the answer) for each (context, answer), in order.

    Both are token ids, neither empty. `longest` is the model's length: of longer sequences the beginning is dropped, as
    lm-eval does. `most` limits the sequences of a pass, be they contexts or answers that follow one. The model is in
    evaluation mode, with a head.
    """
    import torch

    passes: list[Pass] = []
    groups, room = grouped(queries, longest, _reuses(model)), room_of(model, most)
    shown = bar(total=len(queries), desc="Log-likelihoods", unit="answer", disable=quiet)
    with torch.inference_mode(), closing(shown):
        while groups:
            batch = first_batch(groups, room)
            answered = _unless_full(model, batch, room)
            if answered is None:
                room = room.half
                continue
            passes += answered
            groups = groups[len(batch) :]
            shown.update(sum(len(one) for group in batch for one in group.queries))
        found = _gathered(passes)
    return [found[number] for number in range(len(queries))]


def _gathered(passes: "Sequence[Pass]") -> dict[int, Answered]:
    """Return the values of all queries from the tokens of all passes, in one copy from the device."""
    import torch

    if not passes:
        return {}
    values = torch.cat([one.values for one in passes]).tolist()
    greedy = torch.cat([one.greedy for one in passes]).tolist()
    found: dict[tuple[int, ...], Answered] = {}
    place = 0
    for queries, count in (answer for one in passes for answer in one.answers):
        value, likeliest = sum(values[place : place + count]), all(greedy[place : place + count])
        if queries in found:  # its first token was predicted in the pass before
            before, begun = found[queries]
            value, likeliest = before + value, begun and likeliest
        found[queries] = value, likeliest
        place += count
    return {number: answered for queries, answered in found.items() for number in queries}


def _reuses(model: "nn.Module") -> bool:
    """Return whether a model's cache holds keys and values alone, which can be chosen from and appended to."""
    from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

    if "past_key_values" not in signature(model.forward).parameters:
        return False
    layers = DynamicCache(config=model.config.get_text_config()).layers
    return bool(layers) and all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)


def _unless_full(model: "nn.Module", batch: Sequence[Group], room: Room) -> list[Pass] | None:
    """Score the answers of groups, or return None where a GPU's memory is full and less room makes smaller passes."""
    try:
        return _answered(model, batch, room)
    except RuntimeError as error:
        least = len(batch) == 1 and all(len(part) == 1 for part in _tail_parts(batch, room))
        if least or not is_full(error):
            raise
    release(next(model.parameters()).device.type)  # here, as the error refers to what was made
    return None


def _answered(model: "nn.Module", batch: Sequence[Group], room: Room) -> list[Pass]:
    """Score the answers of groups by a pass over sequences and, where answers have tails, passes over these."""
    import torch

    ids, mask = _padded(model, [group.sequence for group in batch], left=True)
    # a group's rows lie at the end of its sequence: one in which all its answers begin, or one for each token
    rows = np.array([group.rows for group in batch])
    places = _runs(ids.shape[1] * np.arange(1, len(batch) + 1) - rows, rows)
    logits, cache = _run(model, ids, mask, places, keep=any(group.tails for group in batch))
    wanted, begun = [], []
    for group, row in zip(batch, (rows.cumsum() - rows).tolist(), strict=True):
        wanted += [(row, answer[:1] if group.shared else answer) for answer in group.answers]
        begun += group.queries
    found = [_scores(logits, wanted, begun)]
    for part in _tail_parts(batch, room):
        chosen = _placed(ids.device, [number for number, *_ in part])
        tail_ids, after = _padded(model, [answer[:-1] for _, _, answer in part], left=False)
        counts = np.array([len(answer) - 1 for _, _, answer in part])
        places = _runs(tail_ids.shape[1] * np.arange(len(part)), counts)
        covered = torch.cat([mask[chosen], after], 1)
        logits, _ = _run(model, tail_ids, covered, places, keep=False, cache=_selected(cache, chosen))
        first = (counts.cumsum() - counts).tolist()
        wanted = [(row, answer[1:]) for row, (_, _, answer) in zip(first, part, strict=True)]
        found.append(_scores(logits, wanted, [batch[number].queries[k] for number, k, _ in part]))
    return found


def _tail_parts(batch: Sequence[Group], room: Room) -> "Iterator[list[Tail]]":
    """Yield the tails of groups, those of one pass together."""
    tails = [(number, k, answer) for number, group in enumerate(batch) for k, answer in group.tails]
    return _alike_in_length(tails, max(len(group.sequence) for group in batch), room)


def _alike_in_length(tails: "list[Tail]", width: int, room: Room) -> "Iterator[list[Tail]]":
    """Yield tails by length, as many together as a pass has room for, and lose at most PADDING of their tokens to
    padding, or are few. Each of them reads a cache of `width` tokens.
    """
    part: list[Tail] = []
    used = 0  # tokens that a part runs
    for tail in sorted(tails, key=lambda tail: -len(tail[2])):
        tokens = len(tail[2]) - 1
        count, longest = len(part) + 1, len((part or [tail])[0][2]) - 1
        full = (
            count * longest > min(room.tokens, max(room.few, (1 + PADDING) * (used + tokens)))
            or count * (width + longest) > CACHED * room.tokens
            or used + tokens > room.rows
            or count > room.sequences
        )
        if full and part:
            yield part
            part, used = [], 0
        part.append(tail)
        used += tokens
    if part:
        yield part


def _selected(cache: Any, chosen: "torch.Tensor") -> Any:
    """Return a cache with some sequences of another, which stays as it is."""
    found = copy(cache)
    found.layers = [copy(layer) for layer in cache.layers]
    found.batch_select_indices(chosen)
    return found


def _placed(device: "torch.device", numbers: Any) -> "torch.Tensor":
    """Return integers on a device; the host goes on at once, while a GPU is still busy with what came before."""
    import torch

    found = torch.as_tensor(numbers)
    return found if device.type == "cpu" else found.pin_memory().to(device, non_blocking=True)


def _runs(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the numbers start, start + 1, ... of each start, as many as its count, one run after the other."""
    return np.repeat(starts - (counts.cumsum() - counts), counts) + np.arange(counts.sum())


def _flat(sequences: Sequence[Sequence[int]], total: int) -> np.ndarray:
    """Return all tokens of sequences, one sequence after the other."""
    return np.fromiter(chain.from_iterable(sequences), np.int64, total)


def _padded(model: "nn.Module", sequences: Sequence[Sequence[int]], left: bool) -> "tuple[torch.Tensor, torch.Tensor]":
    """Return token ids and mask [sequences, longest] on the model's device; padding is masked, whatever its token."""
    lengths = np.array([len(one) for one in sequences])
    column, length = np.arange(lengths.max()), lengths[:, None]
    mask = column >= lengths.max() - length if left else column < length
    ids = np.zeros(mask.shape, np.int64)
    ids[mask] = _flat(sequences, lengths.sum())
    device = model.get_input_embeddings().weight.device
    return _placed(device, ids), _placed(device, mask.astype(np.int64))


def _run(
    model: "nn.Module",
    ids: "torch.Tensor",
    mask: "torch.Tensor",
    places: np.ndarray,
    keep: bool,
    cache: Any = None,
) -> "tuple[torch.Tensor, Any]":
    """Return the logits [places, vocabulary] at places of the flattened `ids`, and with `keep` the cache.

    `mask` covers what lies in the cache too.
    """
    head = Head(model)
    taken = signature(head.base.forward).parameters
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "use_cache": keep or cache is not None}
    if "position_ids" in taken:
        inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    if cache is not None:
        inputs["past_key_values"] = cache
    output = head.run(**inputs)
    states = output.last_hidden_state.flatten(0, 1)
    return head.logits(states[_placed(states.device, places)]), output.past_key_values if keep else None


def _scores(logits: "torch.Tensor", wanted: Rows, queries: Sequence[tuple[int, ...]]) -> Pass:
    """Return the log-probabilities of the tokens of each of `wanted`, each in the row after the one before."""
    import torch

    # in parts, as float32 logits of a large vocabulary would take more memory than all the rest
    parts = logits.split(max(1, LOGITS // logits.shape[-1]))
    normaliser = torch.cat([part.float().logsumexp(-1) for part in parts])
    likeliest = logits.argmax(-1)
    counts = np.array([len(tokens) for _, tokens in wanted])
    rows = _placed(logits.device, _runs(np.array([row for row, _ in wanted]), counts))
    tokens = _placed(logits.device, _flat([tokens for _, tokens in wanted], counts.sum()))
    values = logits[rows, tokens].float() - normaliser[rows]
    return Pass(values, likeliest[rows] == tokens, list(zip(queries, counts.tolist(), strict=True)))
