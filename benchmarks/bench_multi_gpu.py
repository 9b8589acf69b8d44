"""Several GPUs of one host: the Gram of a model of Llama 3 8B's shape by shards side by side, a model spread over all
GPUs, and two models calibrated side by side by one Snakemake.

- shards: the calibration text as jobs of their own, each a process with a GPU of its own (`gpu_lock 1 --`),
  first with one GPU to take, then with all. Seconds of the whole jobs (imports, context, load, passes, saving), and of
  the passes alone, the longest of the jobs that ran side by side. The sums of both must be the same bits, and those of
  one process over the whole text the same to rounding.
- spread: the model over all GPUs (`gpus`), in one process: its sums beside those of one GPU, and memory on each.
- side by side: `snakemake --cores all` with two models of two shards each; which process has which GPU is looked up
  ten times a second, and no GPU may ever have two.

    python benchmarks/bench_multi_gpu.py [--hidden 4096 --blocks 32 ...] [--out benchmarks/results]

Without GPUs (to try it out, with small sizes) one is faked by name, and the model runs on the CPU.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from bench_gram import hardware
from bench_pipeline import SIZES, add_out, add_sizes, write_model

from replaceme.activations.gather import gather_groups, shard_batches
from replaceme.activations.statistics import TENSORS, Statistics
from replaceme.calibration.tokens import Tokens, load_tokens
from replaceme.models.loading import Held, load_base_model
from replaceme.models.model_config import family_of
from replaceme.steps.index import STEPS
from replaceme.workflow.gpu_lock import visible

ROOT = Path(__file__).resolve().parents[1]
CUT = {"blocks": 6, "start": 4}
PARTS = ("gram", "side-by-side")


def main() -> None:
    """Measure, print and write; or be one of the jobs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_sizes(parser, SIZES)
    add_out(parser)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=PARTS, help="what to measure (default: all)")
    parser.add_argument("--job", nargs=4, metavar=("FOLDER", "SHARD", "SHARDS", "GPUS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        job(Path(arguments.job[0]), *map(int, arguments.job[1:]))
        return
    devices = visible() or ["0"]
    report: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        if "gram" in arguments.part:
            report |= measured(arguments, Path(scratch), devices)
            report["sizes"] = {name: getattr(arguments, name) for name in SIZES}
        if "side-by-side" in arguments.part:
            report["side by side"] = side_by_side(Path(scratch) / "workflow", devices)
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name().lower().replace(" ", "-")
        arguments.out.mkdir(parents=True, exist_ok=True)
        path = arguments.out / f"multi-gpu-{len(devices)}-{name}.json"
        before = json.loads(path.read_text()) if path.is_file() else {}  # the part that is not measured again
        path.write_text(json.dumps(before | report | hardware(), indent=1) + "\n")
    print(json.dumps(report, indent=1))


def measured(arguments: argparse.Namespace, scratch: Path, devices: list[str]) -> dict[str, Any]:
    """Measure the Gram by shards on one GPU and on all, in one process, and over all GPUs in one process."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    write_model(scratch / "model", arguments, device)
    ids = torch.randint(arguments.vocabulary, (arguments.samples, arguments.tokens), generator=torch.Generator())
    Tokens(ids, torch.ones_like(ids, dtype=torch.bool)).save(scratch / "tokens.safetensors", {})
    start = max(1, arguments.blocks - arguments.removed - 4)
    given = {"group": [start, start + arguments.removed], "batch": arguments.batch}
    (scratch / "job.json").write_text(json.dumps(given))
    del ids
    jobs(scratch, devices[:1], 1, "warm")  # kernels are compiled and kept on disk, files are in memory
    count = len(devices)
    found = {
        "one job": jobs(scratch, devices[:1], 1, "whole"),
        "shards on one GPU": jobs(scratch, devices[:1], count, "one"),
        f"shards on {count} GPUs": jobs(scratch, devices, count, "all"),
        f"model over {count} GPUs": jobs(scratch, devices, 1, "spread", gpus=count),
    }
    sums = {name: added(scratch, name) for name in ("whole", "one", "all", "spread")}
    one, every = found["shards on one GPU"], found[f"shards on {count} GPUs"]
    return found | {
        "speed-up of the jobs": one["seconds"] / every["seconds"],
        "speed-up of the passes": one["passes"] / every["passes"],
        "shards on one GPU and on all: same bits": all(
            torch.equal(getattr(sums["one"], name), getattr(sums["all"], name)) for name in TENSORS
        ),
        "shards against one job": difference(sums["all"], sums["whole"]),
        "model over all GPUs against one": difference(sums["spread"], sums["whole"]),
    }


def difference(one: Statistics, other: Statistics) -> float:
    """Return the largest relative difference of two statistics, tensor by tensor."""
    pairs = [(getattr(one, name), getattr(other, name)) for name in TENSORS]
    return max(float((a - b).norm() / b.norm()) for a, b in pairs)


def added(scratch: Path, name: str) -> Statistics:
    """Return the sum of the shards of some jobs."""
    return Statistics.sum(Statistics.load(path)[0] for path in sorted((scratch / name).glob("*.safetensors")))


def jobs(scratch: Path, devices: list[str], shards: int, name: str, gpus: int = 1) -> dict[str, Any]:
    """Run the shards as jobs that share the devices; returns seconds from the first start to the last end, and their
    output.
    """
    (scratch / name).mkdir()
    environment = os.environ | {
        "CUDA_VISIBLE_DEVICES": ",".join(devices),
        "REPLACEME_GPU_LOCKS": str(scratch / "locks"),
    }
    launcher = [sys.executable, "-m", "replaceme.workflow.gpu_lock", str(gpus), "--", sys.executable, __file__]
    started = time.perf_counter()
    running = [
        subprocess.Popen([*launcher, "--job", str(scratch / name), str(shard), str(shards), str(gpus)], env=environment)
        for shard in range(shards)
    ]
    codes = [process.wait() for process in running]
    if any(codes):
        raise SystemExit(f"{name}: a job failed")
    seconds = time.perf_counter() - started
    said = [json.loads((scratch / name / f"{shard}.json").read_text()) for shard in range(shards)]
    passes = [one["passes"] for one in said]
    # on one device the jobs wait for one another
    together = sum(passes) if len(devices) < shards else max(passes)
    return {"seconds": seconds, "passes": together, "load": max(one["load"] for one in said), "jobs": said}


def job(folder: Path, shard: int, shards: int, gpus: int) -> None:
    """Run one shard: load, gather, save, and print how long it took."""
    given = json.loads((folder.parent / "job.json").read_text())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = json.loads((folder.parent / "model/config.json").read_text())
    start = time.perf_counter()
    model = load_base_model(folder.parent / "model", "bfloat16", device, Held(gpus))
    loaded = time.perf_counter()
    tokens = load_tokens(folder.parent / "tokens.safetensors")[0]
    batches = shard_batches(tokens, given["batch"], shard, shards)
    statistics = gather_groups(model, family_of(config, "the model"), batches, [tuple(given["group"])])[0]
    end = time.perf_counter()
    statistics.save(folder / f"{shard}.safetensors")
    counted = range(torch.cuda.device_count()) if device == "cuda" else ()
    said = {
        "load": loaded - start,
        "passes": end - loaded,
        "peak_gb": [torch.cuda.max_memory_allocated(k) / 1e9 for k in counted],
        "device": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "blocks by device": spread(model),
    }
    (folder / f"{shard}.json").write_text(json.dumps(said))


def spread(model: torch.nn.Module) -> dict[str, int]:
    """Return how many blocks lie on which device."""
    found: dict[str, int] = {}
    for block in model.layers:
        device = str(next(block.parameters()).device)
        found[device] = found.get(device, 0) + 1
    return found


def side_by_side(folder: Path, devices: list[str]) -> dict[str, Any]:
    """Run two models to their transforms by one Snakemake, and record which processes had which GPU meanwhile."""
    folder.mkdir()
    (folder / "micro").symlink_to(ROOT / "resources/micro")
    other = folder / "other"
    other.mkdir()
    for path in (ROOT / "resources/micro").iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    (other / "LICENSE").write_text("another file makes another model\n")
    names = ("first", "second")
    config = {
        "models": {"first": {"source": "micro"}, "second": {"source": "other"}},
        "calibrations": {"text": {"dataset": "micro", "samples": 512, "tokens": 256, "shards": 2}},
        "cuts": {"n6": CUT},
        "fits": {"ls": {"objective": "l2"}},
        "tables": {
            "t": {"models": list(names), "calibrations": ["text"], "cuts": ["n6"], "fits": ["ls"], "evaluation": None}
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    targets = [f"results/{name}/text/n6/ls/transform.safetensors" for name in names]
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder)]
    command += ["--configfile", str(folder / "config.json"), "--cores", "all", "--quiet", "rules", "--", *targets]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ",".join(devices), "REPLACEME_GPU_LOCKS": str(folder / "locks")}
    started = time.perf_counter()
    running = subprocess.Popen(command, env=environment)
    seen = watched(running, devices)
    if running.wait():
        raise SystemExit("snakemake failed")
    holders = {device: sorted(step for one in seen for where, _, step in one if where == device) for device in devices}
    return {
        "seconds": time.perf_counter() - started,
        "most GPUs at work at once": max(len({device for device, _, _ in one}) for one in seen),
        "most processes on one GPU at once": max(
            [sum(device == other for other, _, _ in one) for one in seen for device, _, _ in one], default=0
        ),
        "looks with a process on this GPU": {device: len(steps) for device, steps in holders.items()},
        "looks": len(seen),
        "transforms differ only in their model": same_but_for_the_model([folder / target for target in targets]),
    }


def watched(running: subprocess.Popen, devices: list[str]) -> list[set[tuple[str, int, str]]]:
    """Record, ten times a second until a command ends, (GPU, process, step) of the jobs below it."""
    import psutil

    seen = []
    while running.poll() is None:
        now = set()
        for process in psutil.Process(running.pid).children(recursive=True):
            try:
                words, device = process.cmdline(), process.environ().get("CUDA_VISIBLE_DEVICES", "")
            except psutil.Error:
                continue
            step = next((word for word in words[:4] if word in STEPS), None)
            # the launcher itself waits without a device; Snakemake's own processes see all of them
            if "replaceme.workflow.gpu_lock" not in words and step is not None and device in devices:
                now.add((device, process.pid, step))
        seen.append(now)
        time.sleep(0.1)
    return seen


def same_but_for_the_model(paths: list[Path]) -> bool:
    """Return whether transforms are the same numbers: the two models have the same weights."""
    from replaceme.transforms.transform import Transform

    one, other = (Transform.load_all(path)[0][0].matrix for path in paths)
    return torch.equal(one, other)


if __name__ == "__main__":
    main()
