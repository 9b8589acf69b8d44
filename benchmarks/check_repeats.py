"""Check that the same inputs give the same bits: run the chain from text to merged models repeatedly, compare every
file.

One repeat makes, by the steps of the command line and in an empty folder, the tokens, distances, two cuts, sums of two
shards, rows, three fits (none, least squares, cosine), their checkpoints, two by training (LLM-Streamline, a healing of
all weights), and a table of what each leaves of the target, its loss and its perplexity on unseen text (with --evaluate
also accuracies, by lm-eval); everything that is written is hashed. Repeats run in several fresh processes, each with
another PYTHONHASHSEED, whole numbers of them one after the other in one process; on one number of threads, which every
step is given. Exit code 1 where any file differs.

`--against FILE` compares the table with that of another device, column by column, within TOLERANCES. Forward passes are
in float32 on both, so that what differs is the order of sums; in bfloat16 each rounding is 65,536 times
as large, and little could be told apart.

    python benchmarks/check_repeats.py [--repeats 20] [--device cuda --against benchmarks/results/repeats-cpu.json]
"""

import argparse
import csv
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from replaceme.cli import main as step
from replaceme.core.files import read_json, sha256, write_json
from replaceme.provenance.environment import hardware, versions

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "resources/micro"
TEXT = {"samples": 48, "tokens": 128}
FITS = {
    "uidl": ["--transform", "identity"],
    "ls": ["--objective", "l2"],
    "cosine": ["--objective", "cosine", "--iterations", "3"],
}
TRAINED = ["--method", "llm_streamline", "--epochs", "2"]
HEALING = ["--train", "full", "--steps", "4", "--learning-rate", "0.0001", "--batch-size", "4", "--held-out", "2"]
CUTS = {"n6": [], "n6-cosine": ["--metric", "cosine"]}
# (relative, absolute): how far a column may lie apart on two devices, in float32
TOLERANCES = {
    "removed": (0.0, 0.0),  # names of blocks: the choice itself
    "parameters": (0.0, 0.0),  # a count
    "residual": (1e-3, 1e-6),  # a small difference of large energies: errors of 1e-6 grow by 1 / residual
    "distance": (0.0, 1e-5),  # 1 - cos, of numbers near 1 with errors of 1e-7 to 1e-6
    "loss": (0.0, 1e-4),  # nats a token; logits differ by some 1e-5, and errors of tokens average out
    "perplexity": (1e-4, 0.0),  # exp(loss)
    "trained_loss": (0.0, 1e-3),  # first steps of AdamW go by the sign of a gradient, also where it is hardly any
    "accuracy": (0.0, 0.01),  # an item whose answers lie closer than 1e-4 may flip: 1 of 100
}
VARYING = ("seconds", "hardware", "versions", "model", "device")  # of an evaluation


