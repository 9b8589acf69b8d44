"""Size and speed of a model folder on the machine at hand: parameters, bytes, rates and time, peak memory.

One repeat is a forward pass over random tokens that fills the cache (prefill) and greedy steps of one token each that
use it (decode). Of an encoder it is a forward pass over random tokens, or over random pixels, whose positions are the
tokens, and nothing is decoded. Rates, and the latency of both together, are medians over the repeats, with the
interquartile range.
"""

import inspect
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaceme.config.evaluations import WALL, SpeedConfig
from replaceme.core.errors import ReplaceMeError
from replaceme.evaluation.clocks import Clock, clock
from replaceme.models.cache import cache_of, cache_to_give
from replaceme.models.checkpoints import read_config
from replaceme.models.loading import ON_CPU, RunsOn, load_base_model, load_text_model, size
from replaceme.models.model_config import family_of, is_encoder, is_of_images
from replaceme.provenance.environment import hardware, versions

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Workload:
    """The work of one repeat, and how its parts are timed."""

    prompt: "torch.Tensor"  # token ids [batch, prompt], or pixels [batch, channels, height, width]
    new_tokens: int
    seconds: Clock
    last_only: dict[str, int]  # asks for the logits of the last position alone, where the architecture can
    cache: Callable[[], dict[str, Any]] = dict  # what the first pass is given to keep for the next token, if anything


def speed(
    model_folder: str | Path,
    options: SpeedConfig,
    runs_on: RunsOn = ON_CPU,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure a checkpoint folder and return a JSON-able record; rates in tokens per second, latency in seconds, memory
    in bytes.

    Of encoders of images and texts the encoder of images alone is measured, and its parameters are counted.

    `peak_memory_bytes` is what CUDA allocated at most, on all GPUs (weights included) or, on a CPU, the peak resident
    memory of the process. Raises ReplaceMeError for a broken folder or a sequence longer than the model's.
    """
    import torch

    config, device, batch_size = read_config(model_folder), runs_on.device, options.batch_size
    clock(options.clock, device)  # refused before the model is read
    prompt_tokens, new_tokens = options.prompt_tokens, options.new_tokens
    on_gpu = device.startswith("cuda")
    devices = range(torch.cuda.device_count()) if on_gpu else ()
    if on_gpu:
        torch.cuda.init()  # nothing can be reset before it
    for one in devices:
        torch.cuda.reset_peak_memory_stats(one)
    loaded = load_base_model if is_of_images(config) else load_text_model
    model = loaded(model_folder, runs_on.dtype, device, runs_on.held)
    generator = torch.Generator().manual_seed(seed)
    new_tokens, repeat = (0, _encoding) if is_encoder(config) else (new_tokens, one_repeat)
    if is_of_images(config):
        prompt, prompt_tokens = _images(config, model_folder, batch_size, generator)
        prompt = prompt.to(device, model.dtype)
    else:
        prompt = random_prompt(model, model_folder, options, new_tokens, seed)
    load = workload(model, prompt, new_tokens, options.clock)
    with torch.inference_mode():
        times = [repeat(model, load) for _ in range(options.warmup + options.repeats)][options.warmup :]
    return {
        "model": str(model_folder),
        **size(model, model_folder),
        "non_embedding_parameters": model.num_parameters() - _embedding_parameters(model),
        "prefill_tokens_per_s": _spread([batch_size * prompt_tokens / prefill for prefill, _ in times]),
        "decode_tokens_per_s": _spread([batch_size * new_tokens / decode for _, decode in times if decode]),
        "latency_s": _spread([prefill + decode for prefill, decode in times]),
        "peak_memory_bytes": sum(map(torch.cuda.max_memory_allocated, devices)) if on_gpu else _peak_resident(),
        "device": device,
        "gpus": runs_on.gpus,
        "dtype": runs_on.dtype,
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
        "batch_size": batch_size,
        "clock": options.clock,
        "repeats": options.repeats,
        "warmup": options.warmup,
        "seed": seed,
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "hardware": hardware(),
    }


def random_prompt(
    model: "PreTrainedModel", folder: str | Path, options: SpeedConfig, new_tokens: int, seed: int = 0
) -> "torch.Tensor":
    """Return random token ids [batch, prompt] on the model's device; raises ReplaceMeError where the model does not
    take as many tokens, and `new_tokens` after them.
    """
    import torch

    config, length = model.config.get_text_config(), options.prompt_tokens + new_tokens
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and length > longest:
        raise ReplaceMeError(f"{folder}: prompt and new tokens are {length} together, the model takes {longest}")
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(config.vocab_size, (options.batch_size, options.prompt_tokens), generator=generator).to(
        next(model.parameters()).device
    )


def workload(model: "nn.Module", prompt: "torch.Tensor", new_tokens: int, timed_by: str = WALL) -> Workload:
    """Return the work of a prompt and as many tokens after it; raises ReplaceMeError for a clock that is not there."""
    import torch

    can_slice = "logits_to_keep" in inspect.signature(model.forward).parameters
    with torch.inference_mode():
        given = cache_to_give(model, prompt[:, :1]) if new_tokens else {}
    seconds = clock(timed_by, str(prompt.device))
    return Workload(prompt, new_tokens, seconds, {"logits_to_keep": 1} if can_slice else {}, partial(deepcopy, given))


def one_repeat(model: "PreTrainedModel", load: Workload) -> tuple[float, float]:
    """Measure the seconds of one prefill and of the decoding steps after it."""
    cache, outputs = load.cache(), []

    def prefill() -> None:
        outputs.append(model(load.prompt, use_cache=True, **cache, **load.last_only))

    def decode() -> None:
        output, kept = outputs.pop(), cache
        for _ in range(load.new_tokens):
            token = output.logits[:, -1:].argmax(dim=-1)
            kept = cache_of(output) or kept
            output = model(token, use_cache=True, **kept, **load.last_only)

    return load.seconds(prefill), load.seconds(decode)


def _encoding(encoder: "nn.Module", load: Workload) -> tuple[float, float]:
    """Measure the seconds of a forward pass of an encoder; decoding takes none."""
    return load.seconds(lambda: encoder(load.prompt)), 0.0


def _images(
    config: dict[str, Any], folder: str | Path, batch_size: int, generator: "torch.Generator"
) -> tuple["torch.Tensor", int]:
    """Return random pixels of the size that an encoder takes, and its number of hidden states for an image."""
    import torch

    from replaceme.calibration.images import positions_of

    side = family_of(config, str(folder)).sizes(config)["image_size"]
    pixels = torch.randn(batch_size, 3, side, side, generator=generator)
    return pixels, positions_of(config, pixels.shape, str(folder))


def _spread(values: list[float]) -> dict[str, float | None]:
    import numpy

    if not values:
        return {"median": None, "interquartile_range": None}
    low, middle, high = numpy.quantile(values, (0.25, 0.5, 0.75))
    return {"median": float(middle), "interquartile_range": float(high - low)}


def _embedding_parameters(model: "PreTrainedModel") -> int:
    """Count the parameters of the token embedding and of the head; a tied head counts once with the embedding."""
    tables = {id(m.weight): m.weight for m in (model.get_input_embeddings(), model.get_output_embeddings()) if m}
    return sum(table.numel() for table in tables.values())


def _peak_resident() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
