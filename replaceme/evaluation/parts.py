"""Measure what the parts of a model cost: how much it saves to run without its blocks, attentions or MLPs.

What is operations, bytes or seconds of the whole model, less that of the model without all parts of one kind but two,
is shared among those that were left out: (whole - without) / number. So parts of one kind cost the same, a difference
is large beside the noise of a time, and no clock is read within a pass. Times are taken in rounds, of each of these
models in turn: what slows a machine down for a while slows all of them. The first and the last of each kind stay, as
masks and caches go by them; of two the first stays. Operations and bytes are counted on a model without weights, so
they are the same on every machine; a mixture's operations are those of the experts that a token goes to.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from math import inf, prod
from typing import TYPE_CHECKING, Any

from replaceme.config.evaluations import WALL, SpeedConfig
from replaceme.config.units import CACHE, DECODE, DECODED, FLOPS, LATENCY, PREFILL, TIMED, lengths_of
from replaceme.core.errors import ReplaceMeError, in_one_line
from replaceme.core.memory import release
from replaceme.core.progress import progress
from replaceme.core.quiet import quiet_transformers
from replaceme.evaluation.absent import ATTENTION, BLOCK, MLP, without
from replaceme.evaluation.clocks import clock
from replaceme.evaluation.speed import Workload, one_repeat, random_prompt, workload
from replaceme.models.cache import UNABLE, cache_bytes
from replaceme.models.checkpoints import read_config
from replaceme.models.family import Family
from replaceme.models.loading import RunsOn, load_causal_model
from replaceme.models.model_config import check_unit, family_of, longest_sequence, stored_dtype
from replaceme.models.model_record import ModelRecord
from replaceme.models.part_costs import PartCosts
from replaceme.models.probed import class_with_head
from replaceme.provenance.environment import described, hardware

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger(__name__)
COUNTED = "bfloat16"  # type of a model without weights, in which experts share a product
State = tuple[Callable[[], AbstractContextManager], str]  # a model within it is measured; what it is then


def part_costs(record: ModelRecord, of: str, options: SpeedConfig, runs_on: RunsOn) -> PartCosts:
    """Return what the parts of a model cost in a unit other than parameters, for a prompt and new tokens of `options`.

    Times are the least of its repeats, in seconds, of all its sequences together; only they are measured on `runs_on`.
    Raises ReplaceMeError for encoders and for sequences longer than the model's.
    """
    config = read_config(record.folder)
    check_unit(config, of, record.source)
    family = family_of(config, record.source)
    if of in TIMED:
        clock(options.clock, runs_on.device)  # refused before the model is read
        model = load_causal_model(record.folder, runs_on.dtype, runs_on.device, runs_on.held)
        where = {
            "device": runs_on.device,
            "gpus": runs_on.gpus,
            "dtype": runs_on.dtype,
            "machine": described(hardware()),
            "clock": options.clock,
        }
    else:
        model, where = _without_weights(record), {"dtype": stored_dtype(config)}
    measure = _measure(of, model, record.source, options, stored_dtype(config))
    warmup, repeats = (options.warmup, options.repeats) if of in TIMED else (0, 1)
    found = _by_part(model, family, partial(_least, measure, warmup, repeats), of)
    del model, measure
    if of in TIMED:
        release(runs_on.device)  # what comes next asks how much is free
    lengths = {name: getattr(options, name) for name in lengths_of(of)}
    return replace(found, measured={**lengths, **where}, model_sha256=record.sha256)


def usual_lengths(config: dict[str, Any], of: str, where: str) -> SpeedConfig:
    """Return the default lengths for a unit, shorter ones for a model that does not take so many tokens."""
    usual = SpeedConfig()
    most = longest_sequence(config, where) or usual.prompt_tokens + usual.new_tokens
    new = min(usual.new_tokens, max(1, most // 2))
    after = new if of in DECODED else 0
    return SpeedConfig(prompt_tokens=min(usual.prompt_tokens, max(1, most - after)), new_tokens=new)


def _without_weights(record: ModelRecord) -> "nn.Module":
    import torch
    from transformers import AutoConfig

    loaded = AutoConfig.from_pretrained(record.folder, trust_remote_code=False, local_files_only=True)
    loaded.pad_token_id = None  # of which transformers would look at the ids, which have no values here
    with quiet_transformers(), torch.device("meta"):
        model = class_with_head(read_config(record.folder)).from_config(loaded, dtype=getattr(torch, COUNTED))
    return model.eval()


def _measure(of: str, model: "nn.Module", source: str, options: SpeedConfig, dtype: str) -> Callable[[], float]:
    """Return a function that measures a model in a unit once, as it is when that is called."""
    import torch

    new_tokens = options.new_tokens if of in DECODED else 0
    prompt = random_prompt(model, source, options, new_tokens)
    load = workload(model, prompt, new_tokens, options.clock if of in TIMED else WALL)

    def seconds() -> float:
        with torch.inference_mode():
            prefill, decode = one_repeat(model, load)
        return {PREFILL: prefill, DECODE: decode, LATENCY: prefill + decode}[of]

    counts = {FLOPS: lambda: operations(model, load), CACHE: lambda: cache_bytes(model, prompt, dtype)}
    return counts.get(of, seconds)


def operations(model: "nn.Module", load: Workload) -> int:
    """Return the operations of all matrix products of a pass over a prompt, two for each product of numbers.

    The head gives the logits of the last position, as where times are measured. Of attention every query meets every
    key, as it is computed without a kernel that leaves out what is masked.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    def of_experts(rows: Sequence[int], experts: Sequence[int], *_: Any, **__: Any) -> int:
        """[rows, inner] times one of [experts, inner, outer] each."""
        return 2 * prod(rows) * experts[-1]

    of_own = {torch.ops.aten._grouped_mm: of_experts}
    with torch.inference_mode(), FlopCounterMode(display=False, custom_mapping=of_own) as counter:
        model(load.prompt, use_cache=True, **load.last_only)
    return counter.get_total_flops()


