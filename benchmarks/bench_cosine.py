"""Reweighted least squares against Adam on the cosine objective, at the size of Llama 3 8B, rows in GPU memory.

Adam, the package's own, as in the paper: from the identity, learning rate 1e-4, batches of 1024 tokens, 10 epochs.
Both minimise the mean cosine distance of m T and r over the same rows; the losses that they reach are measured alike,
in float32.

    python benchmarks/bench_cosine.py [--rows 131072] [--hidden 4096] [--out benchmarks/results]
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from bench_gram import hardware

from replaceme.activations.rows import store
from replaceme.activations.statistics import Statistics
from replaceme.config.solvers import AdamOptions
from replaceme.transforms import cosine
from replaceme.transforms.adam import adam
from replaceme.transforms.closed_form import fit_least_squares
from replaceme.transforms.objectives import Objective
from replaceme.transforms.solve import Ridge
from replaceme.transforms.streams import Blocks, Table, row_blocks

AUTHORS_SECONDS = 24.6  # Adam of the authors' code on 131,072 rows of 4096 channels, one H200
ITERATIONS = 5
PART = 8192


def data(rows: int, hidden: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return m and r bfloat16 [rows, hidden] on the GPU: lengths log-normal, r a map near the identity and noise."""
    generator = torch.Generator("cuda").manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device="cuda", generator=generator)

    lengths = torch.exp(normal(rows, 1))
    m = normal(rows, hidden)
    r = m + 0.5 * m @ normal(hidden, hidden) / hidden**0.5 + 0.5 * normal(rows, hidden)
    return (lengths * m).bfloat16(), (lengths * r).bfloat16()


def loss(m: torch.Tensor, r: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Compute the mean cosine distance of m T and r."""
    return 1 - torch.nn.functional.cosine_similarity(m.float() @ matrix, r.float(), dim=1).mean()


def total(m: torch.Tensor, r: torch.Tensor, matrix: torch.Tensor) -> float:
    """Compute the loss over all rows, part by part."""
    parts = [float(loss(m[k : k + PART], r[k : k + PART], matrix)) for k in range(0, len(m), PART)]
    return sum(parts) / len(parts)


def reweighted(blocks: Blocks, matrix: torch.Tensor, iterations: int) -> torch.Tensor:
    """Return T after `iterations` full steps of reweighted least squares."""
    for _ in range(iterations):
        matrix = cosine._solved(cosine._pass(blocks, matrix, every=True).sums, Ridge())
    return matrix


def seconds(run) -> tuple[float, torch.Tensor]:
    """Return the time of a second call, and its result."""
    for _ in range(2):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        found = run()
        torch.cuda.synchronize()
        spent = time.perf_counter() - begin
    return spent, found


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=131072, help="rows (default: 131072)")
    parser.add_argument("--hidden", type=int, default=4096, help="channels (default: 4096)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder of the JSON file")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(1, "bench_cosine.py: no CUDA device\n")
    m, r = data(arguments.rows, arguments.hidden)
    statistics = Statistics.zeros(arguments.hidden, "cuda")
    statistics.add_batch(m, r)
    with tempfile.TemporaryDirectory() as folder:
        rows = store(Path(folder) / "rows", zip(m.split(PART), r.split(PART), strict=True))
        blocks, table = row_blocks(rows, "cuda"), Table(rows, "cuda")
    start = fit_least_squares(statistics).matrix
    records = [{"fit": "least squares", "seconds": None, "loss": total(m, r, start.float())}]
    spent, found = seconds(lambda: adam(table, Objective("cosine"), AdamOptions())[0])
    records.append({"fit": "Adam, 10 epochs", "seconds": spent, "loss": total(m, r, found)})
    for iterations in (1, ITERATIONS):
        spent, found = seconds(lambda iterations=iterations: reweighted(blocks, start, iterations))
        name = f"reweighted least squares, {iterations} iteration{'s' * (iterations > 1)}"
        records.append({"fit": name, "seconds": spent, "loss": total(m, r, found.float())})
    for record in records:
        if record["seconds"]:
            record["against_authors"] = AUTHORS_SECONDS / record["seconds"]
        print(record, flush=True)
    machine = hardware()
    size = {"rows": arguments.rows, "d": arguments.hidden, "authors_seconds": AUTHORS_SECONDS}
    name = machine["hardware"].lower().replace(" ", "-")
    arguments.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**machine, **size, "records": records}, indent=2)
    (arguments.out / f"{name}-cosine.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
