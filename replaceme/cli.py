"""The command line: `replaceme STEP ...`, one subcommand per step of the workflow.

A step's module is imported only when it is asked for, so that `--help` is instant. Errors that users can mend are one
line on stderr and exit code 1; mistakes of this package are Python's traceback, without secrets.
"""

import argparse
import atexit
import gc
import importlib
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from types import TracebackType

from replaceme import __version__
from replaceme.core.errors import ReplaceMeError, printable
from replaceme.core.redaction import RedactedFormatter, redacted
from replaceme.provenance.job_cost import measured
from replaceme.provenance.job_record import recorded
from replaceme.steps.index import STEPS
from replaceme.workflow.set_aside import told

DESCRIPTION = "Shorten transformer models without training: replace a run of blocks by one folded linear map."
EPILOG = "`replaceme STEP --help` lists a step's options. The whole workflow: `snakemake --cores all`."


def main(argv: Sequence[str] | None = None) -> int:
    """Run one step; returns the exit code."""
    if argv is None:  # as a program; what else calls this has a hook of its own
        sys.excepthook = _show_traceback
    argv = list(sys.argv[1:] if argv is None else argv)
    # to import torch and transformers makes objects that all stay: looking for garbage among them costs a sixth of it
    gc.set_threshold(100_000, 20, 50)
    atexit.register(gc.freeze)  # as it ends, Python would look at all of them once more, a second or two
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(RedactedFormatter("%(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    try:
        step = _asked_for(argv)
        _set_environment(online=step is not None and importlib.import_module(f"replaceme.steps.{step}").ONLINE)
        args = _parser(step).parse_args(argv)
        out = getattr(args, "out", None)
        with measured(step, out), recorded(step, out, argv):
            args.run(args)
    except ReplaceMeError as error:
        _report(told(error).split("\n"))
        return 1
    except OSError as error:  # what no step foresees: a file that may not be read, a disk that fails
        if error.filename is None:
            raise
        _report([f"{error.filename}: {error.strerror}; mend it (permissions, disk), or give another path"])
        return 1
    except KeyboardInterrupt:
        print("replaceme: interrupted; nothing half-written was left", file=sys.stderr)
        return 130
    return 0


def _report(lines: Sequence[str]) -> None:
    """Errors on stderr, a line each, whatever they quote."""
    print("\n".join(f"replaceme: error: {redacted(printable(line))}" for line in lines), file=sys.stderr)


def _show_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What Python shows of an exception that nobody caught, without secrets."""
    print(redacted("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)


def _asked_for(argv: list[str]) -> str | None:
    return next((word for word in argv[:1] if word in STEPS), None)


def _set_environment(online: bool) -> None:
    """Keep the hub libraries from trying the network in steps that never need it, and from reporting usage at all."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if not online:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        os.environ.setdefault("HF_DATASETS_OFFLINE", "1")


def _parser(step: str | None) -> argparse.ArgumentParser:
    """The parser with all subcommands; options only for the one asked for."""
    parser = argparse.ArgumentParser(prog="replaceme", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("--version", action="version", version=f"replaceme {__version__}")
    subparsers = parser.add_subparsers(title="steps", metavar="STEP", required=True)
    for name, description in STEPS.items():
        sub = subparsers.add_parser(name, help=description, description=description)
        if name == step:
            module = importlib.import_module(f"replaceme.steps.{name}")
            module.arguments(sub)
            sub.set_defaults(run=module.run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
