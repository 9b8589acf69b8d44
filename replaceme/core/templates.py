"""Text from the columns of a record: `{column}` stands for a value, `{{` and `}}` for braces, and nothing else is read.

Not Python's `format`, which would follow attributes and indices of the values.
"""

import re
from collections.abc import Mapping
from typing import Any

from replaceme.core.errors import ReplaceMeError, UnusableError
from replaceme.core.text_files import decoded

PART = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


def template_columns(template: str) -> list[str]:
    """Return the columns that a template names, in order; raises ValueError for a single brace, or where it names
    none.
    """
    columns = []
    for part in PART.finditer(template):
        if part[0] in "{}":
            raise ValueError(f"a single {part[0]!r} at character {part.start()}; write {part[0] * 2!r} for a brace")
        if part[1] is not None:
            columns.append(part[1])
    if not columns or "" in columns:
        raise ValueError("names no column; write its name in braces, as in '{question}'")
    return columns


def filled(template: str, record: Mapping[str, Any], where: str) -> str:
    """Fill a template with the values of a record, empty text for null, without white space at both ends.

    Raises ReplaceMeError for a column that the record lacks, UnusableError for one of neither text nor a number.
    """

    def value(part: re.Match) -> str:
        if part[1] is None:
            return part[0][0]
        if part[1] not in record:
            raise ReplaceMeError(f"{where}: no column {part[1]!r}; its columns: {', '.join(record)}")
        return as_text(record[part[1]], part[1], where)

    return PART.sub(value, template).strip()


def as_text(value: Any, column: str, where: str) -> str:
    """Return a value of a record as text, empty for null; raises UnusableError where it is neither text nor a
    number.
    """
    what = f"{where}: column {column!r} holds"
    if value is None:
        return ""
    if isinstance(value, bytes):
        try:
            return decoded(value)
        except ValueError as error:
            raise UnusableError(f"{what} bytes, {error}; save it as UTF-8") from None
    if not isinstance(value, str | int | float):
        raise UnusableError(
            f"{what} {type(value).__name__}, not text or a number; name another one by `column`, or conversations by "
            "`conversations`"
        )
    try:
        str(value).encode()
    except UnicodeEncodeError as error:  # which JSON can write, and no tokenizer takes
        raise UnusableError(f"{what} half a character (of UTF-16, at {error.start}); remove it") from None
    return str(value)
