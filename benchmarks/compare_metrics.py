"""Compare metrics of cuts by how well they predict the cost of a cut: rank correlations with the loss on unused text.

Every cut of the given sizes is measured by every metric on calibration text, and then by the rise of the language-model
loss (nats per token) on other texts, with the least-squares transform fitted on the calibration text, as a folded model
has it. Spearman's rank correlation is over the cuts of each size, and their mean over sizes; `--join` gives the means
over the tables of several models. `--benchmarks` adds what the same cuts cost in a finished table of the workflow, of
one fit: the fall of the average accuracy, and the divergence where it was measured.

    python benchmarks/compare_metrics.py --model resources/micro --text micro --unseen stories=micro --sizes 3 6 9 \
        --out metrics-micro.csv
    python benchmarks/compare_metrics.py --join metrics-micro.csv metrics-other.csv
    python benchmarks/compare_metrics.py --join metrics-micro.csv --benchmarks results/tables/places.csv --fit ls
"""

import argparse
from pathlib import Path

import pandas as pd
from loaded import BATCH_SIZE, Loaded, add_unseen, parser_of

from replaceme.calibration.tokens import Tokens
from replaceme.config.cuts import CutConfig
from replaceme.config.metrics import AFTER_FIT, of_pairs
from replaceme.config.tables import BASELINE
from replaceme.cuts.after_fit import measure_candidates, split
from replaceme.cuts.choose import choose
from replaceme.cuts.distances import measure
from replaceme.reports.csv_files import read_csv
from replaceme.reports.plot_data import SPAN

DISTANCES = tuple(of_pairs())
MEASURES = (*DISTANCES, "angular-last", *AFTER_FIT)
UNSEEN = "unseen-"  # columns of the costs that are to be predicted: losses on texts, falls of benchmarks
FEWEST = 3  # cuts for a rank correlation


def main() -> None:
    """Measure one model, or join tables, and print the correlations."""
    parser = parser_of(__doc__, samples=64, required=False)
    add_unseen(parser, samples=32, required=False)
    parser.add_argument("--sizes", type=int, nargs="+", help="numbers of blocks to remove")
    parser.add_argument("--out", type=Path, help="where the table goes, .csv")
    parser.add_argument("--join", nargs="+", default=[], help="tables of earlier runs, instead of a model")
    parser.add_argument(
        "--benchmarks", nargs="+", default=[], help="tables of the workflow, .csv, with the same models"
    )
    parser.add_argument("--fit", default="ls", help="fit whose rows of these tables count (default: ls)")
    arguments = parser.parse_args()
    if arguments.join:
        table = pd.concat([pd.read_csv(path) for path in arguments.join], ignore_index=True)
    else:
        table = measured(arguments)
        table.to_csv(arguments.out, index=False)
    if arguments.benchmarks:
        table = table.merge(benchmarked(arguments.benchmarks, arguments.fit), how="left", on=["model", "start", "end"])
    print(correlations(table).round(2).to_string())


def measured(arguments: argparse.Namespace) -> pd.DataFrame:
    """Return a row for each candidate: every measure of it, and the rise of the loss on each unseen text."""
    given = Loaded(arguments, head=True)
    text = given.text(arguments.text, arguments.samples + arguments.samples // 4)
    fitted, held_out = split(text, arguments.samples)
    unseen = {f"-{name}": tokens for name, tokens in given.unseen().items()}
    listed = measure_candidates(given.model, given.family, fitted, arguments.sizes, BATCH_SIZE, {"": held_out} | unseen)
    columns = ["residual_identity", "cosine", *(f"kl{name}" for name in unseen)]
    table = pd.DataFrame(listed).drop(columns=columns)
    table = table.rename(columns={f"loss{name}": UNSEEN + name.removeprefix("-") for name in unseen})
    table = table.merge(by_distance(given, fitted, arguments.sizes))
    table.insert(0, "model", given.name)
    return table


def by_distance(given: Loaded, tokens: Tokens, sizes: list[int]) -> pd.DataFrame:
    """Return the distances of every candidate."""
    matrices = measure(given.model.base_model, given.family, tokens, BATCH_SIZE, representations=True)
    found = []
    for size in sizes:
        columns = []
        for name in (*DISTANCES, "angular-last"):
            metric, _, position = name.partition("-")
            cut = CutConfig(blocks=size, metric=metric, position=position or "all")
            listed = pd.DataFrame(choose(cut, given.record, matrices).candidates)
            columns.append(listed.set_index(["start", "end"]).rename(columns={metric: name}))
        found.append(pd.concat(columns, axis=1).reset_index())
    return pd.concat(found, ignore_index=True)


def benchmarked(paths: list[str], fit: str) -> pd.DataFrame:
    """Return the costs of the cuts of one run in the rows of a fit: the fall of the average, in points, and kl."""
    rows = pd.concat([read_csv(path) for path in paths], ignore_index=True)
    whole = rows[rows["fit"] == BASELINE].drop_duplicates("model").set_index("model")["average"]
    unhealed = rows["healing"].isna() if "healing" in rows else True
    rows = rows[(rows["fit"] == fit) & rows["span"].astype(str).str.fullmatch(SPAN) & unhealed]
    places = rows["span"].str.extract(SPAN).astype(float).set_axis(["start", "end"], axis=1)
    costs = {f"{UNSEEN}average": 100 * (rows["model"].map(whole) - rows["average"])}
    costs |= {f"{UNSEEN}kl": rows["kl"]} if "kl" in rows else {}
    return pd.concat([rows["model"], places], axis=1).assign(**costs).drop_duplicates(["model", "start", "end"])


def correlations(table: pd.DataFrame) -> pd.DataFrame:
    """Return Spearman's correlation of every measure with every unseen cost, by model, size, cost and number of cuts,
    and their mean.
    """
    table = table.assign(blocks=table["end"] - table["start"])
    rows = {}
    for (model, blocks), cuts in table.groupby(["model", "blocks"]):
        for unseen in (name for name in cuts if name.startswith(UNSEEN)):
            known = cuts[cuts[unseen].notna()]
            if len(known) < FEWEST:
                continue
            ranks = known.drop(columns="model").rank()
            key = (model, blocks, unseen.removeprefix(UNSEEN), len(known))
            rows[key] = {name: ranks[name].corr(ranks[unseen]) for name in MEASURES if name in ranks}
    found = pd.DataFrame(rows)
    found[("mean", "", "", "")] = found.mean(axis=1)
    return found.sort_values(("mean", "", "", ""), ascending=False)


if __name__ == "__main__":
    main()
