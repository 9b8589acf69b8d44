"""A whole `replaceme prune` of a model, folder to folder: seconds by the clock, of its stages, and memory.

The command is run as a user runs it, imports and the check by a fresh process included; the fit is the one that it
takes unasked, on a GPU that has room the recommended one. Without `--model` the model is of Llama 3 8B's shape with
random weights, written first, which is not counted, and the text that of the embedded model: times of an untrained
model are those of a trained one. What the command does not know of is passed on to `replaceme prune`.

    python benchmarks/bench_prune.py [--model FOLDER --dataset TEXT] [--blocks 8 --metric kl --samples 512 ...]
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from bench_pipeline import SIZES, add_sizes, write_model

from replaceme.provenance.environment import hardware

MICRO = Path(__file__).parents[1] / "resources" / "micro"
OPTIONS = {"--blocks": "8", "--metric": "kl", "--samples": "512", "--tokens": "1024"}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder of a checkpoint (default: random weights)")
    sizes = ("hidden", "intermediate", "heads", "kv_heads", "vocabulary")
    add_sizes(parser, {**{name: SIZES[name] for name in sizes}, "of_blocks": SIZES["blocks"]})
    arguments, options = parser.parse_known_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        model = arguments.model or random_model(arguments, Path(scratch) / "model")
        given = [part for name, value in OPTIONS.items() if name not in options for part in (name, value)]
        text = [] if arguments.model else ["--dataset", "micro"]
        found = measured(model, Path(scratch) / "out", [*text, *given, *options])
    print(json.dumps({**found, "hardware": hardware()}, indent=1))


def random_model(arguments: argparse.Namespace, folder: Path) -> Path:
    """Write random weights with the embedded model's tokenizer, which knows a few of its words."""
    arguments.blocks = arguments.of_blocks
    write_model(folder, arguments, "cuda" if torch.cuda.is_available() else "cpu")
    torch.cuda.empty_cache()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MICRO / name, folder / name)
    return folder


def measured(model: Path, out: Path, options: list[str]) -> dict[str, Any]:
    """Return the seconds from the start of the command to its end, and what its summary says."""
    command = [
        str(Path(sys.executable).with_name("replaceme")),
        "prune",
        str(model),
        "--out",
        str(out),
        "--json",
        *options,
    ]
    start = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    seconds = time.perf_counter() - start
    record = json.loads(done.stdout)
    summary = record["summary"]
    return {
        "command": command[1:],
        "seconds": seconds,
        "samples": record["origin"]["calibration"]["samples"],
        "stages": summary["seconds"],
        **{k: summary[k] for k in ("memory", "fit", "removed")},
    }


if __name__ == "__main__":
    main()
