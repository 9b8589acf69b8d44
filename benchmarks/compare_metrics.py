"""Which measure of a candidate cut predicts what the cut costs: rank correlations with the loss on text not used.

Every cut of the given sizes is measured by every metric on calibration text, and then by the rise of the language-model
loss (nats per token) on other texts, with the least-squares transform fitted on the calibration text, as a folded model
has it. Spearman's rank correlation is over the cuts of each size, and their mean over sizes; `--join` gives the means
over the tables of several models.

    python benchmarks/compare_metrics.py --model resources/micro --text micro --unseen stories=micro --sizes 3 6 9 \
        --out metrics-micro.csv
    python benchmarks/compare_metrics.py --join metrics-micro.csv metrics-other.csv
"""

import argparse
from pathlib import Path

import pandas as pd

from replaceme.candidates import measure_candidates, split
from replaceme.checkpoints import read_config, resolve
from replaceme.config import POST_FIT_METRICS, REPRESENTATIONS, CalibrationConfig, CutConfig
from replaceme.cuts import choose
from replaceme.data import Tokens, calibrate, load_tokens
from replaceme.distances import measure
from replaceme.loading import load_causal_model, load_tokenizer
from replaceme.models import family_of, pick_device, pick_dtype

DISTANCES = ("cosine", "angular", "l2", "bi", *REPRESENTATIONS)
MEASURES = (*DISTANCES, "angular-last", *POST_FIT_METRICS)
UNSEEN = "unseen-"  # columns of the losses that are to be predicted


def main() -> None:
    """Measure one model, or join tables, and print the correlations."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of a checkpoint")
    parser.add_argument("--name", help="its name in the table (default: the folder's)")
    parser.add_argument("--text", help="calibration text: a file of text or of the `tokens` step, or micro")
    parser.add_argument("--samples", type=int, default=64, help="sequences to fit on, a quarter as many held out")
    parser.add_argument("--tokens", type=int, default=256, help="tokens of a sequence")
    parser.add_argument("--unseen", nargs="+", default=[], metavar="NAME=FILE", help="texts whose loss is predicted")
    parser.add_argument("--unseen-samples", type=int, default=32, help="sequences of each of them")
    parser.add_argument("--sizes", type=int, nargs="+", help="numbers of blocks to remove")
    parser.add_argument("--dtype", default="auto", help="of the forward passes (default: as in the config)")
    parser.add_argument("--out", type=Path, help="where the table goes, .csv")
    parser.add_argument("--join", nargs="+", default=[], help="tables of earlier runs, instead of a model")
    arguments = parser.parse_args()
    if arguments.join:
        table = pd.concat([pd.read_csv(path) for path in arguments.join], ignore_index=True)
    else:
        table = measured(arguments)
        table.to_csv(arguments.out, index=False)
    print(correlations(table).round(2).to_string())


def measured(arguments: argparse.Namespace) -> pd.DataFrame:
    """A row for each candidate: every measure of it, and the rise of the loss on each unseen text."""
    record = resolve(arguments.model, None)
    config = read_config(record["folder"])
    device = pick_device("auto")
    model = load_causal_model(record["folder"], pick_dtype(arguments.dtype, device, config), device)
    family = family_of(config, arguments.model)

    def text(dataset: str, samples: int, seed: int) -> Tokens:
        if dataset.endswith(".safetensors"):
            return load_tokens(dataset)[0].first(samples)
        section = CalibrationConfig(dataset=dataset, samples=samples, tokens=arguments.tokens, seed=seed)
        return calibrate(section, load_tokenizer(record["folder"]))[0]

    batch_size = CalibrationConfig.model_fields["batch_size"].default
    fitted, held_out = split(text(arguments.text, arguments.samples + arguments.samples // 4, 0), arguments.samples)
    texts = {"loss": held_out}
    for given in arguments.unseen:
        name, _, dataset = given.partition("=")
        texts[UNSEEN + name] = text(dataset, arguments.unseen_samples, 1)
    listed = measure_candidates(model, family, fitted, arguments.sizes, batch_size, texts)
    table = pd.DataFrame(listed).drop(columns=["residual_identity", "cosine"])
    table = table.merge(by_distance(model.base_model, family, fitted, batch_size, record, arguments.sizes))
    table.insert(0, "model", arguments.name or Path(arguments.model).name)
    return table


def by_distance(model, family, tokens: Tokens, batch_size: int, record, sizes: list[int]) -> pd.DataFrame:
    """The distances of every candidate."""
    matrices = measure(model, family, tokens, batch_size, representations=True)
    found = []
    for size in sizes:
        columns = []
        for name in (*DISTANCES, "angular-last"):
            metric, _, position = name.partition("-")
            cut = CutConfig(blocks=size, metric=metric, position=position or "all")
            listed = pd.DataFrame(choose(cut, record, matrices)["candidates"])
            columns.append(listed.set_index(["start", "end"]).rename(columns={metric: name}))
        found.append(pd.concat(columns, axis=1).reset_index())
    return pd.concat(found, ignore_index=True)


def correlations(table: pd.DataFrame) -> pd.DataFrame:
    """Spearman's correlation of every measure with every unseen loss: by model and size, and the mean of these."""
    table = table.assign(blocks=table["end"] - table["start"])
    rows = {}
    for (model, blocks), cuts in table.groupby(["model", "blocks"]):
        ranks = cuts.rank()
        for unseen in (name for name in cuts if name.startswith(UNSEEN) and cuts[name].notna().all()):
            key = (model, blocks, unseen.removeprefix(UNSEEN))
            rows[key] = {name: ranks[name].corr(ranks[unseen]) for name in MEASURES if name in ranks}
    found = pd.DataFrame(rows)
    found[("mean", "", "")] = found.mean(axis=1)
    return found.sort_values(("mean", "", ""), ascending=False)


if __name__ == "__main__":
    main()
