"""plot: draw a figure that config.yaml declares."""

import argparse
import json
from pathlib import Path

from replaceme.core.errors import ReplaceMeError
from replaceme.steps.common import out_argument

ONLINE = False


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the step."""
    parser.add_argument("--figure", required=True, metavar="JSON", help="a figure as under `figures` in config.yaml")
    parser.add_argument("--table", action="append", type=Path, default=[], metavar="FILE", help="a table's .csv")
    parser.add_argument("--cost", action="append", type=Path, default=[], metavar="FILE", help="a .cost.csv")
    parser.add_argument(
        "--distances",
        action="append",
        default=[],
        metavar="MODEL/CALIBRATION=FILE",
        help="distances.safetensors of a model on a calibration",
    )
    parser.add_argument(
        "--numbers", default="{}", metavar="JSON", help="x of each name in the config, as in calibration.samples"
    )
    out_argument(parser, "path of the figure without its ending")


def run(args: argparse.Namespace) -> None:
    """Write .svg and .csv."""
    from replaceme.config.figures import FigureConfig
    from replaceme.core.files import write_text
    from replaceme.core.validation import validated
    from replaceme.reports.plot_data import Sources, points
    from replaceme.reports.plots import draw

    figure = validated(FigureConfig, _parsed(args.figure, "--figure"), "--figure")
    named = dict(one.partition("=")[::2] for one in args.distances)
    distances = {name: Path(path) for name, path in named.items()}
    found = points(figure, Sources(args.table, args.cost, distances, _parsed(args.numbers, "--numbers")))
    draw(figure, found, Path(f"{args.out}.svg"))
    write_text(Path(f"{args.out}.csv"), found.to_csv(index=False, lineterminator="\n"))


def _parsed(text: str, option: str) -> dict:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ReplaceMeError(f"options: {option}: not valid JSON ({error})") from None
