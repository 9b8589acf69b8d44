"""verify: check that a merged checkpoint is what was fitted, and loads elsewhere."""

import argparse
import logging
from pathlib import Path

from replaceme.checkpoints import check_merged
from replaceme.errors import ReplaceMeError
from replaceme.external import external_checks
from replaceme.files import write_json
from replaceme.outcome import FAILED
from replaceme.steps.common import out_argument, set_threads
from replaceme.steps.fitted import fitted_arguments, load_fitted
from replaceme.verify import require_passed, verify

ONLINE = False
log = logging.getLogger(__name__)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the step."""
    fitted_arguments(parser)
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="folder of the `merge` step, made from these")
    out_argument(parser, "where the outcome of every check goes (.json)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads of torch. Default: torch's own choice.")


def run(args: argparse.Namespace) -> None:
    """Write the outcomes, and fail when one of the checks did; what other programs say is only reported."""
    if args.folder.resolve() in args.out.resolve().parents:
        raise ReplaceMeError(f"{args.out}: lies in the folder that is checked; choose another place")
    set_threads(args.threads)
    record, cut, transforms, _ = load_fitted(args)
    report = verify(record, cut, transforms, args.folder)
    others = external_checks(args.folder)
    write_json(args.out, {**report, "checks": report["checks"] | others})
    for name, check in (report["checks"] | others).items():
        level = logging.WARNING if check["outcome"] == FAILED else logging.INFO
        log.log(level, "%s: %s", name, ", ".join(str(value) for value in check.values()))
    if report["checks"]["files"]["outcome"] == FAILED:
        check_merged(args.folder)  # of files that are damaged it tells the folder too
    require_passed(report)
