"""What fits cost in language-model loss at some cuts, on texts that they were and were not calibrated on.

Every fit of a config file is fitted at every cut given, applied to the loaded model as the fold applies it (a test
holds the two equal), and judged by the mean loss on each text, in nats per token. Standard errors are over sequences;
`vs ls` is paired. Quicker than a benchmark of each checkpoint, and with less noise.

    python benchmarks/compare_fits.py --model resources/micro --text micro --unseen stories=micro --config config.yaml \
        --cuts 2:8 1:10 --out fits-micro.csv
"""

import argparse
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch
import yaml

from replaceme.checkpoints import read_config, resolve
from replaceme.config import CalibrationConfig, FitConfig
from replaceme.data import Tokens, calibrate, load_tokens
from replaceme.errors import ReplaceMeError
from replaceme.fitting import Evidence, Passes, fit_cut
from replaceme.language_loss import sequence_losses
from replaceme.loading import load_causal_model, load_tokenizer
from replaceme.models import check_fit, family_of, pick_device, pick_dtype, stored_dtype
from replaceme.shortened import shortened
from replaceme.transforms import joint_report
from replaceme.validation import validated

REFERENCE = "ls"


def main() -> None:
    """Fit, measure, write and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a checkpoint")
    parser.add_argument("--name", help="its name in the table (default: the folder's)")
    parser.add_argument("--text", required=True, help="calibration text: a file of text or of the `tokens` step, micro")
    parser.add_argument("--samples", type=int, default=128, help="sequences of it")
    parser.add_argument("--tokens", type=int, default=256, help="tokens of a sequence")
    parser.add_argument("--unseen", nargs="+", required=True, metavar="NAME=FILE", help="texts the loss is measured on")
    parser.add_argument("--unseen-samples", type=int, default=64, help="sequences of each of them")
    parser.add_argument("--config", required=True, help="YAML file with a `fits` section")
    parser.add_argument("--fits", nargs="+", help="those of its fits to compare (default: all)")
    parser.add_argument("--cuts", nargs="+", required=True, metavar="START:END", help="blocks that go")
    parser.add_argument("--dtype", default="auto", help="of the forward passes (default: as in the config)")
    parser.add_argument("--out", type=Path, required=True, help="where the table goes, .csv")
    arguments = parser.parse_args()
    table = measured(arguments)
    table.to_csv(arguments.out, index=False)
    for (cut, text), rows in table.groupby(["cut", "text"], sort=False):
        print(f"\n{cut}, {text}")
        print(rows.drop(columns=["model", "cut", "text"]).round(4).to_string(index=False))


def measured(arguments: argparse.Namespace) -> pd.DataFrame:
    """A row for each cut, fit and text."""
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
    fitted = text(arguments.text, arguments.samples, 0)
    passes = Passes(model.base_model, family, fitted, batch_size, stored_dtype(config))
    unseen = dict(given.split("=", 1) for given in arguments.unseen)
    unseen = {name: text(dataset, arguments.unseen_samples, 1) for name, dataset in unseen.items()}
    whole = {name: sequence_losses(model, tokens) for name, tokens in unseen.items()}
    rows = []
    for cut in arguments.cuts:
        group = tuple(int(block) for block in cut.split(":"))
        found = {}
        for name, fit in chosen_fits(arguments, config).items():
            start = time.perf_counter()
            try:
                transforms = fitted_at(fit, group, passes, config["hidden_size"])
            except ReplaceMeError as error:
                print(f"{cut} {name}: {error}")
                continue
            seconds = time.perf_counter() - start
            with shortened(model.base_model, family, [group], transforms):
                losses = {text: sequence_losses(model, tokens)[0] for text, tokens in unseen.items()}
            found[name] = (losses, joint_report(transforms).get("residual"), seconds)
        rows += [
            {"model": arguments.name or Path(arguments.model).name, "cut": cut, "text": text, "fit": name, **row}
            for text in unseen
            for name, row in compared(text, whole[text], found).items()
        ]
    return pd.DataFrame(rows)


def chosen_fits(arguments: argparse.Namespace, config: dict) -> dict[str, FitConfig]:
    """The fits of the config file that are asked for and that the model can take."""
    sections = yaml.safe_load(Path(arguments.config).read_text())["fits"]
    found = {}
    for name in arguments.fits or sections:
        fit = validated(FitConfig, sections[name], f"fits.{name}")
        try:
            check_fit(config, fit.intercept, fit.placement, arguments.model)
        except ReplaceMeError as error:
            print(f"{name}: {error}")
        else:
            found[name] = fit
    return found


def fitted_at(fit: FitConfig, group: tuple[int, int], passes: Passes, hidden_size: int) -> list:
    """The transform of a fit at a cut."""
    with tempfile.TemporaryDirectory() as scratch:

        def gathered(number: int) -> Evidence:
            if fit.transform == "identity":
                return Evidence()
            return passes.evidence(fit, group, Path(scratch) / str(number))

        return fit_cut(fit, [group], hidden_size, gathered, lambda: passes, passes.family)


def compared(text: str, whole: tuple[torch.Tensor, torch.Tensor], found: dict) -> dict[str, dict]:
    """The losses of every fit on a text: their rise over the whole model's, and the difference to least squares."""
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
    """The mean per token of what sequences sum to, and its standard error over sequences."""
    mean = sums.sum() / counts.sum()
    return float(mean), float((sums - mean * counts).square().sum().sqrt() / counts.sum())


if __name__ == "__main__":
    main()
