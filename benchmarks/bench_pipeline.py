"""The whole of a shortening at the size of Llama 3 8B: in one process, as `replaceme.prune` does it, and by its parts.

The weights are random and written to disk first, which is not counted. `one process`: load, choice of the cut by its
distances over all tokens, sums (and rows), fit, fold and save, once until all is on disk and once, as the authors' code
leaves it, without waiting for the disk. Beside our seconds stand those of the authors' code on one H200 for 128 x 1024
tokens: distances 12.3, least squares 17.2 (with load, solve, fold and save), cosine 43.6 (with load and save). Ours do
more where they differ: distances are measured by every metric over all tokens and over the last ones, files are hashed.
The parts are the jobs of the workflow, without their imports; `capture` is the forward pass with what the Gram needs
kept, against a bare one through the same blocks. The extrapolation scales what goes by tokens, and nothing else: rows
of 8000 x 1024 tokens are 134 GB, which no GPU holds, so that the cosine fit would need `fit_tokens`. With `--whole`
nothing is scaled: each fit once, from the load of the model on, and the cosine one by at most that many rows.

    python benchmarks/bench_pipeline.py [--hidden 4096 --blocks 32 ...] [--out benchmarks/results]
    python benchmarks/bench_pipeline.py --whole 1048576 --samples 8000    # the authors' protocol, about 11 minutes
"""

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from bench_gram import hardware
from safetensors.torch import save_file

from replaceme.activations.capture import Wanted, capture
from replaceme.activations.gather import gather_groups
from replaceme.activations.row_collector import write_rows
from replaceme.activations.rows import Rows
from replaceme.activations.statistics import Statistics
from replaceme.activations.targets import wanted_by
from replaceme.calibration.tokens import Tokens
from replaceme.config.cuts import CutConfig
from replaceme.config.fits import FitConfig
from replaceme.config.placement import Regression
from replaceme.core.cut_record import Cut
from replaceme.core.stages import Stages
from replaceme.cuts import distances
from replaceme.fitting.passes import Passes
from replaceme.models.checkpoints import resolve
from replaceme.models.loading import load_base_model
from replaceme.models.model_config import family_of
from replaceme.models.model_record import ModelRecord
from replaceme.pruning import choose_and_fit
from replaceme.surgery.fold import finish, merge
from replaceme.surgery.write_checkpoint import merging
from replaceme.transforms.closed_form import fit_least_squares
from replaceme.transforms.cosine import fit_cosine
from replaceme.transforms.given_rows import GivenRows
from replaceme.transforms.objectives import Objective

