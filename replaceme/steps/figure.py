"""figure: draw a result, or a figure that config.yaml declares."""

import argparse
import json
from pathlib import Path

from replaceme.core.errors import ReplaceMeError
from replaceme.steps.common import out_argument

ONLINE = False
KINDS = ("enough", "distances", "cut", "healing", "table", "declared")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the step."""
    parser.add_argument("kind", choices=KINDS, help="what to draw")
    parser.add_argument(
        "source",
        metavar="FILE",
        help="enough.json, distances.safetensors, cut.json, healing.json or a table's .csv; for `declared`, the "
        "figure as JSON, as under `figures` in config.yaml",
    )
    parser.add_argument("--title", default="", help="title of the figure")
    out_argument(parser, "where the figure goes (.svg or .png); of `declared` .svg, with the numbers drawn in .csv")
    group = parser.add_argument_group("numbers of a declared figure")
    group.add_argument("--table", action="append", type=Path, default=[], metavar="FILE", help="a table's .csv")
    group.add_argument("--cost", action="append", type=Path, default=[], metavar="FILE", help="a .cost.csv")
    group.add_argument(
        "--distances",
        action="append",
        default=[],
        metavar="MODEL/CALIBRATION=FILE",
        help="distances.safetensors of a model on a calibration",
    )
    group.add_argument(
        "--cut",
        action="append",
        default=[],
        metavar="MODEL/CALIBRATION=FILE",
        help="cut.json whose candidates say what was foretold of a row's blocks",
    )
    group.add_argument(
        "--numbers", default="{}", metavar="JSON", help="x of each name in the config, as in calibration.samples"
    )


def run(args: argparse.Namespace) -> None:
    """Draw one figure."""
    if args.kind == "declared":
        _draw_declared(args)
        return
    from replaceme.reports import figures

    draw = {
        "enough": figures.draw_enough,
        "distances": figures.draw_distances,
        "cut": figures.draw_cut,
        "healing": figures.draw_healing,
        "table": figures.draw_table,
    }
    draw[args.kind](args.source, args.out, title=args.title)


def _draw_declared(args: argparse.Namespace) -> None:
    """Draw a figure of the config, and write its numbers beside it."""
    from replaceme.config.figures import FigureConfig
    from replaceme.core.files import write_text
    from replaceme.core.validation import validated
    from replaceme.reports.plot_data import Sources, points
    from replaceme.reports.plots import draw

    figure = validated(FigureConfig, _parsed(args.source, "FILE"), "figure")
    distances = dict(_named(args.distances))
    numbers = _parsed(args.numbers, "--numbers")
    found = points(figure, Sources(args.table, args.cost, distances, numbers, _named(args.cut)))
    draw(figure, found, args.out)
    numbers = args.out.with_name(f"{args.out.name.removesuffix('.svg')}.csv")
    write_text(numbers, found.to_csv(index=False, lineterminator="\n"))


def _named(given: list[str]) -> list[tuple[str, Path]]:
    """Return the name and the path of each NAME=PATH."""
    return [(name, Path(path)) for name, _, path in (one.partition("=") for one in given)]


def _parsed(text: str, option: str) -> dict:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ReplaceMeError(f"options: {option}: not valid JSON ({error})") from None
