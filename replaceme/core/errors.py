"""The one exception that users see: a line that says what is wrong, where, and what to do."""

from pathlib import Path
from typing import Any

LONGEST = 400  # characters of what an error of another library says


class ReplaceMeError(Exception):
    """Bad input or a bad environment; the command line prints the message alone and exits with 1."""


class UnusableError(ReplaceMeError):
    """A record of a data set that gives no text; other records may."""


class DamagedError(ReplaceMeError):
    """A result that differs from what was written; `path` (a file, or a folder that counts as a whole) can be made
    again.
    """

    def __init__(self, path: str | Path, what: str, part: str | Path | None = None) -> None:
        """Name the damaged file `part` in the folder `path`."""
        self.path, self.found = Path(path), f"{part or path}: {what}"
        self._what, self._part = what, part or path
        super().__init__(f"{self.found}; delete {'it' if part is None else path} and run again")

    def within(self, folder: str | Path) -> "DamagedError":
        """Return this error for a folder that counts as a whole."""
        return DamagedError(folder, self._what, self._part)


def printable(text: Any) -> str:
    """Return text on one line, whatever a key holds."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in str(text))


def in_one_line(error: Exception | str) -> str:
    """Return the message of another library's error on one line (both ends of a long one), or its type."""
    line = printable(" ".join(str(error).split())) or type(error).__name__
    return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}"
