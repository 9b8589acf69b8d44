"""compare: a table beside published values, in their layout."""

import argparse
import json
from pathlib import Path

from replaceme.errors import ReplaceMeError
from replaceme.steps.common import out_argument

ONLINE = False


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the step."""
    parser.add_argument("table", metavar="TABLE", type=Path, help="a table's .csv")
    parser.add_argument("--reference", required=True, metavar="JSON", help="`reference` of a table in config.yaml")
    parser.add_argument("--caption", default="", help="sentence above the table")
    out_argument(parser, "path of the comparison without its ending")


def run(args: argparse.Namespace) -> None:
    """Write the comparison as .csv and .md."""
    import pandas

    from replaceme.config.reference import ReferenceConfig
    from replaceme.files import write_text
    from replaceme.reference import compare, markdown
    from replaceme.validation import validated

    try:
        reference = validated(ReferenceConfig, json.loads(args.reference), "--reference")
        table = pandas.read_csv(args.table)
    except (OSError, ValueError) as error:
        raise ReplaceMeError(f"{args.table}: not a table and a reference to compare ({error})") from error
    compared = compare(table, reference)
    # not with_suffix: the name of a table may hold dots
    write_text(Path(f"{args.out}.csv"), compared.frame.to_csv(index=False))
    write_text(Path(f"{args.out}.md"), markdown(compared, reference, args.caption))
