"""compare: show a table beside published values, in their layout."""

import argparse
import json
from pathlib import Path

from replaceme.core.errors import ReplaceMeError
from replaceme.steps.common import out_argument
from replaceme.steps.recorded import record_arguments, records_of

ONLINE = False


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the step."""
    parser.add_argument("table", metavar="TABLE", type=Path, help="a table's .csv")
    parser.add_argument("--reference", required=True, metavar="JSON", help="`reference` of a table in config.yaml")
    parser.add_argument("--caption", default="", help="sentence above the table")
    record_arguments(parser)
    out_argument(parser, "path of the comparison without its ending", Path)


def run(args: argparse.Namespace) -> None:
    """Write the comparison in all formats, with the sources of its numbers below it."""
    from replaceme.config.reference import ReferenceConfig
    from replaceme.core.validation import validated
    from replaceme.reports.csv_files import read_csv
    from replaceme.reports.published_values import compare, notes, shown
    from replaceme.reports.render import write_parts
    from replaceme.reports.sources import footnotes

    try:
        reference = validated(ReferenceConfig, json.loads(args.reference), "--reference")
        table = read_csv(args.table)
    except (OSError, ValueError) as error:
        raise ReplaceMeError(f"{args.table}: not a table and a reference to compare ({error})") from error
    compared = compare(table, reference)
    lines = [*notes(compared, reference), *footnotes(records_of(args))]
    legend = "Measured ± standard error (published)."
    write_parts(
        [shown(compared, reference, "Beside the published")], compared.frame, args.out, args.caption, lines, legend
    )