AUTHORS = {"distances": 12.3, "least squares": 17.2, "cosine": 43.6}
AUTHORS_LONG = {"distances": 530.0, "least squares": 262.0, "cosine": 608.0 + 1536.0}  # of 8000 x 1024 tokens
LONG = 8000 * 1024
FITS = {"least squares": {}, "cosine": {"objective": "cosine", "iterations": 5}}
SIZES = {"hidden": 4096, "intermediate": 14336, "blocks": 32, "heads": 32, "kv_heads": 8, "vocabulary": 128256}
SIZES |= {"samples": 128, "tokens": 1024, "batch": 8, "removed": 8}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_sizes(parser, SIZES)
    add_out(parser)
    parser.add_argument("--whole", type=int, metavar="ROWS", help="only the whole, once, with so many rows at most")
    parser.add_argument("--fit", choices=FITS, action="append", help="of --whole: this fit alone (default: all)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        found = (whole if arguments.whole else measured)(arguments, Path(scratch))
    report = {**found, "sizes": {name: getattr(arguments, name) for name in SIZES}}
    if torch.cuda.is_available():
        report |= hardware()
        name = torch.cuda.get_device_name().lower().replace(" ", "-")
        arguments.out.mkdir(parents=True, exist_ok=True)
        kind = "pipeline-whole" if arguments.whole else "pipeline"
        (arguments.out / f"{kind}-{name}.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


def add_sizes(parser: argparse.ArgumentParser, sizes: dict[str, int]) -> None:
    """Add an option for each size, and for the folder of the run."""
    for name, default in sizes.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default, help=f"default: {default}")
    parser.add_argument("--folder", type=Path, help="where the weights and results lie for the run (default: /tmp)")


def add_out(parser: argparse.ArgumentParser) -> None:
    """Add the option for the folder of what a GPU's run writes."""
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder of the JSON file")


class Parts:
    """Seconds and peak device memory of each part, by name."""

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"
        self.seconds: dict[str, float] = {}
        self.peak_gb: dict[str, float] = {}

    def run(self, name: str, work: Callable[[], Any]) -> Any:
        """Do the work, and record its time and memory."""
        self._settle()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        found = work()
        self._settle()
        self.seconds[name] = time.perf_counter() - start
        if self.cuda:
            self.peak_gb[name] = torch.cuda.max_memory_allocated() / 1e9
        return found

    def _settle(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()


def measured(arguments: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Measure seconds and memory of every part and of the whole, and ratios."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    folder = scratch / "model"
    write_model(folder, arguments, device)
    parts = Parts(device)
    record = parts.run("hashes of the source", lambda: resolve(str(folder)))
    with tempfile.TemporaryDirectory(dir=scratch) as work:
        by_parts(parts, arguments, folder, Path(work))
    seconds = parts.seconds
    found = {"parts": {"seconds": seconds, "peak_gb": parts.peak_gb}, "parameters": record.parameters}
    for name, fit in FITS.items():
        runs = {}
        for how, waits in (("until all is on disk", True), ("without waiting for the disk", False)):
            os.sync()  # what earlier runs left to the disk
            runs[how] = one_process(arguments, folder, record, FitConfig(**fit), scratch / "whole", waits)
        found[name] = {"one process": runs, **compared(name, runs, arguments)}
    found["capture over bare forward, speed"] = seconds["bare forward"] / seconds["capture"]
    found["capture and gram over bare forward, speed"] = seconds["bare forward"] / seconds["gram"]
    return found


def whole(arguments: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Measure each fit once, from load to all on disk."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    folder, parts = scratch / "model", Parts(device)
    write_model(folder, arguments, device)
    parts.run("imports and context", lambda: prepared(device))
    record, found = resolve(str(folder)), {"before": parts.seconds}
    for name in arguments.fit or FITS:
        os.sync()  # what earlier runs left to the disk
        fit = FITS[name]
        limits = {"fit_tokens": arguments.whole} if "objective" in fit else {}
        run = one_process(arguments, folder, record, FitConfig(**fit, **limits), scratch / "whole", waits=True)
        found[name] = {"one process": run, "authors": AUTHORS_LONG["distances"] + AUTHORS_LONG[name]}
        print(name, json.dumps(run), flush=True)
    return found


def by_parts(parts: Parts, arguments: argparse.Namespace, folder: Path, work: Path) -> None:
    """Run every job of the workflow by itself."""
    device = "cuda" if parts.cuda else "cpu"
    start = max(1, arguments.blocks - arguments.removed - 4)
    group = (start, start + arguments.removed)
    statistics, rows = passed(parts, arguments, folder, group, work)
    statistics = statistics.to(device)
    fit_least_squares(statistics)  # libraries are loaded
    least_squares = parts.run("solve", lambda: fit_least_squares(statistics))
    least_squares = replace(least_squares, matrix=least_squares.matrix.cpu())
    cut = Cut([group], arguments.removed, arguments.blocks, "given")
    parts.run("fold and save", lambda: merge(folder, cut, [least_squares], work / "out", {}))
    with mock.patch("replaceme.core.files.os.fsync"):
        saved = work / "other"
        parts.run("fold and save, without waiting for the disk", lambda: merge(folder, cut, [least_squares], saved, {}))
    given, objective = GivenRows(statistics, rows, device), Objective("cosine")
    parts.run("first cosine fit, with compiling", lambda: fit_cosine(given, objective, 1))
    parts.run("cosine fit", lambda: fit_cosine(given, objective, FITS["cosine"]["iterations"]))


def one_process(
    arguments: argparse.Namespace, folder: Path, record: ModelRecord, fit: FitConfig, out: Path, waits: bool
) -> dict[str, Any]:
    """Run a whole shortening as `replaceme.prune` does; returns seconds of its stages, and peak device memory."""
    parts, tokens = Parts("cuda" if torch.cuda.is_available() else "cpu"), random_tokens(arguments)
    device = "cuda" if parts.cuda else "cpu"
    family = family_of(json.loads((folder / "config.json").read_text()), "the model")
    cut = CutConfig(blocks=arguments.removed, metric="cosine")
    start = time.perf_counter()
    with ExitStack() as stack:
        if not waits:
            stack.enter_context(mock.patch("replaceme.core.files.os.fsync"))
        model = parts.run("load", lambda: load_base_model(folder, "bfloat16", device))
        passes = Passes(model, family, tokens, arguments.batch, "bfloat16")
        with merging(folder, out, record.files, device) as merger:
            fitted = lambda: choose_and_fit(model, passes, record, cut, fit, merger, Stages())  # noqa: E731
            chosen, transforms = parts.run("distances, sums and fit", fitted)
            parts.run("rest of fold and save", lambda: finish(merger, chosen, transforms, {}))
        seconds = time.perf_counter() - start
    shutil.rmtree(out)
    return {
        "seconds": seconds,
        "stages": parts.seconds,
        "peak_gb": max(parts.peak_gb.values(), default=0.0),
        "groups": chosen.groups,
        "residual": transforms[0].report["residual"],
    }


def random_tokens(arguments: argparse.Namespace) -> Tokens:
    """Return sequences of random ids, always the same."""
    shape = (arguments.samples, arguments.tokens)
    ids = torch.randint(0, arguments.vocabulary, shape, generator=torch.Generator().manual_seed(0))
    return Tokens(ids, torch.ones_like(ids, dtype=torch.bool))


def passed(
    parts: Parts, arguments: argparse.Namespace, folder: Path, group: tuple[int, int], scratch: Path
) -> tuple[Statistics, Rows]:
    """Run the passes over the model: its statistics and rows."""
    device, batch = "cuda" if parts.cuda else "cpu", arguments.batch
    family = family_of(json.loads((folder / "config.json").read_text()), "the model")
    tokens = random_tokens(arguments)
    parts.run("imports and context", lambda: prepared(device))
    given = (parts.run("load", lambda: load_base_model(folder, "bfloat16", device)), family)
    warm, batches = tokens.first(batch), tokens.batches(batch)
    parts.run("first distances, with compiling", lambda: distances.measure(*given, warm, batch))
    parts.run("first gram, with compiling", lambda: gather_groups(*given, [warm], [group]))
    write_rows(scratch / "first", *given, warm, [group], batch)
    parts.run("distances", lambda: distances.measure(*given, tokens, batch))
    wanted = wanted_by(Regression(), [group])
    for name, kept in (("bare forward", Wanted(frozenset({wanted.last}))), ("capture", wanted)):
        parts.run(name, lambda kept=kept: sum(1 for _ in capture(*given, batches, kept)))
    statistics = parts.run("gram", lambda: gather_groups(*given, batches, [group]))[0]
    return statistics, parts.run("rows", lambda: write_rows(scratch / "rows", *given, tokens, [group], batch)[0])


def prepared(device: str) -> None:
    """Do the one-time work that the first model of a process waits for."""
    import_module("transformers.models.llama.modeling_llama")
    torch.ones(1, device=device)


def compared(name: str, runs: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """Compare our times with the authors', for these tokens and for many."""
    theirs, many = (table["distances"] + table[name] for table in (AUTHORS, AUTHORS_LONG))
    found: dict[str, Any] = {"authors": theirs}
    for how, run in runs.items():
        found[f"times as fast, {how}"] = theirs / run["seconds"]
    long = LONG / (arguments.samples * arguments.tokens)
    run = runs["until all is on disk"]
    ours = run["seconds"] + run["stages"]["distances, sums and fit"] * (long - 1)
    return found | {"seconds of 8000 x 1024 tokens, extrapolated": ours, "authors, extrapolated": many}


def write_model(folder: Path, arguments: argparse.Namespace, device: str) -> None:
    """Write a Llama of random bfloat16 weights, four blocks a shard."""
    folder.mkdir()
    hidden, inner = arguments.hidden, arguments.intermediate
    kv = hidden // arguments.heads * arguments.kv_heads
    shapes = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    generator = torch.Generator(device).manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.bfloat16, device=device).normal_(0, 0.02, generator=generator)

    ones = torch.ones(hidden, dtype=torch.bfloat16)
    shards = [{"model.embed_tokens.weight": random(arguments.vocabulary, hidden), "model.norm.weight": ones}]
    shards[0]["lm_head.weight"] = random(arguments.vocabulary, hidden)
    names, count = {}, 1 + -(-arguments.blocks // 4)
    for number in range(count):
        tensors = shards[0] if number == 0 else {}
        for block in range(4 * (number - 1), min(4 * number, arguments.blocks)) if number else ():
            prefix = f"model.layers.{block}."
            tensors |= {f"{prefix}{name}.weight": random(*shape) for name, shape in shapes.items()}
            tensors |= {f"{prefix}{name}_layernorm.weight": ones for name in ("input", "post_attention")}
        file = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
        save_file({name: tensor.cpu().clone() for name, tensor in tensors.items()}, folder / file, {"format": "pt"})
        names |= dict.fromkeys(tensors, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden,
        "intermediate_size": inner, "num_hidden_layers": arguments.blocks, "num_attention_heads": arguments.heads,
        "num_key_value_heads": arguments.kv_heads, "vocab_size": arguments.vocabulary, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 8192, "tie_word_embeddings": False, "dtype": "bfloat16", "hidden_act": "silu",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))


if __name__ == "__main__":
    main()