def main() -> int:
    """Repeat, compare and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20, help="default: 20")
    parser.add_argument("--processes", type=int, default=5, help="fresh processes they are spread over (default: 5)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    parser.add_argument("--threads", type=int, default=1, help="of every step, as the workflow gives it (default: 1)")
    parser.add_argument("--evaluate", action="store_true", help="also accuracies, which takes lm-eval")
    parser.add_argument("--model", type=Path, default=MODEL, metavar="FOLDER", help="default: resources/micro")
    parser.add_argument("--samples", type=int, default=TEXT["samples"], help="texts to calibrate on (default: 48)")
    parser.add_argument("--tokens", type=int, default=TEXT["tokens"], help="of each text (default: 128)")
    parser.add_argument("--against", type=Path, metavar="FILE", help="report of another device to compare with")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="report (default: benchmarks/results/repeats-....json)"
    )
    parser.add_argument("--one-process", type=int, metavar="N", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one_process:
        print(json.dumps([one_repeat(arguments) for _ in range(arguments.one_process)]))
        return 0
    if arguments.repeats < 2:
        parser.error("--repeats: nothing to compare; at least 2")
    started = time.perf_counter()
    repeats = all_repeats(arguments)
    report = {
        **compared(repeats),
        "processes": arguments.processes,
        "threads": arguments.threads,
        "seconds": round(time.perf_counter() - started, 1),
        "table": repeats[0]["table"],
        "hardware": hardware(ask_gpu=arguments.device == "cuda"),
        "versions": versions("triton"),
    }
    apart = [] if arguments.against is None else apart_from(read_json(arguments.against)["table"], report["table"])
    if arguments.against is not None:
        report["against"] = {"report": arguments.against.name, "tolerances": TOLERANCES, "apart": apart}
    write_json(arguments.out or ROOT / f"benchmarks/results/repeats-{arguments.device}.json", report)
    print(json.dumps({key: value for key, value in report.items() if key != "table"}, indent=1))
    return int(bool(report["differ"] or any(one["beyond"] for one in apart)))


def all_repeats(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the repeats of all processes; every process gets its share and another hash seed."""
    shares = [len(range(k, arguments.repeats, arguments.processes)) for k in range(arguments.processes)]
    options = [f"--model={arguments.model}", f"--device={arguments.device}", f"--threads={arguments.threads}"]
    options += [f"--samples={arguments.samples}", f"--tokens={arguments.tokens}"]
    options += ["--evaluate"] * arguments.evaluate
    found: list[dict[str, Any]] = []
    for number, share in enumerate(filter(None, shares)):
        print(f"process {number}: {share} repeats", file=sys.stderr, flush=True)
        environment = os.environ | {"PYTHONHASHSEED": str(number)}
        command = [sys.executable, __file__, f"--one-process={share}", *options]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"process {number} failed")
        found += json.loads(done.stdout.splitlines()[-1])
    return found


