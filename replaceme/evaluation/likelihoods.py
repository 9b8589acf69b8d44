"""Log-likelihoods of answers that follow contexts, log p(answer | context), computing only what counts.

lm-eval's own class runs every answer with its context anew and takes the logits of all tokens. Here
- a context that several answers share runs once, and its keys and values are reused for the answers;
- logits are computed only where they predict a token of an answer;
- a batch holds as many tokens as the device has room for, the longest sequences first (see `batches`).

Contexts are padded on the left, as for generation, so that an answer follows at its place whatever the kind of
attention. The softmax is in float32. The same machine makes the same batches, and so the same bits.
"""

from collections.abc import Sequence
from contextlib import closing
from inspect import signature
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from replaceme.activations.head import LOGITS, Head
from replaceme.core.progress import bar
from replaceme.evaluation.batches import Group, first_batch, grouped, room_of

if TYPE_CHECKING:
    import torch
    from torch import nn

Answered = tuple[float, bool]  # a log-likelihood, and whether greedy decoding gives the answer
Rows = list[tuple[int, Sequence[int]]]  # the row of logits that predicts the first token of some tokens, and these


def log_likelihoods(
    model: "nn.Module",
    queries: Sequence[tuple[Sequence[int], Sequence[int]]],
    longest: int,
    most: int | None = None,
    quiet: bool = False,
) -> list[Answered]:
    """Return (log p(answer | context), whether greedy decoding gives the answer) for each (context, answer), in order.

    Both are token ids, neither empty. `longest` is the model's length: of longer sequences the beginning is dropped, as
    lm-eval does. `most` limits the sequences of a pass. The model is in evaluation mode, with a head.
    """
    import torch

    found: dict[int, Answered] = {}
    groups, room = grouped(queries, longest, _reuses(model)), room_of(model, most)
    shown = bar(total=len(queries), desc="Log-likelihoods", unit="answer", disable=quiet)
    with torch.inference_mode(), closing(shown):
        while groups:
            batch = first_batch(groups, room)
            try:
                answered = _answered(model, batch)
            except torch.cuda.OutOfMemoryError:
                if len(batch) == 1:
                    raise
                torch.cuda.empty_cache()
                room = room.half
                continue
            groups = groups[len(batch) :]
            for group, values in zip(batch, answered, strict=True):
                found |= {number: value for one, value in zip(group.queries, values, strict=True) for number in one}
            shown.update(sum(len(one) for group in batch for one in group.queries))
    return [found[number] for number in range(len(queries))]


def _reuses(model: "nn.Module") -> bool:
    """Return whether a model's cache holds keys and values alone, which can be chosen from and appended to."""
    from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

    if "past_key_values" not in signature(model.forward).parameters:
        return False
    layers = DynamicCache(config=model.config.get_text_config()).layers
    return bool(layers) and all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)


def _answered(model: "nn.Module", batch: Sequence[Group]) -> list[list[Answered]]:
    """Return the values of each group's answers, by a pass over sequences and one over the tails of shared ones."""
    import torch

    ids, mask = _padded(model, [group.sequence for group in batch], left=True)
    # a group's rows lie at the end of its sequence: one in which all its answers begin, or one for each token
    places = [(number, ids.shape[1] - group.rows + k) for number, group in enumerate(batch) for k in range(group.rows)]
    logits, cache = _run(model, ids, mask, places, keep=any(group.tails for group in batch))
    wanted: Rows = []
    row = 0
    for group in batch:
        wanted += [(row, answer[:1] if group.shared else answer) for answer in group.answers]
        row += group.rows
    values = iter(_scores(logits, wanted))
    found = [[next(values) for _ in group.answers] for group in batch]
    tails = [(number, k, answer) for number, group in enumerate(batch) for k, answer in group.tails]
    if tails:
        chosen = torch.tensor([number for number, _, _ in tails], device=ids.device)
        cache.batch_select_indices(chosen)
        followed = _followed(model, [answer for _, _, answer in tails], mask[chosen], cache)
        for (number, k, _), (more, greedy) in zip(tails, followed, strict=True):
            value, begun = found[number][k]
            found[number][k] = (value + more, begun and greedy)
    return found


def _followed(
    model: "nn.Module", answers: Sequence[Sequence[int]], before: "torch.Tensor", cache: Any
) -> list[Answered]:
    """Return the values of all tokens but the first of answers to contexts in a cache; `before` is their mask."""
    import torch

    ids, mask = _padded(model, [answer[:-1] for answer in answers], left=False)
    places = [(number, k) for number, answer in enumerate(answers) for k in range(len(answer) - 1)]
    logits, _ = _run(model, ids, torch.cat([before, mask], 1), places, keep=False, cache=cache)
    wanted: Rows = []
    row = 0
    for answer in answers:
        wanted.append((row, answer[1:]))
        row += len(answer) - 1
    return _scores(logits, wanted)


def _padded(model: "nn.Module", sequences: Sequence[Sequence[int]], left: bool) -> "tuple[torch.Tensor, torch.Tensor]":
    """Return token ids and mask [sequences, longest] on the model's device; padding is masked, whatever its token."""
    import torch

    width = max(map(len, sequences))
    ids, mask = [], []
    for one in sequences:
        pad = [0] * (width - len(one))
        ids.append([*pad, *one] if left else [*one, *pad])
        mask.append([*pad, *[1] * len(one)] if left else [*[1] * len(one), *pad])
    device = model.get_input_embeddings().weight.device
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def _run(
    model: "nn.Module",
    ids: "torch.Tensor",
    mask: "torch.Tensor",
    places: Sequence[tuple[int, int]],
    keep: bool,
    cache: Any = None,
) -> "tuple[torch.Tensor, Any]":
    """Return the logits [places, vocabulary] at (sequence, token) places of `ids`, and with `keep` the cache.

    `mask` covers what lies in the cache too.
    """
    import torch

    head = Head(model)
    taken = signature(head.base.forward).parameters
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "use_cache": keep or cache is not None}
    if "position_ids" in taken:
        inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    if cache is not None:
        inputs["past_key_values"] = cache
    output = head.run(**inputs)
    states = output.last_hidden_state
    flat = torch.tensor([number * ids.shape[1] + k for number, k in places], device=states.device)
    return head.logits(states.flatten(0, 1)[flat]), output.past_key_values if keep else None


def _scores(logits: "torch.Tensor", wanted: Rows) -> list[Answered]:
    """Return the sum of the log-probabilities of tokens, each in the row after the one before, for each of `wanted`."""
    import torch

    # in parts, as float32 logits of a large vocabulary would take more memory than all the rest
    parts = logits.split(max(1, LOGITS // logits.shape[-1]))
    normaliser = torch.cat([part.float().logsumexp(-1) for part in parts])
    likeliest = logits.argmax(-1)
    rows = torch.tensor([row + k for row, tokens in wanted for k in range(len(tokens))], device=logits.device)
    tokens = torch.tensor([token for _, one in wanted for token in one], device=logits.device)
    values = (logits[rows, tokens].float() - normaliser[rows]).tolist()
    greedy = (likeliest[rows] == tokens).tolist()
    ends = list(accumulate(len(one) for _, one in wanted))
    spans = [slice(end - len(one), end) for end, (_, one) in zip(ends, wanted, strict=True)]
    return [(sum(values[span]), all(greedy[span])) for span in spans]
