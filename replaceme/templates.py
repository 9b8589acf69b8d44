"""Text from the columns of a record: `{column}` stands for a value, `{{` and `}}` for braces, and nothing else is read.

Not Python's `format`, which would follow attributes and indices of the values.
"""

import re
from collections.abc import Mapping
from typing import Any

from replaceme.errors import ReplaceMeError

PART = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


def template_columns(template: str) -> list[str]:
    """The columns that a template names, in order; raises ValueError for a single brace, or where it names none."""
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
    """A template with the values of a record in place, an empty one for null, white space at both ends dropped.

    Raises ReplaceMeError for a column that the record lacks, or that holds neither text nor a number.
    """

    def value(part: re.Match) -> str:
        if part[1] is None:
            return part[0][0]
        found = record.get(part[1])
        if part[1] not in record:
            raise ReplaceMeError(f"{where}: no column {part[1]!r}; its columns: {', '.join(record)}")
        if not isinstance(found, str | int | float | None):
            raise ReplaceMeError(f"{where}: column {part[1]!r} holds {type(found).__name__}, not text or a number")
        return "" if found is None else str(found)

    return PART.sub(value, template).strip()
