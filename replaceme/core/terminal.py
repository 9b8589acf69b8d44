"""Colours and moving bars on a terminal; plain lines in files and pipes."""

import os
from typing import Literal, TextIO

Style = Literal["heading", "name", "error", "warning"]
CODES: dict[Style, str] = {"heading": "1", "name": "36", "error": "1;31", "warning": "1;33"}  # of ECMA-48


def is_terminal(stream: TextIO) -> bool:
    """Return whether a stream is shown by a terminal that can move its cursor."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def painted(text: str, style: Style, stream: TextIO) -> str:
    """Return the text in colour where the stream is a terminal, unless NO_COLOR is set (https://no-color.org)."""
    if os.environ.get("NO_COLOR") or not is_terminal(stream):
        return text
    return f"\x1b[{CODES[style]}m{text}\x1b[0m"
