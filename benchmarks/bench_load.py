"""Time and memory of the workflow itself for a large config and many shards.

Writes a project of 10 tiny random models, 5 texts, 8 cuts and 12 fits (4800 rows of one table) and measures
- planning: `snakemake -n` of the table with all that it asks for, and of the models alone (`evaluation: null`): until
  the table of jobs is shown, when a run starts its first job (a dry run goes on to describe every one, and is ended);
  wall clock, CPU seconds (the fairer number where others use the machine), peak memory, number of jobs;
- jobs: a small part of the same project run for real on one core; overhead of a job = (wall clock of the run - that of
  its dry run - the jobs' own seconds as Snakemake's `benchmark:` has them) / jobs;
- sums: `replaceme sum` of 10, 100 and 1000 shards at a small width and of some at a large one; peak memory, and whether
  shards given in another order give the same bytes.

    python benchmarks/bench_load.py [--only planning jobs sums] [--folder /scratch] [--out benchmarks/results]
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from replaceme.core.files import sha256
from replaceme.provenance.environment import hardware, versions

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
WORDS = [f"w{k}" for k in range(40)]
AXES = {"models": 10, "calibrations": 5, "cuts": 8, "fits": 12}
CUTS = [{"blocks": blocks, "metric": metric} for blocks in (1, 2, 3, 4) for metric in ("cosine", "cosine_after_fit")]
FITS = [
    {"transform": "identity"}, {"objective": "l2"}, {"objective": "l2", "ridge": 10.0},
    {"objective": "l2", "weighting": "inverse_energy"}, {"transform": "diagonal"}, {"transform": "orthogonal"},
    *({"objective": "l2", "ridge": ridge} for ridge in (1e-6, 1e-4, 1e-2, 1.0)),
    {"objective": "l2", "ridge": 1e-3, "towards": "identity"}, {"objective": "l2", "ridge": "auto"},
]  # fmt: skip
TASK = {
    "task": "pick", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "pick.jsonl"}},
    "test_split": "test", "fewshot_split": "test", "output_type": "multiple_choice", "doc_to_text": "{{context}}",
    "doc_to_choice": "{{choices}}", "doc_to_target": "gold",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}  # fmt: skip
WIDTHS = {64: (10, 100, 1000), 2048: (4, 32)}  # width: numbers of shards


@dataclass(frozen=True)
class Spent:
    """The cost of a command: seconds by the clock and of CPU (with its children's), peak memory."""

    wall_s: float
    cpu_s: float
    peak_memory_bytes: int
    output: str

    @property
    def record(self) -> dict[str, float]:
        """Numbers by name."""
        return {"wall_s": self.wall_s, "cpu_s": self.cpu_s, "peak_memory_bytes": self.peak_memory_bytes}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {"planning": planning, "jobs": jobs, "sums": sums}
    parser.add_argument("--only", nargs="+", choices=parts, default=list(parts), help="parts to measure (default: all)")
    parser.add_argument("--folder", type=Path, help="where the project lies for the run (default: /tmp)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results", help="folder of load.json")
    arguments = parser.parse_args()
    path = arguments.out / "load.json"
    report = json.loads(path.read_text()) if path.is_file() else {}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        for name in arguments.only:
            report[name] = {**parts[name](Path(scratch) / name), "load_average": os.getloadavg()[0]}
            print(json.dumps({name: report[name]}, indent=1), flush=True)
            report |= {"hardware": hardware(), "versions": versions("snakemake")}
            arguments.out.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(report, indent=1) + "\n")


def planning(folder: Path) -> dict[str, Any]:
    """Plan the whole table, and the same models without evaluations."""
    write_project(folder, AXES)
    found: dict[str, Any] = {"axes": AXES, "rows": 10 * 5 * 8 * 12}
    for name, evaluation in (("with evaluations", "items"), ("models alone", None)):
        write_config(folder, AXES, evaluation)
        spent = snakemake(folder, "--dry-run", "--quiet", "rules", "--", "load", until="total")
        found[name] = {"jobs": planned(spent.output), **spent.record}
    return found


def jobs(folder: Path) -> dict[str, Any]:
    """Make the models of one source, one text, one cut and six fits on one core."""
    axes = {"models": 1, "calibrations": 1, "cuts": 1, "fits": 6}
    write_project(folder, axes)
    write_config(folder, axes, None)
    plan = snakemake(folder, "--dry-run", "--quiet", "rules", "--", "load", until="total")
    run = snakemake(folder, "--cores", "1", "--quiet", "all", "--", "load")
    lines = [path.read_text().splitlines() for path in (folder / "results/benchmarks").rglob("*.tsv")]
    seconds = [float(dict(zip(head.split("\t"), values.split("\t"), strict=True))["s"]) for head, values in lines]
    count = planned(plan.output) - 1  # the target itself is none
    if len(seconds) != count:
        raise SystemExit(f"{count} jobs were planned, {len(seconds)} left a benchmark:\n{run.output}")
    overhead = (run.wall_s - plan.wall_s - sum(seconds)) / count
    return {
        "jobs": count,
        "run": run.record,
        "dry_run": plan.record,
        "jobs_own_s": sum(seconds),
        "shortest_job_s": min(seconds),
        "overhead_per_job_s": overhead,
    }


