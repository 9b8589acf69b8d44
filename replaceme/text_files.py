"""Files of text: lines that would fill the memory, found before they are read, and which line is broken, after."""

import json
from pathlib import Path

from replaceme.errors import ReplaceMeError, printable

LONGEST_LINE = 1 << 26  # bytes of a record, of which some ten times as much is held while it is read
LARGEST_TEXT = 1 << 28  # bytes of a file that is tokenised whole
CHUNK = 1 << 20


def check_size(path: Path) -> None:
    """Raise ReplaceMeError for an empty file, and a .txt file or a line of a .json or .jsonl file too long to be held.

    Takes CHUNK bytes of memory whatever the file holds.
    """
    size = path.stat().st_size
    if size == 0:
        raise ReplaceMeError(f"{path}: empty, there is no text in it; give another file")
    if path.suffix == ".txt" and size > LARGEST_TEXT:
        raise ReplaceMeError(
            f"{path}: {size / 1e6:.0f} MB, and a .txt file is tokenised whole, at most {LARGEST_TEXT >> 20} MB; "
            "make it a .jsonl file, a document on each line"
        )
    if path.suffix not in (".json", ".jsonl") or size <= LONGEST_LINE:
        return
    number = length = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            first, *others = chunk.split(b"\n")
            for part in (first, *others):
                number, length = (number, length + len(part)) if part is first else (number + 1, len(part))
                if length > LONGEST_LINE:
                    raise ReplaceMeError(
                        f"{path}: line {number + 1} is longer than {LONGEST_LINE >> 20} MB; split it, a record on each "
                        "line"
                    )


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file; raises ReplaceMeError for another encoding."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ReplaceMeError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error


def first_fault(path: str | Path) -> str | None:
    """Where the first line of a .jsonl file is that is no record, why, and what to do; None when there is none."""
    with Path(path).open("rb") as file:
        for number, line in enumerate(file, 1):
            reason = _fault(line)
            if reason:
                return f"line {number}: {reason}; mend or remove it"
    return None


def _fault(line: bytes) -> str | None:
    if not line.strip():
        return None
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return f"not UTF-8 text (byte {error.start} of the line)"
    except RecursionError:
        return "not JSON (nested too deeply)"
    except ValueError as error:
        return f"not JSON ({printable(error)})"
    return None if isinstance(record, dict) else f"not a record {{...}} but {type(record).__name__}"
