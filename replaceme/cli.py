"""The command line: `replaceme COMMAND ...`.

A command's module is imported only when it is called, so that `--help` is instant. Errors that users can mend are one
line on stderr and exit code 1; mistakes of this package are Python's traceback, without secrets.
"""

import argparse
import atexit
import gc
import importlib
import logging
import sys
import traceback
from collections.abc import Sequence
from types import TracebackType

import replaceme
from replaceme.core.errors import ReplaceMeError, printable
from replaceme.core.memory import use_large_pages
from replaceme.core.offline import set_environment
from replaceme.core.redaction import RedactedFormatter, redacted
from replaceme.core.terminal import painted
from replaceme.steps.index import GROUPS, STEPS
from replaceme.steps.parser import Parser, Program, dashed, meant
from replaceme.workflow.step_client import hand_over

DESCRIPTION = "Shorten transformer models without training: replace a run of blocks by one folded linear map."
EPILOG = (
    "`replaceme COMMAND --help` shows the options that most people use, `--help-all` all of them. The whole workflow: "
    "`snakemake --cores all`."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    if argv is None:  # as a program; what else calls this has a hook of its own
        hand_over(sys.argv[1:])
        sys.excepthook = _show_traceback
    argv = list(sys.argv[1:] if argv is None else argv)
    # to import torch and transformers makes objects that all stay: looking for garbage among them costs a sixth of it
    gc.set_threshold(100_000, 20, 50)
    use_large_pages()
    atexit.register(gc.freeze)  # as it ends, Python would look at all of them once more, a second or two
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_LogFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    try:
        step, args = _parsed(argv)
        _run(step, args, argv)
    except ReplaceMeError as error:
        from replaceme.workflow.set_aside import told

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


def _run(step: str, args: argparse.Namespace, argv: Sequence[str]) -> None:
    """Run a command, and record its cost and its sources; weights that pass are there while it runs."""
    from replaceme.provenance.job_cost import measured
    from replaceme.provenance.job_record import recorded
    from replaceme.workflow.passing_weights import weights_for

    out = getattr(args, "out", None)
    with weights_for(step, args), measured(step, out), recorded(step, out, argv):
        args.run(args)


class _LogFormatter(RedactedFormatter):
    """Formatter of log lines, with `warning:` or `error:` in front of important ones."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return `name: message`, or `name: warning: message`."""
        if record.levelno < logging.WARNING:
            return f"{record.name}: {record.message}"
        level = "warning" if record.levelno < logging.ERROR else "error"
        return f"{record.name}: {painted(f'{level}:', level, sys.stderr)} {record.message}"


def _report(lines: Sequence[str]) -> None:
    """Print errors to stderr, a line each, whatever they quote."""
    start = f"replaceme: {painted('error:', 'error', sys.stderr)}"
    print("\n".join(f"{start} {redacted(printable(line))}" for line in lines), file=sys.stderr)


def _show_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print Python's traceback of an uncaught exception, without secrets."""
    print(redacted("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)


def _parsed(argv: Sequence[str]) -> tuple[str, argparse.Namespace]:
    """Return the command and its arguments; exits with an error where it is called wrongly."""
    words = dashed(argv)
    if not words or words[0] not in STEPS:
        program = Program("replaceme", DESCRIPTION, GROUPS, epilog=EPILOG)
        program.add_argument("--version", action="version", version=f"replaceme {replaceme.__version__}")
        program.parse_args(words[:1] if words and words[0].startswith("-") else [])
        said = f"no command {words[0]!r}{meant(words[0], STEPS)}" if words else "no command given"
        program.error(f"{said}; all of them: `replaceme --help`")
    step = words[0]
    module = importlib.import_module(f"replaceme.steps.{step}")
    parser = Parser(f"replaceme {step}", STEPS[step])
    module.arguments(parser)
    args = parser.parse_args(words[1:])
    set_environment(module.ONLINE)
    args.run = module.run
    return step, args


if __name__ == "__main__":
    sys.exit(main())
