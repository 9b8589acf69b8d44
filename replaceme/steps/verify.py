"""verify: check that a merged checkpoint holds the fitted maps and loads elsewhere; that other programs compute what
transformers does; or that results equal their records.
"""

import argparse
import dataclasses
import json
import logging
from importlib import import_module
from pathlib import Path
from typing import Any

from replaceme.config.exports import PROGRAMS
from replaceme.core.errors import ReplaceMeError
from replaceme.core.files import write_json
from replaceme.core.fresh import is_as_imported, is_fresh
from replaceme.models.checkpoints import check_merged, read_config
from replaceme.models.model_config import pick_device
from replaceme.steps.common import new_file, set_threads
from replaceme.verification.outcome import FAILED
from replaceme.verification.reload import Fresh
from replaceme.verification.verify import require_passed, verify

ONLINE = False
log = logging.getLogger(__name__)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the step."""
    parser.usage = (
        "replaceme verify PATH [--json] [--any-versions]\n"
        "       replaceme verify FOLDER --with PROGRAM,... [--json] [--out PATH]\n"
        "       replaceme verify MODEL CUT TRANSFORM FOLDER --out PATH [OPTION ...]"
    )
    parser.add_argument(
        "model",
        metavar="PATH",
        help="alone: results/, a table, a fit, a model or any other of a run's results; the hashes of all that it was "
        "made from are computed again and compared, and the versions. With the others: a model as in `merge`",
    )
    parser.add_argument("cut", metavar="CUT", nargs="?", help="cut.json of the `cut` step")
    parser.add_argument("transform", metavar="TRANSFORM", nargs="?", help="transform.safetensors of the `fit` step")
    parser.add_argument(
        "folder", metavar="FOLDER", nargs="?", type=Path, help="folder of the `merge` step, made from these"
    )
    parser.add_argument("--out", type=new_file, metavar="PATH", help="where the outcome of every check goes (.json)")
    device = (
        "where the models run in float32; cuda: where there is room; auto: on the GPU if any. Default: cpu, whatever "
        "else GPUs are at."
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="cpu", help=device)
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads of torch. Default: torch's own choice.")
    others = parser.add_argument_group("of a FOLDER alone")
    others.add_argument(
        "--with",
        dest="programs",
        type=_programs,
        metavar="PROGRAM,...",
        help=f"other programs, each of which has to compute what transformers computes from the folder: "
        f"{', '.join(PROGRAMS)}; or `all` that are installed. With --out a program that fails is written there alone",
    )
    results = parser.add_argument_group("with PATH alone")
    results.add_argument("--json", action="store_true", help="print what was found as JSON")
    results.add_argument("--any-versions", action="store_true", help="packages may be of other versions than recorded")


def run(args: argparse.Namespace) -> None:
    """Check results, or a merged checkpoint; raises ReplaceMeError when a check fails."""
    if args.programs is not None:
        _check_exports(args)
    elif args.cut is None and args.out is None:
        _check_results(args)
    elif args.folder is None or args.out is None:
        raise ReplaceMeError("options: give PATH alone, or MODEL CUT TRANSFORM FOLDER and --out")
    else:
        _check_checkpoint(args)


def _programs(text: str) -> list[str]:
    """Return the names in a list with commas; `all` is none of them in particular."""
    return [] if text == "all" else [name.strip() for name in text.split(",")]


def _check_exports(args: argparse.Namespace) -> None:
    """Report what each program made of the folder, and fail where one did, unless the outcomes go to a file."""
    if args.cut is not None:
        raise ReplaceMeError("options: --with takes a FOLDER alone; drop CUT, TRANSFORM and the second FOLDER")
    set_threads(args.threads)
    # by its name: what the other checks can run is not changed by an edit of it
    exports = import_module("replaceme.exports.check")
    answers = exports.check_exports(args.model, args.programs or None)
    if args.out is not None:
        write_json(args.out, {"model": str(args.model), "programs": answers})
    if args.json:
        print(json.dumps(answers, indent=2))
    _log(answers)
    faults = exports.faults(answers, bool(args.programs))
    if faults and args.out is None:
        raise ReplaceMeError("\n".join(f"{args.model}: {line}" for line in faults))


def _log(checks: dict[str, dict[str, Any]]) -> None:
    for name, check in checks.items():
        level = logging.WARNING if check["outcome"] == FAILED else logging.INFO
        log.log(level, "%s: %s", name, ", ".join(str(value) for value in check.values()))


def _check_results(args: argparse.Namespace) -> None:
    """Print the differences, one line each, and fail when there is any."""
    from replaceme.verification.audit import audit

    found = audit(args.model)
    if args.any_versions:
        found.versions.clear()
    if args.json:
        print(json.dumps(dataclasses.asdict(found), indent=2))
    if found.lines:
        raise ReplaceMeError("\n".join(found.lines))
    if not args.json:
        removed = f"; {len(found.removed)} models without their weights" if found.removed else ""
        print(f"{args.model}: as recorded ({found.files} files, {found.records} steps{removed})")


def _check_checkpoint(args: argparse.Namespace) -> None:
    """Write the outcomes, and fail when one of the checks did."""
    from replaceme.steps.fitted import load_fitted

    if args.folder.resolve() in args.out.resolve().parents:
        raise ReplaceMeError(f"{args.out}: lies in the folder that is checked; choose another place")
    set_threads(args.threads)
    record, cut, transforms, _ = load_fitted(args)
    # this process does nothing else: as long as it is fresh, it loads the folder itself; but where transformers keeps
    # the code of a folder it has read when it was imported
    here = is_fresh() and not (is_as_imported() and any(args.folder.glob("*.py")))
    with Fresh(read_config(record.folder)["model_type"], here=here) as fresh:
        report = verify(record, cut, transforms, args.folder, fresh=fresh, device=pick_device(args.device))
    write_json(args.out, report)
    _log(report["checks"])
    if report["checks"]["files"]["outcome"] == FAILED:
        check_merged(args.folder)  # of files that are damaged it tells the folder too
    require_passed(report)