def sums(folder: Path) -> list[dict[str, Any]]:
    """Add up shards, in two orders."""
    found = []
    for width, counts in WIDTHS.items():
        for count in counts:
            shards = write_shards(folder / f"{width}-{count}", width, count)
            random.Random(1).shuffle(shards)
            outs = [folder / f"{name}.safetensors" for name in ("shuffled", "in-order")]
            spent = step("sum", *map(str, shards), "--out", str(outs[0]))
            step("sum", *map(str, sorted(shards, reverse=True)), "--out", str(outs[1]))
            same = len({sha256(out) for out in outs}) == 1
            size = shards[0].stat().st_size
            found.append(
                {"width": width, "shards": count, "shard_bytes": size, **spent.record, "same_bytes_in_any_order": same}
            )
            for path in shards:
                path.unlink()
    return {"runs": found}


def write_project(folder: Path, axes: dict[str, int]) -> None:
    """Write models, texts, tasks and the config."""
    chance = random.Random(0)
    for k in range(axes["models"]):
        write_model(folder / f"models/m{k}", seed=k)
    for k in range(axes["calibrations"]):
        texts = [" ".join(chance.choices(WORDS, k=chance.randint(6, 20))) for _ in range(16)]
        write_lines(folder / f"text{k}.jsonl", [{"text": text} for text in texts])
    items = [
        {"context": " ".join(chance.choices(WORDS, k=5)), "choices": chance.sample(WORDS, 3), "gold": k % 3}
        for k in range(10)
    ]
    write_lines(folder / "tasks/pick.jsonl", items)
    (folder / "tasks/pick.yaml").write_text(yaml.safe_dump(TASK))
    write_config(folder, axes, "items")


def write_lines(path: Path, records: list[dict]) -> None:
    """Write a .jsonl file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def write_model(folder: Path, seed: int) -> None:
    """Write a random Llama of 8 blocks with a tokenizer that knows whole words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({"<end>": 0, "<unk>": 1} | {w: k + 2 for k, w in enumerate(WORDS)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    sizes = {"hidden_size": 16, "num_hidden_layers": 8, "num_attention_heads": 2, "intermediate_size": 32}
    special = {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0}
    torch.manual_seed(seed)
    config = LlamaConfig(vocab_size=len(WORDS) + 2, max_position_embeddings=64, **sizes, **special)
    LlamaForCausalLM(config).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", unk_token="<unk>").save_pretrained(folder)


def write_config(folder: Path, axes: dict[str, int], evaluation: str | None) -> None:
    """Write one table of every combination."""
    names = {section: [f"{section[0]}{k}" for k in range(count)] for section, count in axes.items()}
    config = {
        "device": "cpu",
        "models": {name: {"source": f"models/{name}"} for name in names["models"]},
        "calibrations": {
            name: {"dataset": f"text{k}.jsonl", "samples": 16, "tokens": 16, "shards": 2, "batch_size": 4}
            for k, name in enumerate(names["calibrations"])
        },
        "cuts": dict(zip(names["cuts"], CUTS, strict=False)),
        "fits": dict(zip(names["fits"], FITS, strict=False)),
        "evaluations": {"items": {"include": "tasks", "tasks": {"pick": {}}}},
        "speed": {"prompt_tokens": 8, "new_tokens": 2, "repeats": 1, "warmup": 0},
        "tables": {"load": {**names, "evaluation": evaluation}},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))


def write_shards(folder: Path, width: int, count: int) -> list[Path]:
    """Write statistics of one cut over `count` shards; returns their paths."""
    import torch

    from replaceme.activations.statistics import Statistics

    origin = {"model_sha256": "0" * 64, "groups": [[1, 2]], "kind": "mlp", "shards": count}
    rows, paths = torch.randn(8, width, generator=torch.Generator().manual_seed(0)), []
    for shard in range(count):
        paths.append(folder / f"{shard}-of-{count}.safetensors")
        statistics = Statistics.zeros(width)
        statistics.add_batch(rows * (1 + shard % 7), rows)
        statistics.save(paths[-1], {**origin, "shard": shard})
    return paths


def snakemake(folder: Path, *options: str, until: str | None = None) -> Spent:
    """Run the workflow of this checkout on a folder."""
    where = ["--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder)]
    command = [str(BIN / "snakemake"), *where, "--configfile", str(folder / "config.yaml"), *options]
    return spent_by(command, folder, until)


def step(*arguments: str) -> Spent:
    """Run one step."""
    return spent_by([str(BIN / "replaceme"), *arguments], ROOT)


def spent_by(command: list[str], folder: Path, until: str | None = None) -> Spent:
    """Run a command to its end, or until a line of its output begins with `until`; raises SystemExit when it fails."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    stopped = False
    with tempfile.NamedTemporaryFile("w+") as output:
        begun = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT)
        while (ended := os.wait4(process.pid, os.WNOHANG))[0] == 0:
            if until is not None and f"\n{until}" in Path(output.name).read_text():
                process.kill()
                until, stopped = None, True
            time.sleep(0.05)
        wall, usage = time.perf_counter() - begun, ended[2]
        process.returncode = os.waitstatus_to_exitcode(ended[1])
        text = Path(output.name).read_text()
    if process.returncode != 0 and not stopped:
        raise SystemExit(f"failed: {' '.join(command)[:400]}\n{text[-4000:]}")
    return Spent(round(wall, 2), round(usage.ru_utime + usage.ru_stime, 2), usage.ru_maxrss * 1024, text)


def planned(output: str) -> int:
    """Return the total of a dry run's job table."""
    totals = [line.split()[1] for line in output.splitlines() if line.split()[:1] == ["total"]]
    if not totals:
        raise SystemExit(f"no job table in\n{output[-2000:]}")
    return int(totals[-1])


if __name__ == "__main__":
    main()