def _by_part(model: "nn.Module", family: Family, least: Callable[[Sequence[State]], list[float]], of: str) -> PartCosts:
    """Return the costs of all parts, without how they were measured."""
    from replaceme.probing.kinds import kind_of

    blocks = family.block_modules(model.base_model)
    halves = () if family.attention is None else (ATTENTION, MLP)
    kinds: dict[str, list[int]] = {}
    for number, block in enumerate(blocks):
        kinds.setdefault(repr(kind_of(block)), []).append(number)
    costs: dict[str, dict[int, float]] = {part: {} for part in (BLOCK, *halves)}
    tasks = [(part, members, gone) for members in kinds.values() if (gone := _gone(members)) for part in costs]
    if not tasks:
        raise ReplaceMeError(f"{of}: a model of one block has no parts to compare")
    shorter = [
        (partial(without, model, family, gone, part), f"the model without the {part}s of {len(gone)} blocks")
        for part, _, gone in tasks
    ]
    whole, *others = least([(nullcontext, "the whole model"), *shorter])
    for (part, members, gone), other in zip(tasks, others, strict=True):
        if other >= whole and of in TIMED:
            log.warning("%s: the %ss cost nothing that can be measured here; is the machine busy?", of, part)
        costs[part] |= dict.fromkeys(members, max(0.0, (whole - other) / len(gone)))
    if of in TIMED and not any(costs[BLOCK].values()):
        raise ReplaceMeError(f"{of}: the model takes as long without its blocks; raise `repeats`, or try later")
    listed = {part: [found.get(k, _mean(found)) for k in range(len(blocks))] for part, found in costs.items()}
    return PartCosts(of, float(whole), listed[BLOCK], listed.get(ATTENTION), listed.get(MLP))


def _least(measure: Callable[[], float], warmup: int, repeats: int, states: Sequence[State]) -> list[float]:
    """Return the least of the repeats in each state; what disturbs one only makes it longer, and differences of a few
    per cent are looked for.
    """
    found = [inf] * len(states)
    for number in progress(range(warmup + repeats), "costs of parts", unit="round"):
        for k, (state, what) in enumerate(states):
            with state():
                cost = _tried(measure, what)
            found[k] = min(found[k], cost) if number >= warmup else inf
    return found


def _mean(found: dict[int, float]) -> float:
    """Return the mean cost, for a block that is the only one of its kind and stays."""
    return sum(found.values()) / len(found)


def _gone(members: Sequence[int]) -> Sequence[int]:
    """Return which blocks of a kind are left out: all but the first and the last, of few the last, never block 0."""
    inner = members[1:-1] or members[1:] or members
    return [number for number in inner if number > 0]


def _tried(measure: Callable[[], float], what: str) -> float:
    try:
        return measure()
    except UNABLE as error:
        raise ReplaceMeError(
            f"parts: transformers cannot run {what} ({in_one_line(error)}); take another unit `of`"
        ) from error
