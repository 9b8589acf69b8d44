"""Bad calibration files: missing, binary, of other columns and encodings, broken in some line, too long to be held."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hostile.stage import CHECK, Case

from replaceme.calibration.record_files import LONGEST_LINE
from replaceme.core.text_files import LARGEST_TEXT

OUT = ("--out", "out")


def tokens(dataset: str, *more: str) -> tuple[str, ...]:
    """Return the command that reads a file."""
    return ("tokens", "model", "--dataset", dataset, "--samples", "8", "--tokens", "16", *more, *OUT)


def case(name: str, content: bytes | Callable[[], Any] | None, key: str, remedy: str, *more: str) -> Case:
    """Return a file of this name and content, read with `more` options."""

    def spoil() -> None:
        if callable(content):
            content()
        elif content is not None:
            Path(name).write_bytes(content)

    return Case(spoil, name, key, remedy, tokens(name, *more))


def sparse(name: str, before: bytes, size: int) -> Callable[[], None]:
    """Return a file with a last line that takes no room on the disk but is as long as this."""

    def write() -> None:
        Path(name).write_bytes(before)
        os.truncate(name, len(before) + size)

    return write


def parquet(name: str, spoil: Callable[[bytes], bytes]) -> Callable[[], None]:
    """Return a Parquet file, spoilt."""

    def write() -> None:
        import pyarrow
        from pyarrow import parquet

        table = pyarrow.Table.from_pylist([{"text": f"w{k} w{k + 1}"} for k in range(200)])
        parquet.write_table(table, name)
        Path(name).write_bytes(spoil(Path(name).read_bytes()))

    return write


def lines(*records: Any) -> bytes:
    """Return records as JSON lines."""
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def zeroed(raw: bytes) -> bytes:
    """Return the middle of a file overwritten."""
    third = len(raw) // 3
    return raw[:third] + b"\0" * third + raw[2 * third :]


GOOD = lines({"text": "w1 w2"}, {"text": "w3"})
MEND = "mend or remove it"
CASES = {
    "missing": case("none.jsonl", None, "no such file", "`dataset` is micro, a .txt"),
    "missing, in the config": Case(
        lambda: Path("text.jsonl").unlink(),
        "config.yaml",
        "calibrations.plain: text.jsonl: no such file",
        "`dataset` is",
        CHECK,
    ),
    "folder": case("folder.jsonl", lambda: Path("folder.jsonl").mkdir(), "no such file", "`dataset` is micro, a .txt"),
    "unknown kind": case("text.csv", b"text\nw1\n", "unknown kind of file", "use one of .txt"),
    "no column": case("a.jsonl", lines({"body": "w1"}), "no column 'text'", "its columns: body"),
    "no column of the template": case(
        "a.jsonl", GOOD, "no column 'answer'", "its columns: text", "--template", "{text} {answer}"
    ),
    "mapping for text": case("a.jsonl", lines({"text": {"a": "w1"}}), "column 'text' holds dict", "name another"),
    "list for text": case("a.jsonl", lines({"text": ["w1"]}), "column 'text' holds list", "name another"),
    "text for conversations": case(
        "a.jsonl", lines({"chat": "w1"}), "column 'chat' holds str", "not a list of turns", "--conversations", "chat"
    ),
    "turns without a role": case(
        "a.jsonl", lines({"chat": [{"content": "w1"}]}), "a turn", "needs role/content", "--conversations", "chat"
    ),
    "empty": case("a.jsonl", b"", "a.jsonl: empty", "give another file"),
    "empty text": case("a.txt", b" \n\n", "no text left", "check dataset and column"),
    "nothing but null": case(
        "a.jsonl", lines({"text": None}, {"text": None}), "no text in column 'text'", "name another one by `column`"
    ),
    "binary": case("a.jsonl", bytes(range(128, 256)) * 20, "line 1: not UTF-8 text", MEND),
    "binary text": case("a.txt", b"\x7fELF\xff\xfe", "not UTF-8 text (byte 4)", "save it as UTF-8"),
    "Latin-1": case("a.jsonl", GOOD + b'{"text": "caf\xe9"}\n', "line 3: not UTF-8 text", MEND),
    "UTF-16": case("a.txt", "w1 w2".encode("utf-16"), "not UTF-8 text (UTF-16)", "save it as UTF-8"),
    "broken in a line": case("a.jsonl", GOOD + b'{"text": \n' + GOOD, "line 3: not JSON", MEND),
    "cut off in a line": case("a.jsonl", GOOD + b'{"text": "w1', "line 3: not JSON", MEND),
    "list in a line": case("a.jsonl", GOOD + b'["w1"]\n', "line 3: not a record", MEND),
    "nested without end": case("a.jsonl", GOOD + b"[" * 100_000 + b"\n", "line 3: not JSON (nested too deeply)", MEND),
    "a line without end": case(
        "a.jsonl", sparse("a.jsonl", GOOD, LONGEST_LINE + 9), "line 3 is longer than 64 MB", "split it"
    ),
    "a gigabyte of nothing": case("a.json", sparse("a.json", b"", 1 << 30), "line 1: not JSON", MEND),
    "a text of a gigabyte": case("a.txt", sparse("a.txt", b"w1", 1 << 30), "tokenised whole", "make it a .jsonl file"),
    "Parquet cut off": case(
        "a.parquet", parquet("a.parquet", lambda raw: raw[:-50]), "cannot read", "is the file whole?"
    ),
    "Parquet of other bytes": case("a.parquet", parquet("a.parquet", zeroed), "cannot read", "is the file whole?"),
    "Parquet of text": case("a.parquet", b"w1 w2 w3", "cannot read the dataset", "is the file whole?"),
}
assert LONGEST_LINE < LARGEST_TEXT < 1 << 30, "what the gigabytes are too long for"
