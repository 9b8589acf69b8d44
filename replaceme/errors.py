"""The one exception that users see: a line that says what is wrong, where, and what to do."""

from typing import Any


class ReplaceMeError(Exception):
    """Bad input or a bad environment; the command line prints the message alone and exits with 1."""


def printable(text: Any) -> str:
    """Text on one line, whatever a key holds."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in str(text))


def first_line(error: Exception) -> str:
    """What an error of another library says first, or else its type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return printable(lines[0] if lines else type(error).__name__)
