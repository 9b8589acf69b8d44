"""Compare how far and how fast the solvers of the cosine objectives get at one cut of a model: least squares,
reweighted least squares one iteration after another, Adam as in the paper, L-BFGS.

The loss is the mean cosine distance over the rows that all of them are fitted to, so it says what a solver reaches, not
how well T generalises. Seconds are of the fit alone, with the rows on disk; the ratio is to the first Adam's, whose
steps are few where the rows are few: more `--adam-epochs` show where it ends. Nothing is folded, so any model whose
activations can be captured will do.

    python benchmarks/compare_solvers.py --model resources/micro --text micro --cut 3 9 --samples 32 --tokens 256
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch
from loaded import BATCH_SIZE, Loaded, parser_of

from replaceme.activations.row_collector import RowOptions, write_rows
from replaceme.activations.rows import Rows
from replaceme.activations.statistics import Statistics
from replaceme.config.solvers import AdamOptions
from replaceme.transforms import cosine
from replaceme.transforms.adam import adam
from replaceme.transforms.closed_form import fit_least_squares
from replaceme.transforms.full_batch import Problem, lbfgs
from replaceme.transforms.gradient import BLOCK_ROWS
from replaceme.transforms.objectives import Objective
from replaceme.transforms.resume import State
from replaceme.transforms.solve import Ridge
from replaceme.transforms.streams import Table, row_blocks

ITERATIONS = 5


def main() -> None:
    """Write the rows, run the solvers, print a table."""
    parser = parser_of(__doc__, samples=32)
    parser.add_argument("--cut", type=int, nargs=2, required=True, metavar=("START", "END"), help="blocks that go")
    parser.add_argument("--objective", choices=("cosine", "cosine_exact"), default="cosine")
    parser.add_argument("--adam-epochs", type=int, nargs="+", default=[10], help="default: 10, as in the paper")
    parser.add_argument("--lbfgs-iterations", type=int, default=30)
    arguments = parser.parse_args()
    given = Loaded(arguments, head=False)
    device = given.device
    objective = Objective(arguments.objective)
    with tempfile.TemporaryDirectory() as folder:
        rows = captured(given, arguments, Path(folder) / "rows")
        records = compare(rows, objective, arguments.adam_epochs, arguments.lbfgs_iterations, device)
    print(f"{given.name}, cut {arguments.cut}, {rows.count} tokens of {rows.columns[0]} channels, {objective.name}")
    print(f"{'solver':<40} {'cosine distance':>16} {'seconds':>9} {'of Adam':>9}")
    of_adam = next(seconds for name, _, seconds in records if name.startswith("Adam"))
    for name, loss, seconds in records:
        print(f"{name:<40} {loss:>16.6f} {seconds:>9.2f} {seconds / of_adam:>9.4f}")


def captured(given: Loaded, arguments: argparse.Namespace, folder: Path) -> Rows:
    """Capture the rows of the cut, with the residual stream."""
    tokens = given.text(arguments.text, arguments.samples)
    groups = [tuple(arguments.cut)]
    return write_rows(folder, given.model, given.family, tokens, groups, BATCH_SIZE, RowOptions(with_state=True))[0]


def compare(
    rows: Rows, objective: Objective, epochs: list[int], iterations: int, device: str
) -> list[tuple[str, float, float]]:
    """Run the solvers; returns (solver, mean cosine distance over the rows, seconds) of each."""
    judged = row_blocks(rows, device, objective.state, BLOCK_ROWS)
    records, clock = [], Clock(device)

    def add(name: str, matrix: torch.Tensor, seconds: float) -> None:
        records.append((name, objective.mean(judged, matrix.double()), seconds))

    add("nothing fitted, T = I", torch.eye(*rows.columns, device=device), 0.0)
    clock.start()
    statistics = Statistics.zeros(rows.columns[0], device)
    for block in judged():
        statistics.add_batch(block.m, block.r)
    matrix = fit_least_squares(statistics).matrix.to(device)
    spent = clock.seconds()
    add("least squares, with its Gram", matrix, spent)
    blocks = row_blocks(rows, device, objective.state)
    for iteration in range(ITERATIONS):
        clock.start()
        matrix = cosine._solved(cosine._pass(blocks, matrix, every=True).sums, Ridge())
        spent += clock.seconds()
        add(f"reweighted least squares, iteration {iteration + 1}", matrix, spent)
    for count in epochs:
        clock.start()
        found, _ = adam(Table(rows, device, objective.state), objective, AdamOptions(epochs=count))
        add(f"Adam, learning rate 1e-4, {count} epochs", found, clock.seconds())
    clock.start()
    problem = Problem(objective, judged, rows.columns, device)
    found, history = lbfgs(problem, iterations, State())
    add(f"L-BFGS, {len(history) - 1} iterations", found, clock.seconds())
    return records


class Clock:
    """Seconds since `start`, including the device's work."""

    def __init__(self, device: str) -> None:
        self.cuda = torch.device(device).type == "cuda"

    def start(self) -> None:
        """Start the clock."""
        self.begin = self._now()

    def seconds(self) -> float:
        """Return the seconds since the start."""
        return self._now() - self.begin

    def _now(self) -> float:
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter()


if __name__ == "__main__":
    main()
