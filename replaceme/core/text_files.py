"""Text as UTF-8, whatever the file: byte order marks are dropped, other encodings refused by name."""

import codecs
from pathlib import Path

from replaceme.core.errors import ReplaceMeError

LARGEST_TEXT = 1 << 28  # bytes of a file that is tokenised whole
# UTF-32 first, as its mark begins with that of UTF-16
MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def decoded(raw: bytes) -> str:
    """Return the text of UTF-8 bytes without a byte order mark; raises ValueError, in words for users, for any other
    bytes.
    """
    check_mark(raw)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text (byte {error.start})") from None
    if "\0" in text:  # which UTF-8 would allow
        raise ValueError(f"not UTF-8 text (a NUL at byte {raw.index(0)}: UTF-16 without a mark, or binary)")
    return text.removeprefix("\ufeff")


def check_mark(raw: bytes) -> None:
    """Raise ValueError, in words for users, for bytes that begin as UTF-16 or UTF-32 does."""
    for mark, encoding in MARKS.items():
        if raw.startswith(mark):
            raise ValueError(f"not UTF-8 text ({encoding})")


def read_text(path: str | Path) -> str:
    """Return the text of a UTF-8 file, its lines ended by newlines; raises ReplaceMeError for another encoding."""
    try:
        text = decoded(Path(path).read_bytes())
    except ValueError as error:
        raise ReplaceMeError(f"{path}: {error}; save it as UTF-8") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_lines(path: str | Path) -> list[str]:
    """Return the lines of a UTF-8 file that are not empty, without white space at their ends; errors as `read_text`."""
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def check_text(path: str | Path) -> None:
    """Raise ReplaceMeError for a file of text that is empty, too long to be tokenised whole, or of UTF-16."""
    size = Path(path).stat().st_size
    if size == 0:
        raise ReplaceMeError(f"{path}: empty, there is no text in it; give another file")
    try:
        with Path(path).open("rb") as file:
            check_mark(file.read(4))
    except ValueError as error:
        raise ReplaceMeError(f"{path}: {error}; save it as UTF-8") from None
    if size > LARGEST_TEXT:
        raise ReplaceMeError(
            f"{path}: {size / 1e6:.0f} MB, and a .txt file is tokenised whole, at most {LARGEST_TEXT >> 20} MB; "
            "make it a .jsonl file, a document on each line"
        )
