"""Train the embedded model from nothing: `python -m replaceme.micro.train --out DIR`, about two minutes on one GPU.

Two phases of a fixed number of steps: a shallow model, then the same model grown in depth (see growth.py). Text
comes from the generator alone, so a seed fixes the corpus, the initial weights and the order of the batches.
"""

import argparse
import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from replaceme.core.errors import ReplaceMeError
from replaceme.core.files import replacing
from replaceme.core.progress import progress
from replaceme.micro import corpus, growth, optimise, tokenizer

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM


@dataclass(frozen=True)
class Phase:
    """A number of optimiser steps: linear warm-up to `rate`, then linear decay to 0 over the last `decay` of them."""

    steps: int
    rate: float
    warmup: int
    decay: float

    def rate_at(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        left = (self.steps - step) / max(1, int(self.decay * self.steps))
        return self.rate * min(1.0, (step + 1) / self.warmup, left)


@dataclass(frozen=True)
class Recipe:
    """Everything that fixes the trained model, apart from the machine's rounding."""

    seed: int = 0
    hidden: int = 192
    intermediate: int = 512
    heads: int = 6
    growth: tuple[int, ...] = (8, 8, 8)
    batch: int = 128
    sequence: int = 256
    corpus_tokens: int = 100_000_000
    weight_decay: float = 0.1
    shallow: Phase = Phase(steps=6000, rate=1.5e-3, warmup=200, decay=0.0)
    deep: Phase = Phase(steps=1500, rate=3e-4, warmup=100, decay=0.7)


def initial_model(recipe: Recipe, vocabulary: int) -> "LlamaForCausalLM":
    """Return the shallow model: Gaussian weights of std 0.03 (embeddings 0.05), output projections scaled down by
    depth.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=-(-vocabulary // 64) * 64,
        hidden_size=recipe.hidden,
        intermediate_size=recipe.intermediate,
        num_hidden_layers=len(recipe.growth),
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        pad_token_id=tokenizer.PAD,
        bos_token_id=tokenizer.START,
        eos_token_id=tokenizer.END,
    )
    torch.manual_seed(recipe.seed)
    model = LlamaForCausalLM(config)
    outputs = 0.03 / (2 * len(recipe.growth)) ** 0.5
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            is_output = name.endswith(("o_proj.weight", "down_proj.weight"))
            torch.nn.init.normal_(parameter, std=outputs if is_output else 0.03)
    torch.nn.init.normal_(model.model.embed_tokens.weight, std=0.05)
    return model


def run_phase(model: "LlamaForCausalLM", rows: "torch.Tensor", recipe: Recipe, phase: Phase, name: str) -> float:
    """Train `model` in place on rows [n, sequence + 1] of ids in shuffled order; returns the mean loss of the end."""
    import torch

    step = optimise.Step(model, recipe.batch, recipe.sequence, recipe.weight_decay)
    order = torch.Generator().manual_seed(recipe.seed)
    batches: list[torch.Tensor] = []
    losses = []
    for number in progress(range(phase.steps), name, unit="step"):
        if not batches:
            batches = list(torch.randperm(len(rows), generator=order).split(recipe.batch))
            batches = [batch for batch in batches if len(batch) == recipe.batch]
        loss = step(rows[batches.pop().to(rows.device)], phase.rate_at(number))
        if number >= phase.steps - 20:
            losses.append(loss.clone())
    return float(torch.stack(losses).mean())


def train(recipe: Recipe, device: str, processes: int | None = None) -> tuple["LlamaForCausalLM", list[str], dict]:
    """Train the model; return it, its vocabulary, and the facts of the run (tokens, losses, seconds, hardware,
    versions).
    """
    import torch
    import transformers

    started = time.perf_counter()
    words = tokenizer.vocabulary()
    ids = torch.from_numpy(corpus.training_tokens(words, recipe.corpus_tokens, recipe.seed, processes))
    width = recipe.sequence + 1
    rows = ids[: len(ids) // width * width].view(-1, width).to(device)
    generated = time.perf_counter()
    torch.set_float32_matmul_precision("high")
    model = initial_model(recipe, len(words)).to(device)
    losses = [run_phase(model, rows, recipe, recipe.shallow, "shallow")]
    model = growth.grow(model, recipe.growth)
    losses.append(run_phase(model, rows, recipe, recipe.deep, "deep"))
    finished = time.perf_counter()
    step_tokens = recipe.batch * recipe.sequence
    facts = {
        "recipe": asdict(recipe),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "tokens": {"shallow": recipe.shallow.steps * step_tokens, "deep": recipe.deep.steps * step_tokens},
        "loss": {"shallow": losses[0], "deep": losses[1]},
        "seconds": {"corpus": round(generated - started, 1), "training": round(finished - generated, 1)},
        "hardware": torch.cuda.get_device_name() if device.startswith("cuda") else "CPU",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    return model, words, facts


def save(model: "LlamaForCausalLM", words: list[str], facts: dict, folder: Path) -> None:
    """Write a plain Hugging Face folder: bf16 weights, tokenizer, and the facts of the run as training.json."""
    import torch

    with replacing(folder) as temporary:
        model.to(torch.bfloat16).save_pretrained(temporary)
        tokenizer.build(words).save_pretrained(temporary)
        (temporary / "training.json").write_text(json.dumps(facts, indent=2) + "\n")


def main(arguments: list[str] | None = None) -> None:
    """Train the embedded model and save it."""
    import torch

    parser = argparse.ArgumentParser(prog="python -m replaceme.micro.train", description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write the model to")
    parser.add_argument("--seed", type=int, default=Recipe.seed, help="seed of everything (default: %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda or cpu")
    parser.add_argument("--steps", type=int, help="steps of either phase, for a quick look (default: the recipe's)")
    parser.add_argument("--batch", type=int, default=Recipe.batch, help="rows of a step (default: %(default)s)")
    parser.add_argument("--processes", type=int, help="processes that generate text (default: all cores)")
    options = parser.parse_args(arguments)
    if options.steps is not None and options.steps < 1:
        parser.error("--steps must be at least 1")
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        raise ReplaceMeError("--device cuda: this machine has no CUDA device; use --device cpu")
    recipe = Recipe(seed=options.seed, batch=options.batch)
    if options.steps is not None:
        tokens = min(recipe.corpus_tokens, options.steps * recipe.batch * (recipe.sequence + 1))
        phases = {name: replace(getattr(recipe, name), steps=options.steps) for name in ("shallow", "deep")}
        recipe = replace(recipe, corpus_tokens=tokens, **phases)
    model, words, facts = train(recipe, options.device, options.processes)
    save(model, words, facts, options.out)
    print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
