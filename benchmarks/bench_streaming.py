"""Streamed forward passes at the size of a 70B model: peak memory, tokens a second, and what the host link allows.

The weights of a few blocks are made and written to disk, and every block reads one of them in turn, so that a model
that is larger than the disk can be run. What is timed is the pass that a Gram needs, to the last block but two.

    python benchmarks/bench_streaming.py [--hidden 8192 --blocks 80 ...] [--out benchmarks/results]
"""

import argparse
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bench_gram import hardware
from bench_pipeline import add_out, add_sizes, write_model

from replaceme.activations.gather import gather_groups
from replaceme.activations.streaming import load_streamed
from replaceme.calibration.tokens import Tokens
from replaceme.models.checkpoints import Checkpoint, open_checkpoint

SIZES = {"hidden": 8192, "intermediate": 28672, "blocks": 80, "heads": 64, "kv_heads": 8, "vocabulary": 128256}
SIZES |= {"samples": 128, "tokens": 1024, "batch": 8, "removed": 20, "distinct": 2}


@dataclass(frozen=True)
class Repeated(Checkpoint):
    """A checkpoint of more blocks than it has: block k reads the weights of block k modulo `distinct`."""

    distinct: int = 1

    def read(self, names: Any) -> dict[str, torch.Tensor]:
        """Return tensors by name."""
        stored = {name: self._stored(name) for name in names}
        found = super().read(dict.fromkeys(stored.values()))
        return {name: found[other] for name, other in stored.items()}

    def _stored(self, name: str) -> str:
        block = self.family.block_of(name)
        return name if block is None else self.family.renamed(name, block % self.distinct)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_sizes(parser, SIZES)
    add_out(parser)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        report = measured(arguments, Path(scratch) / "model")
    report["sizes"] = {name: getattr(arguments, name) for name in SIZES}
    if torch.cuda.is_available():
        report |= hardware()
        name = torch.cuda.get_device_name().lower().replace(" ", "-")
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / f"streaming-{name}.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


def measured(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure seconds, memory and rates of one pass."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    blocks, arguments.blocks = arguments.blocks, arguments.distinct
    write_model(folder, arguments, device)
    arguments.blocks = blocks
    small = open_checkpoint(folder)
    tensors = dict(small.tensors)
    for name in small.tensors:
        if small.family.block_of(name) == 0:
            tensors |= {small.family.renamed(name, block): small.tensors[name] for block in range(blocks)}
    config = {**small.config, "num_hidden_layers": blocks}
    checkpoint = Repeated(folder, config, small.family, tensors, arguments.distinct)
    ids = torch.randint(0, arguments.vocabulary, (arguments.samples, arguments.tokens))
    tokens = Tokens(ids, torch.ones_like(ids, dtype=torch.bool))
    model = load_streamed(checkpoint, "bfloat16", device)
    group = (max(1, blocks - arguments.removed - 2), max(2, blocks - 2))
    gather_groups(model, checkpoint.family, [tokens.first(arguments.batch)], [(1, 2)])  # kernels compiled
    settle()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    gather_groups(model, checkpoint.family, tokens.batches(arguments.batch), [group])
    settle()
    seconds = time.perf_counter() - start
    block_bytes = 2 * checkpoint.block_parameters()[0]
    state_bytes = 2 * tokens.count * arguments.hidden
    link = host_link(device)
    return {
        "parameters": checkpoint.parameters,
        "seconds": seconds,
        "tokens_per_second": tokens.count / seconds,
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else None,
        "reserved_gb": torch.cuda.max_memory_reserved() / 1e9 if device == "cuda" else None,
        "weights_gb_read": group[1] * block_bytes / 1e9,
        "states_gb_moved": 2 * group[1] * state_bytes / 1e9,
        "host_link_gb_per_second": link,
        "seconds_of_the_link_alone": group[1] * (block_bytes + 2 * state_bytes) / 1e9 / link,
    }


def settle() -> None:
    """Wait for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def host_link(device: str) -> float:
    """Measure GB per second of a copy from pinned memory, 1 GB at a time."""
    there = torch.empty(2**30, dtype=torch.uint8, pin_memory=device == "cuda")
    copied = there.to(device)
    settle()
    start = time.perf_counter()
    for _ in range(4):
        copied.copy_(there, non_blocking=True)
    settle()
    return 4 * 2**30 / 1e9 / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
