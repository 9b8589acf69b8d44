"""Read the records of a .jsonl, .json or .parquet file one after another, each with only the columns in use.

`datasets` guesses the types of all columns from the first 10 MB and fails where a later record differs; here each
record stands for itself.
"""

import codecs
import io
import json
import mmap
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from replaceme.calibration.samples import check_names
from replaceme.config.calibrations import suffix_of
from replaceme.core.errors import ReplaceMeError, in_one_line, printable
from replaceme.core.text_files import check_mark, decoded

LONGEST_LINE = 1 << 26  # bytes of a record, of which some ten times as much is held while it is read
CHUNK = 1 << 20  # of an array, read at a time
AT_A_TIME = 1000  # records of a Parquet file
LONGEST_WORD = 16  # characters of what stands for itself in JSON: -Infinity, an escaped character
SEPARATORS = re.compile(r"[\s,]*")


def read_records(path: str, columns: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Yield records in the order of the file; a column that a record lacks is null.

    Raises ReplaceMeError for a file that cannot be read on, and at its end for a column that no record has.
    """
    missing, names = set(columns), {}
    for record in _records(path, columns):
        if missing:
            missing -= record.keys()
            names = names or dict.fromkeys(record)
        yield {column: record.get(column) for column in columns}
    if names and missing:
        check_names(path, names, [column for column in columns if column in missing])


def check_columns(path: str, columns: tuple[str, ...]) -> None:
    """Raise ReplaceMeError for an empty or unreadable file, and for a column that it does not have.

    Reads no more than the first record where that has all columns.
    """
    if Path(path).stat().st_size == 0:
        raise ReplaceMeError(f"{path}: empty, there is no text in it; give another file")
    names = next((record.keys() for record in _records(path, None)), None)
    if names is None:
        raise ReplaceMeError(f"{path}: no record in it; give another file")
    missing = [column for column in columns if column not in names]
    if missing and (_is_parquet(path) or not all(_occurs(path, column) for column in missing)):
        check_names(path, names, columns)


def _is_parquet(path: str) -> bool:
    """Return whether a file is Parquet rather than JSON."""
    return suffix_of(path) == ".parquet"


def _occurs(path: str, column: str) -> bool:
    """Return whether a JSON file may contain a column's name; names that JSON can write in several ways are not
    searched.
    """
    if not re.fullmatch(r"[\w .-]+", column, re.ASCII):
        return True
    with Path(path).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(f'"{column}"'.encode()) >= 0


def _records(path: str, columns: tuple[str, ...] | None) -> Iterator[dict[str, Any]]:
    """Yield whole records, or some columns (None: all) of Parquet records."""
    if _is_parquet(path):
        yield from _of_parquet(path, columns)
        return
    with Path(path).open("rb") as file:
        head = file.read(CHUNK)
        file.seek(0)
        try:
            check_mark(head)
        except ValueError as error:
            raise ReplaceMeError(f"{path}: {error}; save it as UTF-8") from None
        array = head.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")
        # records of .json may have several lines each
        whole = array or suffix_of(path) == ".json"
        yield from _of_values(file, path, array) if whole else _of_lines(file, path)


def _of_lines(file: BinaryIO, path: str) -> Iterator[dict[str, Any]]:
    number = 0
    while line := file.readline(LONGEST_LINE + 1):
        number += 1
        if len(line) > LONGEST_LINE:
            raise _too_long(path, number)
        if line.strip():
            yield _record(_parsed(line, f"{path}: line {number}"), f"{path}: line {number}")


def _parsed(line: bytes, where: str) -> Any:
    try:
        text = decoded(line)
    except ValueError as error:
        raise ReplaceMeError(f"{where}: {error}; save the file as UTF-8, or mend or remove it") from None
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _not_json(where, error) from None


def _of_values(file: BinaryIO, path: str, array: bool) -> Iterator[dict[str, Any]]:
    """Yield the records of a JSON array, or records of several lines each; a string becomes the column `text`."""
    reader, decoder = io.TextIOWrapper(file, "utf-8-sig"), json.JSONDecoder()
    text, place, line = "", 0, 1  # `line`: that of the beginning of `text`
    begun = not array
    while True:
        place = SEPARATORS.match(text, place).end()
        if not begun and text[place : place + 1] == "[":
            begun, place = True, place + 1
            continue
        try:
            value, end = decoder.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            number = line + text.count("\n", 0, getattr(error, "pos", place))
            if len(text) - place > LONGEST_LINE:
                raise _too_long(path, number) from None
            # as much again each time, so that a long record is not parsed over and over
            size = max(CHUNK, len(text) - place)
            more = _more(reader, size, f"{path}: line {number}") if _cut_off(error, text) else ""
            if more:
                line += text.count("\n", 0, place)
                text, place = text[place:] + more, 0
                continue
            if text[place:].strip() == ("]" if array else ""):
                return
            raise _not_json(f"{path}: line {number}", error) from None
        if array and isinstance(value, str):
            value = {"text": value}
        number = 0 if isinstance(value, dict) else line + text.count("\n", 0, place)
        yield _record(value, f"{path}: line {number}")
        place = end


def _cut_off(error: Exception, text: str) -> bool:
    """Return whether a value may be broken only because its end has not been read."""
    if not isinstance(error, json.JSONDecodeError):
        return False
    return error.msg.startswith("Unterminated string") or error.pos > len(text) - LONGEST_WORD


def _more(reader: io.TextIOWrapper, size: int, where: str) -> str:
    try:
        return reader.read(size)
    except UnicodeDecodeError as error:
        raise ReplaceMeError(f"{where}: not UTF-8 text from here on ({error.reason}); save it as UTF-8") from None


def _record(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ReplaceMeError(f"{where}: not a record {{...}} but {type(value).__name__}; mend or remove it")
    return value


def _not_json(where: str, error: Exception) -> ReplaceMeError:
    reason = "nested too deeply" if isinstance(error, RecursionError) else printable(error)
    return ReplaceMeError(f"{where}: not JSON ({reason}); mend or remove it")


def _too_long(path: str, number: int) -> ReplaceMeError:
    return ReplaceMeError(
        f"{path}: line {number} is longer than {LONGEST_LINE >> 20} MB; split it, a record on each line"
    )


def _of_parquet(path: str, columns: tuple[str, ...] | None) -> Iterator[dict[str, Any]]:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            names = file.schema_arrow.names
            known = names if columns is None else [column for column in columns if column in names]
            if columns is None:  # what is looked at is their names
                yield dict.fromkeys(names)
            for batch in file.iter_batches(AT_A_TIME, columns=known):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise ReplaceMeError(f"{path}: cannot read the dataset ({in_one_line(error)}); is the file whole?") from error
