"""Parse the words of one command, with help in two lengths, and suggest the nearest name for a mistake."""

import argparse
import functools
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn, TextIO

from replaceme.core.errors import printable
from replaceme.core.terminal import painted
from replaceme.steps.help import command_help, overview, usage


class Parser(argparse.ArgumentParser):
    """argparse's parser, with `--help`, `--help-all`, and help of our own in place of argparse's."""

    def __init__(self, prog: str, description: str, **more: Any) -> None:
        super().__init__(prog=prog, description=description, add_help=False, allow_abbrev=False, **more)
        self._positionals.title = "arguments"
        for name, full in (("--help", False), ("--help-all", True)):
            names = (name,) if full else ("-h", name)
            self.add_argument(*names, action=_Help, full=full, nargs=0, help=argparse.SUPPRESS)

    def parse_args(self, args: Sequence[str], namespace: argparse.Namespace | None = None) -> argparse.Namespace:
        """Parse the words; an unknown option is reported before missing arguments, which it may cause."""
        self._check_names(args)
        return super().parse_args(args, namespace)

    def format_usage(self) -> str:
        """Return how the command is called, without colours."""
        return usage(self)

    def format_help(self) -> str:
        """Return the text of `--help`, without colours."""
        return command_help(self, full=False)

    def print_help(self, file: TextIO | None = None, full: bool = False) -> None:
        """Show the help, with colours on a terminal."""
        file = file or sys.stdout
        file.write(command_help(self, full, functools.partial(painted, stream=file)))

    def error(self, message: str) -> NoReturn:
        """Print the error to stderr and exit with 2."""
        paint = functools.partial(painted, stream=sys.stderr)
        self.exit(2, f"{usage(self, paint)}{self.prog}: {paint('error:', 'error')} {printable(message)}\n")

    def _check_names(self, words: Iterable[str]) -> None:
        known = self._option_string_actions
        for word in words:
            if word == "--":
                return
            name = word.partition("=")[0]
            # a word with a space is a value for argparse
            if name.startswith("--") and " " not in name and name not in known:
                self.error(f"no option {name}{meant(name, known)}; all of them: `{self.prog} --help-all`")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Refuse a value that is no choice, naming the nearest one."""
        if action.choices is not None and value not in action.choices:
            choices = [str(one) for one in action.choices]
            message = f"no choice {str(value)!r}{meant(str(value), choices)}; one of {', '.join(choices)}"
            raise argparse.ArgumentError(action, message)


class Program(Parser):
    """The parser of the words before a command, which shows all commands as its help."""

    def __init__(self, prog: str, description: str, groups: dict[str, dict[str, str]], **more: Any) -> None:
        super().__init__(prog, description, usage=f"{prog} COMMAND ...", **more)
        self._groups = groups

    def print_help(self, file: TextIO | None = None, full: bool = False) -> None:
        """Show all commands."""
        file = file or sys.stdout
        file.write(overview(self, self._groups, functools.partial(painted, stream=file)))


class _Help(argparse.Action):
    """Show the help and exit."""

    def __init__(self, *args: Any, full: bool, **more: Any) -> None:
        super().__init__(*args, **more)
        self.full = full

    def __call__(self, parser: Parser, *_: Any) -> None:
        parser.print_help(full=self.full)
        parser.exit()


def dashed(words: Sequence[str]) -> list[str]:
    """Return the words with dashes for underscores in names of options: `--batch_size` is `--batch-size`."""
    found = []
    for number, word in enumerate(words):
        if word == "--":
            return [*found, *words[number:]]
        name, equals, value = word.partition("=")
        # argparse takes a word with a space for a value
        is_name = name.startswith("--") and " " not in name
        found.append(name.replace("_", "-") + equals + value if is_name else word)
    return found


def meant(word: str, known: Iterable[str]) -> str:
    """Return a question about the known word that is nearest, or nothing where none is near."""
    from difflib import SequenceMatcher, get_close_matches

    known = list(known)
    near = get_close_matches(word, known, n=1)
    if not near:  # `--num-samples` has a part of `--samples`, `--output-path` begins as `--out`
        parts = {part for part in word.strip("-").split("-") if len(part) > 2}
        sharing = [one for one in known if any(part.startswith(one.strip("-")) for part in parts)]
        near = sorted(sharing, key=lambda one: -SequenceMatcher(None, word, one).ratio())[:1]
    return f" (did you mean {near[0]}?)" if near else ""
