"""figure: draw a result."""

import argparse

from replaceme.steps.common import out_argument

ONLINE = False


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the step."""
    parser.add_argument("kind", choices=("distances", "cut", "healing", "table"), help="what to draw")
    parser.add_argument(
        "source", metavar="FILE", help="distances.safetensors, cut.json, healing.json or a table's .csv"
    )
    parser.add_argument("--title", default="", help="title of the figure")
    out_argument(parser, "where the figure goes (.svg or .png)")


def run(args: argparse.Namespace) -> None:
    """Draw one figure."""
    from replaceme.reports import figures

    draw = {
        "distances": figures.draw_distances,
        "cut": figures.draw_cut,
        "healing": figures.draw_healing,
        "table": figures.draw_table,
    }
    draw[args.kind](args.source, args.out, title=args.title)