def one_repeat(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the chain in an empty folder; returns the hash of every file by its path, and the table."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            rows = chain(arguments)
            with Path("table.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
            files = {str(path): sha256(path) for path in sorted(Path().rglob("*")) if path.is_file()}
        finally:
            os.chdir(before)
    return {"files": files, "table": rows}


def chain(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Run all steps in the current folder; returns the rows of the table."""
    where = ["--device", arguments.device, "--threads", str(arguments.threads)]
    forward = ["model.json", "tokens.safetensors", "--dtype", "float32", "--batch-size", "4", *where]
    texts = ["--dataset", "micro", "--tokens", str(arguments.tokens)]
    do("model", str(arguments.model), "--out", "model.json")
    do(
        "tokens",
        "model.json",
        *texts,
        "--samples",
        str(arguments.samples),
        "--seed",
        "1",
        "--out",
        "tokens.safetensors",
    )
    unseen = str(max(2, arguments.samples // 3))
    do("tokens", "model.json", *texts, "--samples", unseen, "--seed", "2", "--out", "unseen.safetensors")
    do("distances", *forward, "--out", "distances.safetensors")
    do("candidates", *forward, "--blocks", "6", "--out", "candidates.json")
    rows = [measured("baseline", str(arguments.model), arguments)]
    for cut, options in CUTS.items():
        evidence = "distances" if options else "candidates"
        file = f"{evidence}.{'safetensors' if options else 'json'}"
        do("cut", "model.json", f"--{evidence}", file, "--blocks", "6", *options, "--out", f"{cut}/cut.json")
        given = [*forward[:2], f"{cut}/cut.json", *forward[2:]]
        shards = [f"{cut}/{shard}.safetensors" for shard in range(2)]
        for shard, path in enumerate(shards):
            do("gram", *given, "--shard", str(shard), "--shards", "2", "--out", path)
        do("sum", *shards, "--out", f"{cut}/sum.safetensors")
        do("rows", *given, "--out", f"{cut}/rows")
        for fit, method in FITS.items():
            rows.append(fitted(f"{cut}/{fit}", method, arguments))
    rows.append(trained(fitted("n6/streamline", TRAINED, arguments)))
    do("heal", "n6/ls/model", "tokens.safetensors", *HEALING, *where, "--no-verify", "--out", "n6/healed/model")
    rows.append(trained(measured("n6/healed", "n6/healed/model", arguments)))
    return rows


def trained(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row of a trained model, with a tolerance of its own."""
    return row | {"trained_loss": row["loss"], "loss": None, "perplexity": None}


def fitted(name: str, method: list[str], arguments: argparse.Namespace) -> dict[str, Any]:
    """Run one fit and write its checkpoint; returns its row."""
    cut = Path(name).parent
    files = [] if "identity" in method else ["--tokens", "tokens.safetensors"]
    files += ["--statistics", f"{cut}/sum.safetensors"] if "--objective" in method else []
    files += ["--rows", f"{cut}/rows"] if "cosine" in method else []
    where = ["--device", arguments.device, "--threads", str(arguments.threads)]
    do("fit", "model.json", f"{cut}/cut.json", *files, *method, "--dtype", "float32", *where, "--out", name)
    do("merge", "model.json", f"{cut}/cut.json", f"{name}/transform.safetensors", "--out", f"{name}/model")
    chosen, report = read_json(f"{cut}/cut.json"), read_json(f"{name}/fit.json")
    row = measured(name, f"{name}/model", arguments)
    # by which the cut was chosen: the distance, or what is left of it after a fit
    start, end = chosen["groups"][0]
    distance = next(one[chosen["metric"]] for one in chosen["candidates"] if (one["start"], one["end"]) == (start, end))
    return row | {"removed": str(chosen["groups"]), "residual": report.get("residual"), "distance": distance}


def measured(name: str, folder: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure size and loss of a checkpoint on the unseen text, and with --evaluate its accuracy on two tasks."""
    from replaceme.activations.language_loss import mean_loss
    from replaceme.calibration.tokens import load_tokens
    from replaceme.models.checkpoints import open_checkpoint
    from replaceme.models.loading import load_causal_model

    model = load_causal_model(folder, "float32", arguments.device)
    loss = mean_loss(model, load_tokens("unseen.safetensors")[0])
    row = {"name": name, "removed": None, "parameters": open_checkpoint(folder).parameters, "residual": None}
    row |= {"distance": None, "loss": loss, "perplexity": math.exp(loss), "trained_loss": None}
    if arguments.evaluate:
        out = Path(f"{name}-evaluation.json")
        tasks = [
            "--task",
            "micro_where",
            "--task",
            "micro_who",
            "--limit",
            "50",
            "--include",
            str(ROOT / "resources/tasks"),
        ]
        where = ["--device", arguments.device, "--threads", str(arguments.threads), "--dtype", "float32"]
        do("evaluate", folder, *tasks, *where, "--out", str(out))
        # what a run took and where is not the same twice
        record = {key: value for key, value in read_json(out).items() if key not in VARYING}
        write_json(out, record)
        row["accuracy"] = record["average"]["value"]
    return row


def do(*arguments: str) -> None:
    """Run one step of the command line in this process."""
    if step(arguments) != 0:
        raise SystemExit(f"failed: replaceme {' '.join(arguments)}")


def compared(repeats: list[dict[str, Any]]) -> dict[str, Any]:
    """Count the files and repeats, and list the files that differ between repeats."""
    first = repeats[0]["files"]
    names = sorted({name for one in repeats for name in one["files"]})
    differ = [name for name in names if {one["files"].get(name) for one in repeats} != {first.get(name)}]
    return {"repeats": len(repeats), "files": len(names), "differ": differ}


def apart_from(reference: list[dict[str, Any]], table: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return for each column the largest difference of two tables, and whether any exceeds its bound."""
    found = []
    for column, (relative, absolute) in TOLERANCES.items():
        if column not in reference[0] or column not in table[0]:  # accuracies, where one side has no lm-eval
            continue
        pairs = [(one.get(column), other.get(column)) for one, other in zip(reference, table, strict=True)]
        pairs = [(a, b) for a, b in pairs if not (a is None and b is None)]
        numbers = [(a, b) for a, b in pairs if isinstance(a, int | float) and isinstance(b, int | float)]
        beyond = any(a != b for a, b in pairs if (a, b) not in numbers)
        beyond |= any(not abs(a - b) <= absolute + relative * abs(a) for a, b in numbers)
        largest = max((abs(a - b) for a, b in numbers), default=0.0)
        largest_relative = max((abs(a - b) / abs(a) for a, b in numbers if a), default=0.0)
        if pairs:
            found.append({"column": column, "largest": largest, "relative": largest_relative, "beyond": beyond})
    return found


if __name__ == "__main__":
    sys.exit(main())
