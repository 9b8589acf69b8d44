"""The one exception that users see: a line that says what is wrong, where, and what to do."""

from typing import Any


class ReplaceMeError(Exception):
    """Bad input or a bad environment; the command line prints the message alone and exits with 1."""


def printable(text: Any) -> str:
    """Text on one line, whatever a key holds."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in str(text))
