"""Compare fits by their cost in language-model loss at some cuts, on texts used for calibration and on others.

Every fit of a config file is fitted at every cut given, applied to the loaded model as the fold applies it (a test
holds the two equal), and judged by the mean loss on each text, in nats per token. Standard errors are over sequences;
`vs ls` is paired. Quicker than a benchmark of each checkpoint, and with less noise.

    python benchmarks/compare_fits.py --model resources/micro --text micro --unseen stories=micro --config config.yaml \
        --cuts 2:8 1:10 --out fits-micro.csv
"""

import argparse
import time
from pathlib import Path

import pandas as pd
import torch
import yaml
from loaded import BATCH_SIZE, Loaded, add_unseen, parser_of

from replaceme.activations.language_loss import sequence_losses
from replaceme.config.fits import METHODS, REPLACEME
from replaceme.config.methods import MethodConfig
from replaceme.core.errors import ReplaceMeError
from replaceme.core.validation import validated
from replaceme.fitting.fit_cut import fit_cut
from replaceme.fitting.passes import Passes
from replaceme.methods.registry import check_section
from replaceme.models.model_config import stored_dtype
from replaceme.surgery.shortened_model import shortened
from replaceme.transforms.transform import joint_report

REFERENCE = "ls"


def main() -> None:
    """Fit, measure, write and print the table."""
    parser = parser_of(__doc__, samples=128)
    add_unseen(parser, samples=64)
    parser.add_argument("--config", required=True, help="YAML file with a `fits` section")
    parser.add_argument("--fits", nargs="+", help="those of its fits to compare (default: all)")
    parser.add_argument("--cuts", nargs="+", required=True, metavar="START:END", help="blocks that go")
    parser.add_argument("--out", type=Path, required=True, help="where the table goes, .csv")
    arguments = parser.parse_args()
    table = measured(arguments)
    table.to_csv(arguments.out, index=False)
    for (cut, text), rows in table.groupby(["cut", "text"], sort=False):
        print(f"\n{cut}, {text}")
        print(rows.drop(columns=["model", "cut", "text"]).round(4).to_string(index=False))


def measured(arguments: argparse.Namespace) -> pd.DataFrame:
    """Return a row for each cut, fit and text."""
    given = Loaded(arguments, head=True)
    model, family = given.model, given.family
    fitted = given.text(arguments.text, arguments.samples)
    passes = Passes(model.base_model, family, fitted, BATCH_SIZE, stored_dtype(given.config))
    unseen = given.unseen()
    whole = {name: sequence_losses(model, tokens) for name, tokens in unseen.items()}
    rows = []
    for cut in arguments.cuts:
        group = tuple(int(block) for block in cut.split(":"))
        found = {}
        for name, fit in chosen_fits(arguments, given.config).items():
            start = time.perf_counter()
            try:
                transforms = fit_cut(fit, [group], given.record, None, lambda: passes, family)
            except ReplaceMeError as error:
                print(f"{cut} {name}: {error}")
                continue
            seconds = time.perf_counter() - start
            with shortened(model.base_model, family, [group], transforms):
                losses = {text: sequence_losses(model, tokens)[0] for text, tokens in unseen.items()}
            found[name] = (losses, joint_report(transforms).get("residual"), seconds)
        rows += [
            {"model": given.name, "cut": cut, "text": text, "fit": name, **row}
            for text in unseen
            for name, row in compared(text, whole[text], found).items()
        ]
    return pd.DataFrame(rows)


def chosen_fits(arguments: argparse.Namespace, config: dict) -> dict[str, MethodConfig]:
    """Return the selected fits of the config file that the model can take."""
    sections = yaml.safe_load(Path(arguments.config).read_text())["fits"]
    found = {}
    for name in arguments.fits or sections:
        fit = validated(METHODS[sections[name].get("method", REPLACEME)], sections[name], f"fits.{name}")
        try:
            check_section(config, fit, arguments.model)
        except ReplaceMeError as error:
            print(f"{name}: {error}")
        else:
            found[name] = fit
    return found


def compared(text: str, whole: tuple[torch.Tensor, torch.Tensor], found: dict) -> dict[str, dict]:
    """Return the losses of every fit on a text: their rise over the whole model's, and the difference to least
    squares.
    """
    sums, counts = whole
    rows = {"baseline": {"loss": float(sums.sum() / counts.sum())}}
    reference = found[REFERENCE][0][text] if REFERENCE in found else None
    for name, (losses, residual, seconds) in found.items():
        rise, rise_error = mean_and_error(losses[text] - sums, counts)
        row = {"loss": rows["baseline"]["loss"] + rise, "rise": rise, "rise_stderr": rise_error}
        if reference is not None and name != REFERENCE:
            row["vs_ls"], row["vs_ls_stderr"] = mean_and_error(losses[text] - reference, counts)
        rows[name] = {**row, "residual": residual, "seconds": seconds}
    return rows


def mean_and_error(sums: torch.Tensor, counts: torch.Tensor) -> tuple[float, float]:
    """Return the mean per token of what sequences sum to, and its standard error over sequences."""
    mean = sums.sum() / counts.sum()
    return float(mean), float((sums - mean * counts).square().sum().sqrt() / counts.sum())


if __name__ == "__main__":
    main()
